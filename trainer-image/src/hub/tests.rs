//! Downloads from a hub on loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use clap::Parser;
use codex_provenance::{Sha256, manifest::Manifest};

use super::{
    client::Sibling,
    server::{Behaviour, COMMIT, NAME, Server, git_hash},
    *,
};
use crate::{
    error::{CommandError, chain},
    model::ModelFiles,
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    fetch: Fetch,
}

fn fetch(server: &Server, token: Option<&str>, arguments: &[&str]) -> Result<serde_json::Value, HubError> {
    fetch_until(server, token, arguments, &|| false)
}

fn fetch_until(
    server: &Server,
    token: Option<&str>,
    arguments: &[&str],
    stop: Stop,
) -> Result<serde_json::Value, HubError> {
    let fetch = Arguments::try_parse_from([&["fetch"], arguments].concat()).unwrap().fetch;
    let line = fetch.fetch(&hub(server, token), stop)?;
    Ok(serde_json::from_str(&line).unwrap())
}

fn hub(server: &Server, token: Option<&str>) -> Hub {
    let mut hub = Hub::new(&server.endpoint, token, None).unwrap();
    hub.pause = Duration::from_millis(1);
    hub
}

/// Files of a repository: a model in two shards, and what a download leaves out.
fn files() -> BTreeMap<String, Vec<u8>> {
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let texts = [
        ("config.json", "{\"model_type\": \"llama\"}"),
        ("tokenizer.json", "{}"),
        ("chat_template.jinja", "{{ messages }}"),
        ("model.safetensors.index.json", &index.to_string()),
        ("README.md", "words"),
        ("pytorch_model.bin", "pickle"),
        ("modeling_small.py", "code"),
        ("consolidated.safetensors", "the same weights in another form"),
        ("onnx/model.safetensors", "elsewhere"),
    ];
    let mut files: BTreeMap<String, Vec<u8>> =
        texts.into_iter().map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).collect();
    for (shard, size) in [(1, 3_000_000_u32), (2, 1_000)] {
        let bytes = (0..size).map(|at| (at * 7 + shard) as u8).collect();
        files.insert(format!("model-{shard}.safetensors"), bytes);
    }
    files
}

const TAKEN: [&str; 6] = [
    "chat_template.jinja",
    "config.json",
    "model-1.safetensors",
    "model-2.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
];

fn behaviour() -> Behaviour {
    let large = ["model-1.safetensors", "model-2.safetensors"].map(str::to_owned);
    Behaviour { files: files(), large: BTreeSet::from(large), ..Behaviour::default() }
}

/// A place for a download, and its path as a text.
fn place() -> (tempfile::TempDir, String) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model").to_str().unwrap().to_owned();
    (place, path)
}

fn check(path: &str) {
    let names: Vec<String> =
        Manifest::of_dir(Path::new(path)).unwrap().files.into_iter().map(|file| file.path).collect();
    assert_eq!(names, TAKEN);
    let files = files();
    assert!(TAKEN.iter().all(|name| fs::read(Path::new(path).join(name)).unwrap() == files[*name]));
    assert!(!PathBuf::from(format!("{path}.partial")).exists());
}

#[test]
fn a_model_is_downloaded_and_its_digest_is_that_of_verify() {
    let server = Server::start(behaviour());
    let (_place, path) = place();
    let told = fetch(&server, None, &[NAME, &path]).unwrap();
    check(&path);
    let digest = Manifest::of_dir(Path::new(&path)).unwrap().digest().to_string();
    assert_eq!((&told["commit"], &told["digest"]), (&COMMIT.into(), &digest.as_str().into()));
    assert_eq!(told["repository"], NAME);
    let error = fetch(&server, None, &[NAME, &path]).unwrap_err();
    assert!(error.to_string().ends_with("exists: name a directory that does not exist yet"), "{error}");
}

