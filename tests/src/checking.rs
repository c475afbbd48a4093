//! The commands of docs/checking.md, run as they stand there: they accept what the controller signs, and refuse everything else.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use codex_signing::key::{PrivateKey, Signer as _};

use crate::{
    install::repository,
    process::output,
    statements::{RING, statements},
};

/// The programs that the page needs, beside those of a shell.
const PROGRAMS: [&str; 3] = ["jq", "openssl", "python3"];

/// Returns the commands of the page: its blocks in sh, in their order.
fn commands() -> String {
    let page = fs::read_to_string(repository().join("docs/checking.md")).unwrap();
    page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Whether the programs are there.
fn can_check() -> bool {
    let missing = PROGRAMS.into_iter().find(|program| Command::new(program).arg("--help").output().is_err());
    if let Some(program) = missing {
        let told = format!("{program} cannot be started: install Debian's packages jq, openssl and python3");
        let forbidden = std::env::var_os("CODEX_TESTS_FORBID_SKIPS").is_some_and(|value| !value.is_empty());
        assert!(!forbidden, "{told}");
        println!("SKIPPED: {told}");
    }
    missing.is_none()
}

/// What somebody who checks a model has.
struct Given {
    folder: tempfile::TempDir,
    key: PrivateKey,
    fingerprint: String,
    ring: &'static str,
}

impl Given {
    fn new() -> Self {
        let (folder, key) = (tempfile::tempdir().unwrap(), PrivateKey::generate().unwrap());
        let fingerprint = key.public().fingerprint().to_string();
        let given = Self { folder, key, fingerprint, ring: RING };
        fs::create_dir(given.path("model")).unwrap();
        for (name, contents) in [("config.json", "{}"), ("größe.txt", ""), ("model.safetensors", "weights")] {
            fs::write(given.path("model").join(name), contents).unwrap();
        }
        fs::write(given.path("key.pem"), given.key.public().to_pem()).unwrap();
        given.sign(&given.path("model"), &given.key, |_, payload| payload);
        given
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Signs every statement about a model with a key, as `change` makes it of its name and text.
    fn sign(&self, model: &Path, key: &PrivateKey, change: impl Fn(&str, String) -> String) {
        for statement in statements(model).unwrap() {
            let payload = change(statement.name, String::from_utf8(statement.payload).unwrap());
            let bundle = key.sign(payload.as_bytes()).unwrap();
            fs::write(self.path(&format!("{}.json", statement.name)), bundle).unwrap();
        }
    }

    /// Signs every statement with the right key, but has `old` in one of them replaced by `new`.
    fn edit(&self, name: &str, old: &str, new: &str) {
        self.sign(&self.path("model"), &self.key, |it, payload| {
            assert!(it != name || payload.contains(old), "{payload}");
            if it == name { payload.replace(old, new) } else { payload }
        });
    }

    fn check(&self) -> crate::Result<String> {
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(commands()).current_dir(self.folder.path());
        output(bash.env("fingerprint", &self.fingerprint).env("ring", self.ring))
    }
}

/// What somebody changes.
type Change = fn(&mut Given);

#[test]
fn commands_of_the_page_check_a_model_and_refuse_others() {
    if !can_check() {
        return;
    }
    let told = Given::new().check().unwrap();
    assert!(told.contains("lite exact_match") && told.contains("passes") && told.ends_with("checked\n"), "{told}");
    let cases: [(&str, Change); 14] = [
        ("a changed file", |it| fs::write(it.path("model/config.json"), "{ }").unwrap()),
        ("another file", |it| fs::write(it.path("model/more.json"), "{}").unwrap()),
        ("a link", |it| symlink("config.json", it.path("model/link.json")).unwrap()),
        ("a missing file", |it| fs::remove_file(it.path("model/config.json")).unwrap()),
        ("a renamed file", |it| fs::rename(it.path("model/config.json"), it.path("model/Config.json")).unwrap()),
        ("another fingerprint", |it| {
            it.fingerprint = PrivateKey::generate().unwrap().public().fingerprint().to_string();
        }),
        ("another key signed", |it| it.sign(&it.path("model"), &PrivateKey::generate().unwrap(), |_, same| same)),
        ("another ring", |it| it.ring = "main"),
        ("bundles of another model", |it| {
            fs::create_dir(it.path("other")).unwrap();
            fs::write(it.path("other/config.json"), "{}").unwrap();
            it.sign(&it.path("other"), &it.key, |_, same| same);
        }),
        ("swapped bundles", |it| {
            fs::copy(it.path("oms.json"), it.path("promotion.json")).unwrap();
        }),
        ("a promotion of another signature", |it| it.edit("oms", "\"cot-starter\"", "\"another\"")),
        ("measurements that prove nothing", |it| it.edit("promotion", "\"successes\":495", "\"successes\":480")),
        ("no gates", |it| it.edit("promotion", "\"evaluations\":[{", "\"evaluations\":[],\"before\":[{")),
        ("another test result", |it| it.edit("test-result", "\"PASSED\"", "\"WARNED\"")),
    ];
    for (what, change) in cases {
        let mut given = Given::new();
        change(&mut given);
        if let Ok(told) = given.check() {
            panic!("{what} was accepted: {told}");
        }
    }
}
