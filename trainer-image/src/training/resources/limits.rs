//! Memory limits of the machine and the control groups, and the memory of this process. Reads `/proc` and `/sys`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The memory limit of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Where the limit is set.
    pub(crate) source: String,
}

/// Returns the lowest limit of the control groups and the machine. `root` is `/` outside tests.
pub(crate) fn memory_limit(root: &Path) -> Option<MemoryLimit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            limits.extend(group_limits(&root.join("sys/fs/cgroup"), path, "memory.max"));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            limits.extend(group_limits(&root.join("sys/fs/cgroup/memory"), path, "memory.limit_in_bytes"));
        }
    }
    let machine = field(&fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default(), "MemTotal:");
    limits.extend(machine.map(|bytes| MemoryLimit { bytes, source: "the machine's memory".to_owned() }));
    limits.into_iter().min_by_key(|limit| limit.bytes)
}

/// Returns the limits of a control group and its ancestors. In a container the path may be the host's while the group itself is
/// mounted, so the root of the mount counts, too.
fn group_limits(mount: &Path, path: &str, file: &str) -> Vec<MemoryLimit> {
    let group = mount.join(path.trim_start_matches('/'));
    let inside = group.ancestors().take_while(|group| group.starts_with(mount)).map(PathBuf::from);
    let mut limits = Vec::new();
    for group in inside {
        let text = fs::read_to_string(group.join(file)).unwrap_or_default();
        // `max`, and a number larger than any machine, mean "no limit".
        if let Some(bytes) = text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60) {
            limits.push(MemoryLimit { bytes, source: format!("the control group's {file}") });
        }
    }
    limits
}

/// Returns the number of a line `NAME  1234 kB` in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Returns the resident memory of this process and its peak in bytes; 0 if the kernel does not report it.
pub(crate) fn resident_memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (field(&status, "VmRSS:").unwrap_or(0), field(&status, "VmHWM:").unwrap_or(0))
}

/// Makes the allocator return freed memory to the system, so that resident memory is memory in use.
pub(crate) fn release_memory() {
    // SAFETY: `mi_collect` may be called at any time, on any thread.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// Logs the memory of this process `after` a phase.
pub(crate) fn log_memory(after: &'static str) {
    let (now, peak) = resident_memory();
    tracing::debug!(after, now, peak, "memory");
}

/// Returns how many processes of this control group the kernel has killed for lack of memory.
pub(crate) fn oom_kills(root: &Path) -> u64 {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut most = 0;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.events")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.oom_control")
        } else {
            continue;
        };
        let mount = root.join(mount);
        for group in [mount.join(path.trim_start_matches('/')), mount.clone()] {
            let text = fs::read_to_string(group.join(file)).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
            most = most.max(count.unwrap_or(0));
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_lowest_limit_counts_in_both_versions_of_control_groups() {
        let of = |files: &[(&str, &str)]| memory_limit(machine(files).path()).unwrap();
        assert_eq!(of(&[MEMINFO]), MemoryLimit { bytes: 8 << 30, source: "the machine's memory".to_owned() });
        let v2 = [
            MEMINFO,
            ("proc/self/cgroup", "0::/pods/one\n"),
            ("sys/fs/cgroup/pods/one/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/pods/one/memory.events", "low 0\noom 1\noom_kill 2\n"),
        ];
        let found = of(&v2);
        assert_eq!(found.bytes, 1 << 30, "the pod's limit counts for its container");
        assert!(found.source.contains("memory.max"));
        assert_eq!(oom_kills(machine(&v2).path()), 2);
        let v1 = [
            MEMINFO,
            ("proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/kubepods/pod1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ];
        assert_eq!(of(&v1).bytes, 512 << 20, "the mounted root is the container's own group");
        assert_eq!(oom_kills(machine(&v1).path()), 1);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(of(&unlimited).bytes, 8 << 30);
        assert_eq!(memory_limit(machine(&[]).path()), None);
    }

    #[test]
    fn this_process_has_memory() {
        let (now, most) = resident_memory();
        assert!(now > 1 << 20 && most >= now, "{now} {most}");
    }
}
