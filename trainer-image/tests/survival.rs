//! Kills, signals, failing volumes and memory limits with real processes. Each test runs the `codex` binary.
//!
//! Full, read-only and vanished volumes are real mounts in a mount namespace of their own, and memory limits are real
//! control groups. Both need root: without it those tests print `SKIPPED`, and fail where `CODEX_TESTS_FORBID_SKIPS` is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Overrides of a run that takes some seconds.
const SLOW: [&str; 7] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "model.num_hidden_layers=2",
    "training.max_steps=150",
    "training.warmup_steps=10",
    "training.batch_size=32",
];

struct Scene {
    directory: TempDir,
    data: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("mine.jsonl");
        let made = codex(&["prepare-data", "--task", "arithmetic", "--count", "2000", "--out", path(&data)]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        Self { directory, data }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the command line that trains on the data of the scene.
    fn train(&self, output: &Path, overrides: &[&str]) -> Vec<String> {
        let mut line: Vec<String> =
            ["train", "--template", "cot-starter", "--output", path(output), "--data"].map(str::to_owned).to_vec();
        line.push(format!("mine={}", path(&self.data)));
        for change in SLOW.iter().chain(overrides) {
            line.extend(["--set".to_owned(), (*change).to_owned()]);
        }
        line
    }

    fn digest(&self, overrides: &[&str]) -> String {
        let ended = codex(&self.train(&self.at("whole"), overrides));
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        digest(&ended)
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn command(line: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex"));
    command.args(line.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

fn codex(line: &[impl AsRef<str>]) -> Output {
    command(line).output().unwrap()
}

fn digest(ended: &Output) -> String {
    let line: Value = serde_json::from_slice(&ended.stdout).unwrap();
    line["digest"].as_str().unwrap().to_owned()
}

/// Starts a run with its log in a file.
fn start(line: &[String], log: &Path) -> Child {
    command(line).stdout(Stdio::null()).stderr(fs::File::create(log).unwrap()).spawn().unwrap()
}

/// Waits until `there` returns a value. Fails if the process ends before.
fn until<T>(child: &mut Child, log: &Path, what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = there() {
            return found;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the process ended with {status} before {what}: {}", fs::read_to_string(log).unwrap());
        }
        sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Returns the step of the newest attempt.
fn step(output: &Path) -> Option<u64> {
    let mut notes: Vec<_> = fs::read_dir(output.join("writers")).ok()?.map(|entry| entry.unwrap().path()).collect();
    notes.sort();
    fs::read_to_string(notes.last()?).ok()?.split_whitespace().nth(2)?.parse().ok()
}

fn code(status: ExitStatus) -> i32 {
    status.code().expect("an exit code")
}

#[test]
fn a_resume_is_proven_on_user_data() {
    let scene = Scene::new();
    let output = scene.at("run");
    let mut line = scene.train(&output, &["training.gradient_accumulation=2"]);
    line.extend(["--prove-resume", "--prove-steps", "30"].map(str::to_owned));
    let proved = codex(&line);
    assert!(proved.status.success(), "{}", text(&proved.stderr));
    let said: Value = serde_json::from_slice(&proved.stdout).unwrap();
    assert_eq!((&said["proved"], &said["steps"]), (&Value::Bool(true), &Value::from(30)));
    let kills: Vec<u64> = said["killedInStep"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap()).collect();
    // All kills are after the first step and before the end of the last.
    assert!((1..=3).contains(&kills.len()) && kills.iter().all(|step| (2..=30).contains(step)), "{said}");
    assert!(!output.join("prove-resume").exists());
}

#[test]
fn threads_are_limited_to_the_processors() {
    let scene = Scene::new();
    let output = scene.at("run");
    let line = scene.train(&output, &["training.max_steps=2", "training.warmup_steps=1"]);
    let ended = command(&line).env("RAYON_NUM_THREADS", "100000").output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("RAYON_NUM_THREADS is 100000, but this process may use only "));
    let environment: Value =
        serde_json::from_slice(&fs::read(output.join("artifacts/environment.json")).unwrap()).unwrap();
    let threads = environment["cpu"]["threads"].as_u64().unwrap();
    assert!((1..1000).contains(&threads), "{threads}");
}

#[test]
fn sigterm_is_honoured_from_the_start() {
    let scene = Scene::new();
    let overrides = ["training.checkpoint_every=1000"];
    let expected = scene.digest(&overrides);
    let log = scene.at("log");
    // As soon as it has claimed the directory, in the first step, and later.
    for (name, wanted) in [("early", None), ("first", Some(1)), ("later", Some(60))] {
        let output = scene.at(name);
        let line = scene.train(&output, &overrides);
        let mut child = start(&line, &log);
        until(&mut child, &log, "the step", || match wanted {
            None => output.join("writers").is_dir().then_some(()),
            Some(wanted) => step(&output).filter(|step| *step >= wanted).map(drop),
        });
        signal(&child, Signal::TERM);
        assert_eq!(code(child.wait().unwrap()), 143, "{}", fs::read_to_string(&log).unwrap());
        if wanted == Some(60) {
            let steps: Vec<_> =
                fs::read_dir(output.join("checkpoints")).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert!(steps.iter().any(|name| name.to_str().unwrap().starts_with("step-000000")), "{steps:?}");
        }
        let ended = codex(&line);
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        assert_eq!(digest(&ended), expected, "{name}");
    }
}

#[test]
fn sigterm_is_honoured_during_an_evaluation() {
    let scene = Scene::new();
    let held_out = scene.at("held-out.jsonl");
    let count = ["--count", "2000", "--split", "held-out", "--out", path(&held_out)];
    let made = codex(&[&["prepare-data", "--task", "arithmetic"], &count[..]].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    // So many records that one evaluation takes longer than many steps.
    fs::write(&held_out, fs::read(&held_out).unwrap().repeat(15)).unwrap();
    let overrides = ["training.max_steps=4", "training.eval_every=2", "training.eval_records=30000"];
    let train = |output: &Path| {
        let mut line = scene.train(output, &[&["training.warmup_steps=1"], &overrides[..]].concat());
        line.extend(["--data".to_owned(), format!("validation={}", path(&held_out))]);
        line
    };
    let whole = scene.at("whole");
    let uninterrupted = codex(&train(&whole));
    assert!(uninterrupted.status.success(), "{}", text(&uninterrupted.stderr));

    let (output, log) = (scene.at("run"), scene.at("log"));
    let line = train(&output);
    let mut child = start(&line, &log);
    // The note of the third step is written before the evaluation of the second begins.
    until(&mut child, &log, "the evaluation", || step(&output).filter(|step| *step >= 3).map(drop));
    let asked = Instant::now();
    signal(&child, Signal::TERM);
    assert_eq!(code(child.wait().unwrap()), 143, "{}", fs::read_to_string(&log).unwrap());
    let waited = asked.elapsed();
    let state = |output: &Path, step: u32| {
        let path = output.join(format!("checkpoints/step-{step:08}/state.json"));
        serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()
    };
    let interrupted = state(&output, 2);
    assert!(interrupted["tensors"]["evaluation/pending"].is_string(), "after {waited:?}: {interrupted}");

    let ended = codex(&line);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(digest(&ended), digest(&uninterrupted));
    assert_eq!(state(&output, 4), state(&whole, 4), "every measurement and digest of the last state");
    for file in ["ledger.ndjson", "states.ndjson"] {
        let read = |output: &Path| fs::read(output.join("artifacts").join(file)).unwrap();
        assert!(read(&output) == read(&whole), "{file}");
    }
}

#[test]
fn a_comparison_is_printed_and_a_foreign_directory_refused() {
    let scene = Scene::new();
    let output = scene.at("run");
    let overrides = ["training.stop_after=2"];
    assert!(codex(&scene.train(&output, &overrides)).status.success());
    let plan = |overrides: &[&str]| {
        let mut line = scene.train(&output, overrides);
        line.push("--plan".to_owned());
        let said = codex(&line);
        (code(said.status), text(&said.stdout))
    };
    let (exit, said) = plan(&overrides);
    assert!(exit == 0 && said.starts_with("training resumes from the checkpoint of step 2: same bits"), "{said}");
    let (exit, said) = plan(&["training.stop_after=2", "model.num_hidden_layers=1"]);
    assert!(
        exit == 2
            && said.starts_with("training cannot resume from the checkpoint of step 2: refused")
            && said.contains("refused            model.num_hidden_layers: 2 → 1"),
        "{said}"
    );
}

/// Runs a training with its output on a volume in a mount namespace of its own. `prepare` mounts `$V`, `break_it` makes it fail
/// after the first checkpoint, and `mend` repairs it after the run has logged the failure. Returns the log and the exit code.
fn on_a_volume(scene: &Scene, prepare: &str, break_it: &str, mend: &str) -> (String, i32) {
    let volume = scene.at("volume");
    fs::create_dir(&volume).unwrap();
    let log = scene.at("log");
    let overrides = ["training.checkpoint_every=10", "training.keep_last=1"];
    let line = scene.train(&volume.join("run"), &overrides);
    let quoted: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "set -eu; V={volume}; L={log}\n{prepare}\n\
         '{codex}' {line} 2>$L & P=$!\n\
         until [ -d $V/run/checkpoints/step-00000010 ] || ! kill -0 $P 2>/dev/null; do sleep 0.01; done\n{break_it}\n\
         until grep -q 'cannot write the ' $L || ! kill -0 $P 2>/dev/null; do sleep 0.01; done\n{mend}\n\
         code=0; wait $P || code=$?\n\
         '{codex}' metrics validate $V/run >&2 || code=98\n\
         for file in $V/run/checkpoints/*; do echo $file; done; exit $code",
        volume = path(&volume),
        log = path(&log),
        codex = env!("CARGO_BIN_EXE_codex"),
        line = quoted.join(" "),
    );
    let ended = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    assert!(!text(&ended.stdout).contains(".partial"), "no partial checkpoint is left: {}", text(&ended.stdout));
    let log = fs::read_to_string(&log).unwrap() + &text(&ended.stderr);
    assert!(ended.status.code() != Some(0) || text(&ended.stdout).contains(&scene.digest(&overrides)), "{log}");
    (log, code(ended.status))
}

/// Returns whether the test can run: with root. Without it the skip is printed past the test harness's capture, and it is a
/// failure where `CODEX_TESTS_FORBID_SKIPS` is set.
fn has_root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        let line = format!("\nSKIPPED: {test}: it needs root to mount volumes and to set memory limits\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        let forbidden = std::env::var_os("CODEX_TESTS_FORBID_SKIPS").is_some_and(|value| !value.is_empty());
        assert!(!forbidden, "CODEX_TESTS_FORBID_SKIPS is set: {line}");
    }
    root
}

#[test]
fn a_full_volume_does_not_end_training() {
    if !has_root("a_full_volume_does_not_end_training") {
        return;
    }
    let fill = "head -c 100000000 /dev/zero >$V/filler 2>/dev/null || true";
    let (log, code) = on_a_volume(&Scene::new(), "mount -t tmpfs -o size=8m tmpfs $V", fill, "rm $V/filler");
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("cannot write the checkpoint of step ") && log.contains("free space on the volume"), "{log}");
    assert!(log.contains("checkpoints can be written again"), "{log}");
    let said = |what: &str| log.matches(what).count();
    let (refused, again) = (said("metrics cannot be written, from"), said("metrics can be written again, from"));
    assert!(refused == again || refused == again + 1, "one message per outage, not per row: {log}");
}

#[test]
fn a_read_only_volume_does_not_end_training() {
    if !has_root("a_read_only_volume_does_not_end_training") {
        return;
    }
    // A mount with open files cannot be remounted read-only, as the kernel does after an error, so a read-only mount is put over
    // the checkpoints.
    let over = "mount -t tmpfs -o ro tmpfs $V/run/checkpoints";
    let (log, code) = on_a_volume(&Scene::new(), "mount -t tmpfs tmpfs $V", over, "umount $V/run/checkpoints");
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("the volume is read-only") && log.contains("checkpoints can be written again"), "{log}");
}

#[test]
fn nothing_is_written_beneath_an_unmounted_volume() {
    if !has_root("nothing_is_written_beneath_an_unmounted_volume") {
        return;
    }
    let scene = Scene::new();
    let (log, code) = on_a_volume(
        &scene,
        "mkdir $V.real; mount -t tmpfs tmpfs $V.real; mount --bind $V.real $V",
        "umount -l $V",
        "[ -z \"$(ls $V)\" ] || exit 99; mount --bind $V.real $V",
    );
    assert_eq!(code, 0, "{log}");
    assert!(
        log.contains("is gone: the volume was unmounted or replaced")
            && log.contains("checkpoints can be written again"),
        "{log}"
    );
}

/// A control group with a memory limit, removed on drop.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Self {
        let name = format!("codex-survival-{}", std::process::id());
        let (mount, file) = if Path::new("/sys/fs/cgroup/memory").is_dir() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let group = Path::new(mount).join(name);
        fs::create_dir(&group).unwrap();
        let made = Self(group);
        fs::write(made.0.join(file), limit.to_string()).unwrap();
        made
    }

