//! Manifests: reading directories, validation, digests and differences.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener},
    path::Path,
};

use codex_provenance::{
    Sha256,
    files::{IGNORED, walk},
    manifest::{Difference, File, Manifest},
};
use proptest::prelude::*;

fn file(path: &str, contents: &str) -> File {
    File { path: path.to_owned(), size: contents.len() as u64, sha256: Sha256::of(contents) }
}

fn write(root: &Path, path: &str, contents: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

fn refused(files: Vec<File>) -> String {
    Manifest { schema: 1, files }.validate().unwrap_err().to_string()
}

#[test]
fn the_digests_are_pinned() {
    let manifest = Manifest::of_hashed([file("weights", "w"), file("config.json", "{}")]).unwrap();
    // Both computed with Python: hashlib over the canonical JSON, and over the concatenated digests.
    assert_eq!(manifest.digest().to_string(), "a6f157de0c1b51d9b2fff03dcb86ced7065f7d7944ee1a562480febdf19af72f");
    assert_eq!(manifest.oms_root().to_string(), "4fddeb43bb7d33f21d6e232856768d869dc41c5b4f74b573fa9097d2565d68d2");
    assert_eq!(manifest.size_bytes(), 3);
}

#[test]
fn a_directory_is_read_as_model_signing_reads_it() {
    let root = tempfile::tempdir().unwrap();
    for path in ["a/b.txt", "a-b.txt", "empty", ".git/HEAD", ".gitignore", "a/.gitignore", "model.sig"] {
        write(root.path(), path, if path == "empty" { "" } else { path });
    }
    let except = BTreeSet::from(["model.sig".to_owned()]);
    let manifest = Manifest::of_dir_except(root.path(), &except).unwrap();
    let paths: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["a/.gitignore", "a/b.txt", "a-b.txt", "empty"]);
    let held = manifest.files.iter().map(|file| (file.path.clone(), fs::read(root.path().join(&file.path)).unwrap()));
    let held: BTreeMap<_, _> = held.collect();
    assert_eq!(Manifest::of_files(&held).unwrap(), manifest);
    fs::remove_file(root.path().join("model.sig")).unwrap();
    assert_eq!(Manifest::read_dir(root.path()).unwrap(), (manifest.clone(), held));
    assert_eq!(Manifest::of_dir(root.path()).unwrap(), manifest);
}

#[test]
fn a_directory_with_anything_but_regular_files_is_refused() {
    let told = |prepare: &dyn Fn(&Path)| {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "config.json", "{}");
        prepare(root.path());
        Manifest::of_dir(root.path()).unwrap_err().to_string()
    };
    let link = |root: &Path| symlink("config.json", root.join("link")).unwrap();
    assert_eq!(told(&link), "\"link\" is a symbolic link: a model holds regular files only");
    let inner = |root: &Path| {
        fs::create_dir(root.join("inner")).unwrap();
        symlink("../config.json", root.join("inner/.gitignore")).unwrap();
    };
    assert!(told(&inner).contains("\"inner/.gitignore\" is a symbolic link"), "only names at the top are left out");
    let socket = |root: &Path| drop(UnixListener::bind(root.join("socket")).unwrap());
    assert_eq!(told(&socket), "\"socket\" is neither a regular file nor a directory");
    let latin = |root: &Path| fs::write(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    assert_eq!(told(&latin), "the file name \"caf\u{fffd}\" is not UTF-8");
    let cases = |root: &Path| write(root, "Config.json", "{}");
    assert!(told(&cases).contains("\"Config.json\" and \"config.json\" collide"));
    let control = |root: &Path| write(root, "a\nb", "");
    assert!(told(&control).contains("neither control characters"));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Manifest::of_dir(empty.path()).unwrap_err().to_string(), "it contains no files");
    let missing = Manifest::of_dir(&empty.path().join("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("nowhere cannot be read"), "{missing}");
}

/// A working tree of git has `.git` as a folder, a worktree as a file, and some tools make it a link.
#[test]
fn what_model_signing_leaves_out_may_be_a_file_a_folder_or_a_link() {
    for name in IGNORED {
        let prepares: [fn(&Path); 4] = [
            |path| fs::write(path, "gitdir: elsewhere").unwrap(),
            |path| write(path, "HEAD", "ref: refs/heads/main"),
            |path| symlink("config.json", path).unwrap(),
            |path| symlink("../outside", path).unwrap(),
        ];
        for prepare in prepares {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "config.json", "{}");
            prepare(&root.path().join(name));
            assert_eq!(Manifest::of_dir(root.path()).unwrap().files, [file("config.json", "{}")], "{name}");
        }
    }
}

#[test]
fn a_single_file_is_listed_under_its_name() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "weights", "w");
    let manifest = Manifest::of_file(&root.path().join("weights")).unwrap();
    assert_eq!(manifest.files, [file("weights", "w")]);
    assert!(Manifest::of_file(root.path()).unwrap_err().to_string().contains("neither a regular file nor a directory"));
    symlink("weights", root.path().join("link")).unwrap();
    assert!(Manifest::of_file(&root.path().join("link")).unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn a_file_that_grows_after_it_was_listed_is_refused() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "weights", "w");
    let entries = walk(root.path(), &BTreeSet::new()).unwrap();
    assert_eq!(entries[0].size, 1);
    write(root.path(), "weights", "ww");
    assert!(Manifest::read(entries).unwrap_err().to_string().contains("more than the 1 bytes expected"));
}