#[test]
fn every_kind_of_revision_is_resolved_and_only_commits_are_downloaded_from() {
    for revision in ["main", "refs/pr/1", COMMIT] {
        let server = Server::start(behaviour());
        let (_place, path) = place();
        fetch(&server, None, &[&format!("{NAME}@{revision}"), &path]).unwrap();
        check(&path);
        let resolved = format!("/resolve/{COMMIT}/");
        assert!(server.seen().iter().skip(1).all(|seen| seen.storage || seen.path.contains(&resolved)));
    }
}

#[test]
fn another_digest_is_an_error_and_the_required_one_is_not() {
    let server = Server::start(behaviour());
    let (_place, path) = place();
    let other = Sha256::of("other").to_string();
    let error = fetch(&server, None, &[NAME, &path, "--digest", &other]).unwrap_err();
    assert!(error.is_final() && error.to_string().contains(&other), "{error}");
    let found = Manifest::of_dir(Path::new(&path)).unwrap().digest().to_string();
    fetch(&server, None, &[NAME, &format!("{path}-2"), "--digest", &found]).unwrap();
}

#[test]
fn the_token_is_sent_to_the_hub_alone_and_never_shown() {
    let server = Server::start(Behaviour { token: Some("hf_s3cret".to_owned()), ..behaviour() });
    let (_place, path) = place();
    let without = fetch(&server, None, &[NAME, &path]).unwrap_err();
    assert!(without.is_final());
    let told = chain(&without);
    assert!(told.contains("401") && told.contains("provide a token in HF_TOKEN") && !told.contains("secret"), "{told}");
    let wrong = chain(&fetch(&server, Some("hf_wr0ng"), &[NAME, &path]).unwrap_err());
    assert!(wrong.contains("the token is not valid") && !wrong.contains("wr0ng"), "{wrong}");
    fetch(&server, Some("hf_s3cret"), &[NAME, &path]).unwrap();
    check(&path);
    let (storage, hub): (Vec<_>, Vec<_>) = server.seen().into_iter().partition(|seen| seen.storage);
    assert!(storage.len() == 2 && storage.iter().all(|seen| seen.authorization.is_none()), "{storage:?}");
    assert!(hub.iter().rev().take(4).all(|seen| seen.authorization.as_deref() == Some("Bearer hf_s3cret")));
}

#[test]
fn a_cut_connection_is_resumed_where_it_was_cut() {
    for file in ["model-1.safetensors", "tokenizer.json"] {
        let server = Server::start(Behaviour { cut: Some((file.to_owned(), 1, 3)), ..behaviour() });
        let (_place, path) = place();
        fetch(&server, None, &[NAME, &path]).unwrap();
        check(&path);
        let ranges: Vec<_> = server.seen().into_iter().filter_map(|seen| seen.range).collect();
        assert!(ranges.contains(&"bytes=1-".to_owned()), "{ranges:?}");
    }
}

#[test]
fn a_connection_that_is_cut_every_time_without_progress_is_an_error_that_may_pass() {
    let server = Server::start(Behaviour { cut: Some(("tokenizer.json".to_owned(), 0, 100)), ..behaviour() });
    let (_place, path) = place();
    let error = fetch(&server, None, &[NAME, &path]).unwrap_err();
    let told = chain(&error);
    assert!(!error.is_final() && told.contains(&format!("/resolve/{COMMIT}/tokenizer.json")), "{told}");
    assert_eq!(CommandError::from(error).exit, 1);
    // The query of an address may be a signature.
    server.set(|it| it.cut = Some(("model-1.safetensors".to_owned(), 0, 100)));
    let told = chain(&fetch(&server, None, &[NAME, &path]).unwrap_err());
    assert!(told.contains("/storage/model-1.safetensors") && !told.contains("s3cret"), "{told}");
}

