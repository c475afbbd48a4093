//! Processes that outlive the command: started in a session of their own, recognised by pid, start time and boot, so
//! that a recycled pid is never taken for one of ours.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Identifies a process. A pid alone can be reused; a pid with its start time and boot cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The process id.
    pub pid: u32,
    /// The start time, in clock ticks since boot.
    pub started: u64,
    /// The id of its boot.
    pub boot: String,
}

impl Identity {
    /// Returns the identity of a running process; `None` if it does not exist or is a zombie.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then(|| Self { pid, started, boot: boot_id() })
    }

    /// Returns whether exactly this process still runs.
    pub(crate) fn runs(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal to exactly this process; does nothing if it has exited.
    pub(crate) fn signal(&self, signal: Signal) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return };
        // The descriptor pins the process, so the check after opening it applies to the process that gets the signal.
        if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
            && self.runs()
        {
            let _ = pidfd_send_signal(handle, signal);
        }
    }

    /// Waits until the process has exited, or until `limit` has passed. Returns whether it has exited.
    pub(crate) fn wait_gone(&self, limit: Duration) -> bool {
        let began = Instant::now();
        while self.runs() {
            if began.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Returns how long the process has been running.
    pub(crate) fn age(&self) -> Duration {
        let ticks = u64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)).max(1);
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let up: f64 = uptime.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        Duration::from_secs_f64((up - self.started as f64 / ticks as f64).max(0.0))
    }

    /// Returns its resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid)).unwrap_or_default();
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }
}

/// Starts `program` as a process of its own session, its output appended to `log`, and records its identity.
///
/// # Errors
/// If a file cannot be written or the program does not start.
pub(crate) fn spawn(
    program: &Path,
    arguments: &[String],
    environment: &[(&str, String)],
    log: &Path,
    record: &Path,
) -> Result<Identity> {
    let file = fs::OpenOptions::new().create(true).append(true).open(log).map_err(Error::io("open", log))?;
    let copy = file.try_clone().map_err(Error::io("open", log))?;
    // `setsid` replaces itself with the program, so the child's pid is the program's.
    let mut command = Command::new("setsid");
    command.arg(program).args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.current_dir("/").stdin(Stdio::null()).stdout(file).stderr(copy);
    let child = command.spawn().map_err(Error::io("start", program))?;
    let identity = Identity::of(child.id()).ok_or_else(|| Error::Command {
        command: program.display().to_string(),
        status: "exited at once".into(),
        stderr: fs::read_to_string(log).unwrap_or_default(),
    })?;
    let text = serde_json::to_string(&identity).map_err(|source| Error::Json { what: "the process table", source })?;
    fs::write(record, text).map_err(Error::io("write", record))?;
    Ok(identity)
}

/// Reads the identity written by [`spawn`], whether or not the process still runs.
pub(crate) fn recorded(record: &Path) -> Option<Identity> {
    serde_json::from_str(&fs::read_to_string(record).ok()?).ok()
}

/// Returns the id of the current boot.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Lists all processes with their command lines (arguments separated by spaces).
pub(crate) fn all() -> Vec<(u32, Vec<String>)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let words = raw.split(|&byte| byte == 0).filter(|word| !word.is_empty());
            Some((pid, words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()))
        })
        .collect()
}

/// Parses state and start time from `/proc/PID/stat`, in which the name can contain spaces and brackets.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 of the line, the start time field 22.
    let started = fields.nth(22 - 4)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_strange_name() {
        let stat = "77 (a) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 424242 1000 10 18446744073709551615";
        assert_eq!(parse_stat(stat), Some(('S', 424_242)));
        assert_eq!(parse_stat("nothing"), None);
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.runs());
        let earlier = Identity { started: own.started - 1, ..own.clone() };
        assert!(!earlier.runs());
        let other_boot = Identity { boot: "another".into(), ..own };
        assert!(!other_boot.runs());
        // The signal must not reach the test itself.
        other_boot.signal(Signal::KILL);
    }

    #[test]
    fn a_process_outlives_its_record_only_as_a_stranger() {
        let folder = tempfile::tempdir().unwrap();
        let (log, record) = (folder.path().join("log"), folder.path().join("pid"));
        let sleep = spawn(Path::new("/bin/sleep"), &["60".into()], &[], &log, &record).unwrap();
        assert_eq!(recorded(&record), Some(sleep.clone()));
        assert!(sleep.runs());
        sleep.signal(Signal::KILL);
        assert!(sleep.wait_gone(Duration::from_secs(5)));
    }
}