#[test]
fn a_manifest_from_elsewhere_is_checked() {
    for path in ["/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", "", "a\\b", "a\u{7}", ".git/HEAD", ".gitignore"]
    {
        assert!(refused(vec![file(path, "x")]).contains("is not a valid path of a model file"), "{path:?}");
    }
    assert!(refused(vec![file(&"a".repeat(1025), "x")]).contains("longer than 1024"));
    assert!(refused(vec![file("a", "x"), file("a", "y")]).contains("collide"));
    for (first, second) in [("A", "a"), ("ΑΣ", "ασ"), ("ας", "ασ"), ("s", "ſ"), ("strasse", "straße")] {
        assert!(refused(vec![file(first, "x"), file(second, "x")]).contains("collide"), "{first} {second}");
    }
    assert!(refused(vec![file("a", "x"), file("a/b", "x")]).contains("one is a directory of the other"));
    assert!(refused(vec![file("A/b", "x"), file("a", "x")]).contains("one is a directory of the other"));
    assert_eq!(
        refused(vec![file("a-b", "x"), file("a/b", "x")]),
        "\"a/b\" follows \"a-b\": a manifest lists each file once, in the order of their path components"
    );
    assert_eq!(refused(vec![]), "it contains no files");
    assert!(refused(vec![File { size: u64::MAX, ..file("a", "x") }]).contains("more than 2^53 bytes"));
    assert!(refused(vec![File { size: 0, ..file("a", "x") }]).contains("contradict each other"));
    assert!(refused(vec![File { size: 1, ..file("a", "") }]).contains("contradict each other"));
    let future = Manifest { schema: 2, files: vec![file("a", "x")] };
    assert_eq!(future.validate().unwrap_err().to_string(), "its schema is 2; only 1 is supported");
    assert!(serde_json::from_str::<Manifest>(r#"{"schema":1,"files":[],"more":1}"#).is_err());
}

#[test]
fn differences_name_the_files() {
    let signed = Manifest::of_hashed([file("a", "1"), file("b", "2"), file("c", "3")]).unwrap();
    let found = Manifest::of_hashed([file("a", "1"), file("b", "x"), file("d", "4")]).unwrap();
    let told: Vec<String> = signed.diff(&found).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["b was changed: it hashes to 2d711642b726, not d4735e3a265e", "c is missing", "d was added"]);
}

/// Small directories: paths of one or two parts over few letters, contents of a few bytes.
fn directory() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let contents = proptest::collection::vec(any::<u8>(), 0..20);
    proptest::collection::btree_map("[a-c][a-c-]{0,2}(/[a-c]{1,2})?", contents, 1..8)
        .prop_filter("no collisions", |files| Manifest::of_files(files).is_ok())
}

proptest! {
    #[test]
    fn any_changed_byte_is_found(files in directory(), which: prop::sample::Index, at: prop::sample::Index, flip in 1..=255_u8) {
        let before = Manifest::of_files(&files).unwrap();
        let mut files = files;
        let (path, contents) = files.iter_mut().nth(which.index(before.files.len())).unwrap();
        if contents.is_empty() {
            contents.push(flip);
        } else {
            let at = at.index(contents.len());
            contents[at] ^= flip;
        }
        let path = path.clone();
        let after = Manifest::of_files(&files).unwrap();
        prop_assert_ne!(before.digest(), after.digest());
        prop_assert_ne!(before.oms_root(), after.oms_root());
        let differences = before.diff(&after);
        let found = matches!(&differences[..], [Difference::Changed { path: changed, .. }] if *changed == path);
        prop_assert!(found, "{:?}", differences);
    }

    #[test]
    fn any_changed_name_is_found(files in directory(), which: prop::sample::Index) {
        let before = Manifest::of_files(&files).unwrap();
        let mut files = files;
        let path = files.keys().nth(which.index(before.files.len())).unwrap().clone();
        let contents = files.remove(&path).unwrap();
        files.insert(format!("{path}z"), contents);
        let after = Manifest::of_files(&files).unwrap();
        prop_assert_ne!(before.digest(), after.digest());
        prop_assert_eq!(before.diff(&after).len(), 2);
    }

    #[test]
    fn any_changed_size_is_found(files in directory(), which: prop::sample::Index, more in 1..1000_u64) {
        let before = Manifest::of_files(&files).unwrap();
        let mut after = before.clone();
        after.files[which.index(before.files.len())].size += more;
        prop_assert_ne!(before.digest(), after.digest());
        let found = matches!(before.diff(&after)[..], [Difference::Resized { .. }]);
        prop_assert!(found);
    }

    #[test]
    fn a_manifest_survives_the_wire_and_does_not_depend_on_the_order_of_hashing(files in directory(), seed: u64) {
        let manifest = Manifest::of_files(&files).unwrap();
        let wire = serde_json::to_vec(&manifest).unwrap();
        let back: Manifest = serde_json::from_slice(&wire).unwrap();
        prop_assert_eq!(&back, &manifest);
        prop_assert!(back.validate().is_ok());
        let mut shuffled = manifest.files.clone();
        let turn = seed as usize % shuffled.len();
        shuffled.rotate_left(turn);
        prop_assert_eq!(Manifest::of_hashed(shuffled).unwrap().digest(), manifest.digest());
        prop_assert!(manifest.diff(&back).is_empty());
    }
}
