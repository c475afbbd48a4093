//! How much memory there is and how much training will take, told before the first step. Reads what the kernel says.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// The most memory that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bytes.
    pub(super) bytes: u64,
    /// Who says so.
    pub(super) source: String,
}

/// What training will take, part by part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    /// What each part is, and its bytes.
    pub(super) parts: Vec<(&'static str, u64)>,
}

/// Bytes as a person reads them: 1.5 GiB.
pub(super) struct Bytes(pub(super) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0 as f64 / f64::from(1 << 20);
        if mebibytes < 1024.0 { write!(f, "{mebibytes:.0} MiB") } else { write!(f, "{:.1} GiB", mebibytes / 1024.0) }
    }
}

impl Estimate {
    /// All parts together.
    pub(super) fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Bytes(self.total()))?;
        for (index, (part, bytes)) in self.parts.iter().enumerate() {
            write!(f, "{}{part} {}", if index == 0 { " (" } else { ", " }, Bytes(*bytes))?;
        }
        if self.parts.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

/// A way to train the same step in less memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Examples in one forward pass.
    pub(super) batch: usize,
    /// Forward passes of a step.
    pub(super) accumulation: usize,
    /// Whether the way back computes the way there again.
    pub(super) checkpointing: bool,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, accumulation, checkpointing } = self;
        write!(f, "training.batch_size={batch} training.gradient_accumulation={accumulation}")?;
        if *checkpointing { f.write_str(" training.gradient_checkpointing=true") } else { Ok(()) }
    }
}

/// The fastest shape that sees the same examples in a step and takes at most `limit` bytes, as `estimate` says: the largest
/// batch as it is, then the largest with recomputation where the engine `recomputes`. None when not even single examples fit.
pub(super) fn propose(shape: Shape, limit: u64, recomputes: bool, estimate: impl Fn(Shape) -> u64) -> Option<Shape> {
    let examples = shape.batch * shape.accumulation;
    let batches = (1..=shape.batch).rev().filter(|batch| examples.is_multiple_of(*batch));
    let shapes: Vec<Shape> = batches
        .map(|batch| Shape { batch, accumulation: examples / batch, checkpointing: shape.checkpointing })
        .collect();
    let recomputed = shapes.iter().map(|shape| Shape { checkpointing: true, ..*shape });
    let all = shapes.iter().copied().chain(recomputed.filter(|_| recomputes && !shape.checkpointing));
    // Recomputation costs a third of the speed; batches below a quarter of what was asked for cost more.
    let worth =
        |candidate: &Shape| candidate.checkpointing == shape.checkpointing && 4 * candidate.batch >= shape.batch;
    let fitting: Vec<Shape> = all.filter(|candidate| estimate(*candidate) <= limit).collect();
    fitting
        .iter()
        .find(|candidate| worth(candidate))
        .or_else(|| fitting.iter().max_by_key(|shape| shape.batch))
        .copied()
}

/// The least of what the control groups and the machine allow. `root` is `/` outside tests.
pub(super) fn limit(root: &Path) -> Option<Limit> {
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
    limits.extend(machine.map(|bytes| Limit { bytes, source: "the machine's memory".to_owned() }));
    limits.into_iter().min_by_key(|limit| limit.bytes)
}

/// The limits of a control group and of those above it. In a container the path may be the host's, and what is mounted is the
/// group itself: so the mount's root counts, too.
fn group_limits(mount: &Path, path: &str, file: &str) -> Vec<Limit> {
    let group = mount.join(path.trim_start_matches('/'));
    let inside = group.ancestors().take_while(|group| group.starts_with(mount)).map(PathBuf::from);
    let mut limits = Vec::new();
    for group in inside {
        let text = fs::read_to_string(group.join(file)).unwrap_or_default();
        // `max`, or a number that no machine has, is no limit.
        if let Some(bytes) = text.trim().parse::<u64>().ok().filter(|bytes| *bytes < 1 << 60) {
            limits.push(Limit { bytes, source: format!("the control group's {file}") });
        }
    }
    limits
}

/// The number of a line `NAME  1234 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Memory that this process has now and the most that it ever had, in bytes; 0 where the kernel does not say.
pub(super) fn resident() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (field(&status, "VmRSS:").unwrap_or(0), field(&status, "VmHWM:").unwrap_or(0))
}

/// Has the allocator hand back what was freed, so that what is resident is what is needed.
pub(super) fn release() {
    // SAFETY: may be called at any time, on any thread.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// Logs what the process has, after what it has just done.
pub(super) fn note(after: &'static str) {
    let (now, peak) = resident();
    tracing::debug!(after, now, peak, "memory");
}

/// Processes that the kernel has killed for memory in this control group.
pub(super) fn kills(root: &Path) -> u64 {
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
    fn the_least_limit_counts_in_both_versions_of_control_groups() {
        let of = |files: &[(&str, &str)]| limit(machine(files).path()).unwrap();
        assert_eq!(of(&[MEMINFO]), Limit { bytes: 8 << 30, source: "the machine's memory".to_owned() });
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
        assert_eq!(kills(machine(&v2).path()), 2);
        let v1 = [
            MEMINFO,
            ("proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/kubepods/pod1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ];
        assert_eq!(of(&v1).bytes, 512 << 20, "what is mounted in a container is its own group");
        assert_eq!(kills(machine(&v1).path()), 1);
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(of(&unlimited).bytes, 8 << 30);
        assert_eq!(limit(machine(&[]).path()), None);
    }

    #[test]
    fn a_proposal_sees_the_same_examples_and_fits() {
        let shape = Shape { batch: 64, accumulation: 1, checkpointing: false };
        let estimate = |shape: Shape| 100 + shape.batch as u64 * if shape.checkpointing { 2 } else { 10 };
        let of = |limit, recomputes| propose(shape, limit, recomputes, estimate);
        assert_eq!(of(10_000, true), Some(shape));
        assert_eq!(of(500, true), Some(Shape { batch: 32, accumulation: 2, checkpointing: false }));
        // A quarter of the batch and less: recomputing is faster.
        assert_eq!(of(200, true), Some(Shape { batch: 32, accumulation: 2, checkpointing: true }));
        assert_eq!(of(200, false), Some(Shape { batch: 8, accumulation: 8, checkpointing: false }));
        assert_eq!(of(101, true), None);
        for limit in (102..800).step_by(7) {
            let found = of(limit, true).unwrap();
            assert!(estimate(found) <= limit && found.batch * found.accumulation == 64, "{limit} {found:?}");
        }
        let odd = propose(Shape { batch: 6, accumulation: 5, checkpointing: false }, 135, false, estimate);
        assert_eq!(odd, Some(Shape { batch: 3, accumulation: 10, checkpointing: false }));
    }

    #[test]
    fn this_process_has_memory() {
        let (now, most) = resident();
        assert!(now > 1 << 20 && most >= now, "{now} {most}");
    }
}