#[test]
fn a_killed_download_goes_on_with_the_missing_bytes() {
    let server = Server::start(behaviour());
    let (_place, path) = place();
    // The stop comes in the middle of the large file: a read has at most 1 MiB.
    let asked = AtomicUsize::new(0);
    let stop = || {
        let there = fs::metadata(format!("{path}.partial/model-1.safetensors.partial")).map_or(0, |it| it.len());
        asked.fetch_add(1, Ordering::Relaxed);
        there > 0
    };
    let ended = fetch_until(&server, None, &[NAME, &path], &stop);
    assert!(matches!(ended, Err(HubError::Interrupted)) && asked.into_inner() > 1);
    let partial = PathBuf::from(format!("{path}.partial/model-1.safetensors.partial"));
    let there = fs::metadata(&partial).unwrap().len();
    assert!(there > 0 && there < 3_000_000 && !Path::new(&path).exists());
    server.set(|_| {});
    fetch(&server, None, &[NAME, &path]).unwrap();
    check(&path);
    let seen = server.seen();
    let ranges: Vec<_> = seen.iter().filter_map(|seen| seen.range.clone()).collect();
    assert_eq!(ranges, [format!("bytes={there}-"), format!("bytes={there}-")], "to the hub and to the storage");
    assert!(!seen.iter().any(|seen| seen.path.ends_with("/config.json")), "it was complete");
}

#[test]
fn a_server_without_ranges_sends_the_file_again() {
    let server =
        Server::start(Behaviour { no_ranges: true, cut: Some(("config.json".to_owned(), 3, 1)), ..behaviour() });
    let (_place, path) = place();
    fetch(&server, None, &[NAME, &path]).unwrap();
    check(&path);
}

#[test]
fn leftovers_of_another_commit_are_replaced() {
    let server = Server::start(behaviour());
    let (_place, path) = place();
    let partial = PathBuf::from(format!("{path}.partial"));
    fs::create_dir(&partial).unwrap();
    // A file with other bytes of the same size, one that is too long, a complete part, and one of no use.
    let mut other = files()["model-2.safetensors"].clone();
    other[0] ^= 1;
    fs::write(partial.join("model-2.safetensors"), &other).unwrap();
    fs::write(partial.join("config.json.partial"), vec![1; 1000]).unwrap();
    fs::write(partial.join("tokenizer.json.partial"), &files()["tokenizer.json"]).unwrap();
    fs::write(partial.join("model-3.safetensors"), "x").unwrap();
    fetch(&server, None, &[NAME, &path]).unwrap();
    check(&path);
}

#[test]
fn wrong_bytes_are_discarded_and_asked_for_again() {
    for file in ["model-1.safetensors", "config.json"] {
        let server = Server::start(Behaviour { corrupt: Some((file.to_owned(), 2)), ..behaviour() });
        let (_place, path) = place();
        fetch(&server, None, &[NAME, &path]).unwrap();
        check(&path);
        server.set(|it| it.corrupt = Some((file.to_owned(), 100)));
        let path = format!("{path}-again");
        let error = fetch(&server, None, &[NAME, &path]).unwrap_err();
        let right =
            if file == "config.json" { git_hash(&files()[file]) } else { Sha256::of(&files()[file]).to_string() };
        assert!(error.to_string().contains(&right) && error.to_string().starts_with(file), "{error}");
        assert!(!Path::new(&path).exists() && !PathBuf::from(format!("{path}.partial/{file}")).exists());
    }
}

#[test]
fn without_hashes_in_the_list_those_of_the_answers_count() {
    let server = Server::start(Behaviour { bare: true, ..behaviour() });
    let (_place, path) = place();
    fetch(&server, None, &[NAME, &path]).unwrap();
    check(&path);
    for file in ["model-1.safetensors", "config.json"] {
        server.set(|it| it.corrupt = Some((file.to_owned(), 100)));
        let error = fetch(&server, None, &[NAME, &format!("{path}-{file}")]).unwrap_err();
        assert!(matches!(error, HubError::Hash { .. }), "{error}");
    }
}

