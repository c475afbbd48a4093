//! The pool of volumes: directories of this machine that honour a pod's fsGroup and support every access mode.
//!
//! A process of the cluster watches them: it wipes released volumes and makes them available again, and it creates new
//! ones when few are left, so that a long session never runs out. The pure function [`decide`] decides what to do.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::layout::Layout;
use crate::{Error, Result, command, objects};

/// The default storage class.
pub(crate) const CLASS: &str = "codex-local";
/// The initial number of volumes.
pub(crate) const POOL: usize = 24;
/// The capacity of each volume. The directories are not limited to it.
pub(crate) const SIZE: &str = "10Gi";
/// The number of volumes that are kept free.
const SPARE: usize = 8;
/// The maximum number of volumes. A session that uses this many does not release them.
const MOST: usize = 400;
/// How long the watch must be silent before the pool reacts, and the longest wait for that.
const SILENCE: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(1));

/// Returns the name of the volume with this number, and of its directory.
pub(crate) fn name(number: usize) -> String {
    format!("codex-local-{number:03}")
}

/// A volume as the API server shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    phase: String,
    claim: Option<String>,
}

/// A change of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// Wipe the directory and make the volume available again, if this claim was the last one to hold it.
    Recycle { volume: String, claim: String },
    /// Create the volume with this number.
    Create(usize),
}

/// Returns the changes that the pool needs.
fn decide(pool: &BTreeMap<String, Volume>) -> Vec<Action> {
    let mut actions = Vec::new();
    for (volume, state) in pool {
        if let ("Released" | "Failed", Some(claim)) = (state.phase.as_str(), &state.claim) {
            actions.push(Action::Recycle { volume: volume.clone(), claim: claim.clone() });
        }
    }
    let free = pool.values().filter(|volume| volume.claim.is_none()).count() + actions.len();
    let unused = (0..MOST).filter(|&number| !pool.contains_key(&name(number)));
    actions.extend(unused.take(SPARE.saturating_sub(free)).map(Action::Create));
    actions
}

/// Creates the directories of the first volumes.
///
/// # Errors
/// If a directory cannot be made.
pub(crate) fn create_directories(layout: &Layout) -> Result<()> {
    (0..POOL).try_for_each(|number| wipe(&layout.volumes().join(name(number))))
}

