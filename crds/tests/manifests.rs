//! `manifests/crd/` is up to date with the types.

use std::{env, fs, path::PathBuf};

use codex_crds::manifests;

const REGENERATE: &str = "UPDATE=1 cargo test --release --locked --workspace --test manifests";

#[test]
fn files_are_up_to_date() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/crd");
    let files = manifests::files().unwrap();
    if env::var_os("UPDATE").is_some() {
        manifests::write(&directory).unwrap();
    }
    for (name, expected) in &files {
        let found = fs::read_to_string(directory.join(name)).unwrap_or_default();
        assert!(
            found == *expected,
            "manifests/crd/{name} differs from the types in crds/: regenerate it with\n    {REGENERATE}\n"
        );
    }
    for (name, text) in &files {
        // The words that YAML 1.1 reads as truth values are in quotes, and the others are as they were.
        let bare = |line: &str| ["- n", "n:", "- y", "y:", "- no", "no:", "- on", "on:"].contains(&line.trim());
        assert!(!text.lines().any(bare), "{name}");
        if let Some((_, crd)) = manifests::all().iter().find(|(file, _)| file == name) {
            let read: serde_json::Value = serde_yaml::from_str(text).unwrap();
            assert_eq!(read, serde_json::to_value(crd).unwrap(), "{name}");
        }
    }
    let mut there: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    let mut expected: Vec<_> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(there, expected, "manifests/crd/ must hold exactly the generated files");
}