    fn run(&self, line: &[String]) -> Output {
        let script = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", path(&self.0));
        Command::new("sh").args(["-c", &script, "sh", env!("CARGO_BIN_EXE_codex")]).args(line).output().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[test]
fn a_proposal_for_less_memory_fits() {
    if !has_root("a_proposal_for_less_memory_fits") {
        return;
    }
    let scene = Scene::new();
    let group = Group::new(200 << 20);
    let shape =
        ["model.hidden_size=128", "model.intermediate_size=384", "training.stop_after=2", "training.batch_size=512"];
    let refused = group.run(&scene.train(&scene.at("large"), &shape));
    let said = text(&refused.stderr);
    assert_eq!(code(refused.status), 2, "{said}");
    assert!(said.contains("the control group's memory.") && said.contains("200 MiB"), "{said}");
    let mut line = scene.train(&scene.at("planned"), &shape);
    line.push("--plan".to_owned());
    let planned = group.run(&line);
    let told = text(&planned.stderr);
    assert!(code(planned.status) == 2 && told.contains("200 MiB"), "--plan refuses what a training refuses: {told}");
    let proposal: Vec<&str> = said
        .split(|c: char| c.is_whitespace() || c == '"')
        .filter(|word| word.starts_with("training.batch_size=") || word.starts_with("training.gradient_accumulation="))
        .collect();
    assert_eq!(proposal.len(), 2, "{said}");
    let fits = group.run(&scene.train(&scene.at("fits"), &[&shape[..3], &proposal[..]].concat()));
    assert!(fits.status.success(), "the proposal trains within the same limit: {}", text(&fits.stderr));
}