/// Maintains the pool until the process is stopped. The cluster runs this as one of its processes.
pub(crate) fn keep(layout: &Layout) -> ! {
    let _ = fs::remove_file(layout.volumes_watched());
    loop {
        if let Err(error) = watch(layout) {
            eprintln!("{error}");
        }
        // The API server may be starting.
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// One line of the watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

fn watch(layout: &Layout) -> Result<()> {
    let kubectl = objects::kubectl(layout, "volumes");
    // The watch must not outlive this process.
    let mut watch = Command::new("setpriv");
    watch.args(["--pdeathsig", "KILL"]).arg(kubectl.get_program()).args(kubectl.get_args());
    watch.args(["get", "persistentvolumes", "--watch", "--output-watch-events", "--output=json"]);
    let mut child =
        watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(Error::io("start", Path::new("setpriv")))?;
    let (news, changes) = channel();
    let reader = child.stdout.take().map(|stdout| {
        std::thread::spawn(move || {
            for event in serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Event>() {
                if event.is_err() || event.is_ok_and(|event| news.send(event).is_err()) {
                    return;
                }
            }
        })
    });
    let done = follow(layout, &changes);
    let _ = fs::remove_file(layout.volumes_watched());
    let _ = child.kill();
    let _ = child.wait();
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    done
}

fn follow(layout: &Layout, changes: &Receiver<Event>) -> Result<()> {
    let (mut pool, watched) = (BTreeMap::new(), layout.volumes_watched());
    while let Ok(event) = changes.recv() {
        note(&mut pool, &event);
        if !watched.exists() {
            fs::write(&watched, "").map_err(Error::io("write", &watched))?;
        }
        let began = Instant::now();
        while began.elapsed() < SILENCE.1 {
            match changes.recv_timeout(SILENCE.0) {
                Ok(event) => note(&mut pool, &event),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        for action in decide(&pool) {
            act(layout, &action)?;
        }
    }
    Ok(())
}

fn note(pool: &mut BTreeMap<String, Volume>, event: &Event) {
    let object = &event.object;
    let Some(name) = object["metadata"]["name"].as_str() else { return };
    if object["spec"]["storageClassName"] != CLASS {
        return;
    }
    if event.kind == "DELETED" {
        pool.remove(name);
        return;
    }
    let text = |value: &Value| value.as_str().map(String::from);
    let volume = Volume {
        phase: text(&object["status"]["phase"]).unwrap_or_default(),
        claim: text(&object["spec"]["claimRef"]["uid"]),
    };
    pool.insert(name.to_owned(), volume);
}

fn act(layout: &Layout, action: &Action) -> Result<()> {
    match action {
        Action::Recycle { volume, claim } => {
            wipe(&layout.volumes().join(volume))?;
            let patch = json!([
                { "op": "test", "path": "/spec/claimRef/uid", "value": claim },
                { "op": "remove", "path": "/spec/claimRef" },
            ]);
            let mut kubectl = objects::kubectl(layout, "volumes");
            kubectl.args(["patch", "persistentvolume", volume, "--type=json", "--patch", &patch.to_string()]);
            command::output(&mut kubectl)?;
            eprintln!("{volume}: wiped, offered again");
        }
        Action::Create(number) => {
            wipe(&layout.volumes().join(name(*number)))?;
            objects::apply(layout, "volumes", &[objects::volume(layout, *number)])?;
            eprintln!("{}: made", name(*number));
        }
    }
    Ok(())
}

/// Empties a directory, or creates it, owned by root. The directory itself stays: it may still be mounted.
fn wipe(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    for entry in fs::read_dir(directory).map_err(Error::io("read", directory))? {
        let entry = entry.map_err(Error::io("read", directory))?;
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(Error::io("remove", entry.path()))?;
    }
    if crate::privilege::is_root() {
        chown(directory, Some(0), Some(0)).map_err(Error::io("take back", directory))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).map_err(Error::io("protect", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(phase: &str, claim: Option<&str>) -> Volume {
        Volume { phase: phase.into(), claim: claim.map(String::from) }
    }

    fn free(count: usize) -> BTreeMap<String, Volume> {
        (0..count).map(|number| (name(number), volume("Available", None))).collect()
    }

    #[test]
    fn a_pool_at_rest_needs_nothing() {
        assert_eq!(decide(&free(POOL)), []);
    }

    #[test]
    fn what_was_given_back_is_recycled_and_what_is_bound_stays() {
        let mut pool = free(POOL);
        pool.insert(name(3), volume("Released", Some("a")));
        pool.insert(name(4), volume("Bound", Some("b")));
        assert_eq!(decide(&pool), [Action::Recycle { volume: name(3), claim: "a".into() }]);
    }

    #[test]
    fn few_left_makes_more_in_the_gaps() {
        let mut pool = free(SPARE - 1);
        pool.insert(name(20), volume("Bound", Some("b")));
        assert_eq!(decide(&pool), [Action::Create(SPARE - 1)]);
        // A released volume counts as free.
        pool.insert(name(21), volume("Released", Some("c")));
        assert_eq!(decide(&pool), [Action::Recycle { volume: name(21), claim: "c".into() }]);
    }

    #[test]
    fn events_of_other_classes_are_not_ours() {
        let mut pool = BTreeMap::new();
        let object = |class: &str| {
            json!({
                "metadata": { "name": "x" }, "spec": { "storageClassName": class }, "status": { "phase": "Released" },
            })
        };
        note(&mut pool, &Event { kind: "ADDED".into(), object: object("other") });
        assert!(pool.is_empty());
        note(&mut pool, &Event { kind: "ADDED".into(), object: object(CLASS) });
        assert_eq!(pool["x"], volume("Released", None));
        note(&mut pool, &Event { kind: "DELETED".into(), object: object(CLASS) });
        assert!(pool.is_empty());
    }

    #[test]
    fn wiping_leaves_an_empty_directory() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("volume");
        fs::create_dir_all(directory.join("deep/er")).unwrap();
        fs::write(directory.join("deep/er/file"), "x").unwrap();
        std::os::unix::fs::symlink("/", directory.join("link")).unwrap();
        wipe(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