#[test]
fn refusals_are_told_apart() {
    let refused = |status: u16, code: &'static str, token: Option<&str>| {
        let server = Server::start(Behaviour { refusals: Some((status, code, 100)), ..behaviour() });
        let (_place, path) = place();
        let error = fetch(&server, token, &[&format!("{NAME}@v1"), &path]).unwrap_err();
        let transient = error.is_transient();
        assert_eq!(server.seen().len() > 1, transient, "{error}");
        (error.to_string(), CommandError::from(error).exit)
    };
    for (status, code, token, told, exit) in [
        (401, "RepoNotFound", None, "does not exist, or is private or gated", 2),
        (401, "", Some("hf_x"), "the token is not valid", 2),
        (401, "GatedRepo", Some("hf_x"), "its terms must be accepted first", 2),
        (403, "GatedRepo", Some("hf_x"), "its terms must be accepted first", 2),
        (403, "", Some("hf_x"), "the token may not read it", 2),
        (404, "RevisionNotFound", None, "the hub has no revision v1 of org/small", 2),
        (404, "RepoNotFound", None, "the hub has no repository or revision org/small@v1", 2),
        (410, "", None, "answered with status 410", 1),
        (429, "", None, "limits requests (429) for org/small@v1", 1),
        (503, "", None, "answered with status 503", 1),
    ] {
        let (found, code) = refused(status, code, token);
        assert!(found.contains(told) && code == exit, "{status} {found} {code}");
    }
}

#[test]
fn refusals_that_pass_are_asked_again() {
    for status in [429, 500, 503] {
        let server = Server::start(Behaviour { refusals: Some((status, "", 3)), ..behaviour() });
        let (_place, path) = place();
        fetch(&server, None, &[NAME, &path]).unwrap();
        check(&path);
    }
    let (_place, path) = place();
    let mut gone = Server::start(behaviour());
    gone.endpoint = "http://127.0.0.1:1".to_owned();
    let error = fetch(&gone, None, &[NAME, &path]).unwrap_err();
    assert!(!error.is_final() && error.to_string().starts_with("the connection to http://127.0.0.1:1/api/"), "{error}");
}

#[test]
fn repositories_without_loadable_weights_are_refused() {
    let refused = |change: &dyn Fn(&mut ModelFiles)| {
        let mut behaviour = behaviour();
        change(&mut behaviour.files);
        let server = Server::start(behaviour);
        let (_place, path) = place();
        let error = fetch(&server, None, &[NAME, &path]).unwrap_err();
        assert!(error.is_final() && !Path::new(&path).exists());
        chain(&error)
    };
    let told = refused(&|files| files.retain(|name, _| !name.ends_with("safetensors.index.json")));
    assert!(told.contains("no model.safetensors") && told.contains("(pytorch_model.bin could run code"), "{told}");
    for file in ["config.json", "tokenizer.json", "model-2.safetensors"] {
        let told = refused(&|files| drop(files.remove(file)));
        assert!(told.contains(&format!("has no {file}, which a base needs")), "{told}");
    }
    for shard in ["../model.safetensors", "/etc/passwd", "code.py", "onnx/model.safetensors"] {
        let index = serde_json::json!({"weight_map": {"a": shard}}).to_string();
        let told =
            refused(&|files| drop(files.insert("model.safetensors.index.json".to_owned(), index.clone().into())));
        assert!(told.contains("names \"") && told.contains("only files beside it"), "{told}");
    }
    let told = refused(&|files| drop(files.insert("model.safetensors.index.json".to_owned(), b"[]".to_vec())));
    assert!(told.starts_with("model.safetensors.index.json cannot be read"), "{told}");
}

#[test]
fn one_file_of_weights_is_taken_in_place_of_shards() {
    let mut behaviour = behaviour();
    behaviour.files.insert("model.safetensors".to_owned(), b"weights".to_vec());
    behaviour.files.insert("model.sig".to_owned(), b"{}".to_vec());
    let server = Server::start(behaviour);
    let (_place, path) = place();
    let told = fetch(&server, None, &[NAME, &path]).unwrap();
    let names = |manifest: Manifest| manifest.files.into_iter().map(|file| file.path).collect::<Vec<_>>();
    let expected = ["chat_template.jinja", "config.json", "model.safetensors", "model.sig", "tokenizer.json"];
    let manifest = Manifest::of_dir(Path::new(&path)).unwrap();
    assert_ne!(told["digest"], manifest.digest().to_string(), "the signature is not a file of the model");
    assert_eq!(names(manifest), expected);
    assert!(expected.into_iter().chain(TAKEN).all(is_taken));
    assert!(
        !["README.md", "pytorch_model.bin", "modeling_small.py", "onnx/model.safetensors"].into_iter().any(is_taken)
    );
}

#[test]
fn a_volume_that_is_too_small_is_refused_before_the_download() {
    let place = tempfile::tempdir().unwrap();
    let huge = Sibling { name: "model.safetensors".to_owned(), size: Some(u64::MAX), blob: None, lfs: None };
    let error = download::check_space(place.path(), &[&huge]).unwrap_err();
    assert!(!error.is_final() && error.to_string().contains("more are downloaded: free space"), "{error}");
    let held = Sibling { size: Some(3), ..huge };
    download::check_space(place.path(), &[&held]).unwrap();
}

#[test]
fn two_downloads_do_not_share_a_directory() {
    let server = Server::start(behaviour());
    let (_place, path) = place();
    let partial = format!("{path}.partial");
    fs::create_dir(&partial).unwrap();
    let lock = fs::File::open(&partial).unwrap();
    lock.lock().unwrap();
    let error = fetch(&server, None, &[NAME, &path]).unwrap_err();
    assert!(matches!(error, HubError::Busy(_)) && !error.is_final(), "{error}");
}

#[test]
fn the_cache_keeps_the_commit_of_a_branch_and_needs_no_hub_once_it_is_complete() {
    let server = Server::start(behaviour());
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("base");
    let repository: Repository = NAME.parse().unwrap();
    let get = |revision: &str| {
        let repository = Repository { revision: revision.to_owned(), ..repository.clone() };
        cached(&hub(&server, None), &repository, &cache, &|| false)
    };
    let first = get("main").unwrap();
    assert_eq!(first.path, cache.join(format!("models--org--small/snapshots/{COMMIT}")));
    check(first.path.to_str().unwrap());
    server.set(|it| it.refusals = Some((404, "RepoNotFound", 100)));
    assert_eq!(get("main").unwrap(), first);
    assert_eq!(get(COMMIT).unwrap(), first);
    assert!(server.seen().is_empty());
    assert!(get("refs/pr/1").is_err());
    // An attempt that was interrupted goes on with its commit, even if the branch has moved.
    fs::rename(&first.path, first.path.with_added_extension("partial")).unwrap();
    server.set(|it| it.refusals = None);
    assert_eq!(get("main").unwrap(), first);
    let asked = server.seen();
    assert!(asked.len() == 1 && asked[0].path.contains(COMMIT), "{asked:?}");
    // A hub that answers with another commit is not believed.
    fs::remove_dir_all(&first.path).unwrap();
    server.set(|it| it.commit = Some(COMMIT.replace('0', "f")));
    assert!(matches!(get("main"), Err(HubError::Commit { .. })));
    server.set(|it| it.commit = Some("main".to_owned()));
    assert!(matches!(get("main"), Err(HubError::Answer { .. })));
}

#[test]
fn names_of_repositories_are_checked() {
    let parse = |text: &str| text.parse::<Repository>();
    assert_eq!(parse("a/b").unwrap().to_string(), "a/b@main");
    assert_eq!(parse("HuggingFaceTB/SmolLM2-135M_x.y@refs/pr/3").unwrap().revision, "refs/pr/3");
    let long = format!("a/{}", "b".repeat(97));
    for name in
        ["", "a", "a/b/c", "/b", "a/", "a/..", "a/.b", "-a/b", "a/b c", "a/b?x", "a/b#x", "a/b%2F", "a/ü", &long]
    {
        assert!(parse(name).unwrap_err().contains("OWNER/NAME"), "{name}");
    }
    let long = "r".repeat(256);
    for revision in ["", "..", "a/../b", "/a", "a/", "a//b", "-a", "a b", "a?b", "a@b", &long] {
        assert!(parse(&format!("a/b@{revision}")).unwrap_err().starts_with("write a branch"), "{revision}");
    }
}
