//! `codex log-watch` on a log that the test makes. The entry of the identity is a recorded one of Sigstore's staging instance.

use std::{
    cell::RefCell,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Parser;
use serde_json::json;

use super::*;

const ISSUER: &str = "https://token.actions.githubusercontent.com";
const SUBJECT: &str = "https://github.com/sigstore-conformance/*/.github/workflows/*@refs/heads/main";
/// The DER of a public key on P-256 before its point.
const SPKI: &str = "3059301306072a8648ce3d020106082a8648ce3d030107034200";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    watch: LogWatch,
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures/keyless");
    fs::read(folder.join(name)).unwrap()
}

/// A log in a folder, and the trusted root that names its key.
struct Log {
    folder: tempfile::TempDir,
    key: EcdsaKeyPair,
    entries: Vec<Vec<u8>>,
}

impl Log {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let mut public = hex::decode(SPKI).unwrap();
        public.extend(key.public_key().as_ref());
        let mut root: Value = serde_json::from_slice(&fixture("trusted_root.json")).unwrap();
        root["tlogs"] = json!([{
            "baseUrl": "https://log.example.com", "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": STANDARD.encode(&public), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": { "start": "2026-01-01T00:00:00Z" },
            },
            "logId": { "keyId": STANDARD.encode(Sha256::of(&public).bytes()) },
        }]);
        fs::write(folder.path().join("root.json"), root.to_string()).unwrap();
        for name in ["log", "bundles"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, key, entries: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds entries of others.
    fn fill(&mut self, count: usize) {
        let first = self.entries.len();
        self.entries.extend((first..first + count).map(|index| format!(r#"{{"index":{index}}}"#).into_bytes()));
    }

    /// Adds the recorded entry of the identity.
    fn sign(&mut self) {
        let bundle: Value = serde_json::from_slice(&fixture("dsse.sigstore.json")).unwrap();
        self.entries.extend(log::logged(&bundle).unwrap());
    }

    /// Writes the tiles and a checkpoint over them.
    fn publish(&self) {
        let mut frontier = Frontier::default();
        self.entries.iter().for_each(|entry| frontier.push(entry));
        for (index, entries) in self.entries.chunks(WIDTH as usize).enumerate() {
            let path = self.path("log").join(log::bundle_path(index as u64, entries.len() as u64));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let each =
                entries.iter().map(|entry| [&u16::try_from(entry.len()).unwrap().to_be_bytes()[..], entry].concat());
            fs::write(path, each.collect::<Vec<_>>().concat()).unwrap();
        }
        self.checkpoint(self.entries.len(), frontier.root());
    }

    fn checkpoint(&self, size: usize, root: Sha256) {
        let text = format!("log.example.com\n{size}\n{}\n", STANDARD.encode(root.bytes()));
        fs::write(self.path("log/checkpoint"), self.note(&text)).unwrap();
    }

    /// Signs the text of a checkpoint.
    fn note(&self, text: &str) -> String {
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        let signature = STANDARD.encode([&[0; 4], signature.as_ref()].concat());
        format!("{text}\n\u{2014} log.example.com {signature}\n")
    }

    /// Returns a tree as Rekor v1 describes it, over entries.
    fn tree(&self, id: &str, entries: &[Vec<u8>]) -> Value {
        let mut frontier = Frontier::default();
        for entry in entries {
            frontier.push(entry);
        }
        let (size, root) = (entries.len(), frontier.root());
        let head = format!("log.example.com - {id}\n{size}\n{}\nTimestamp: 1\n", STANDARD.encode(root.bytes()));
        json!({"treeID": id, "treeSize": size, "rootHash": root, "signedTreeHead": self.note(&head)})
    }

    /// Writes what Rekor v1 answers: its description, and each entry. The first `former` entries are those of a tree that ended.
    fn publish_v1(&self, former: usize) {
        let (ended, current) = self.entries.split_at(former);
        let mut info = self.tree("2", current);
        if former > 0 {
            info["inactiveShards"] = json!([self.tree("1", ended)]);
        }
        let folder = self.path("log/log");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("info"), info.to_string()).unwrap();
        for (index, entry) in self.entries.iter().enumerate() {
            let answer = json!({"24296fb2": {
                "body": STANDARD.encode(entry), "integratedTime": 1, "logID": "00", "logIndex": index, "verification": {},
            }});
            fs::write(folder.join(format!("entries?logIndex={index}")), answer.to_string()).unwrap();
        }
    }

    /// Adds what Rekor v1 records for a DSSE envelope: the certificate of the recorded entry, in PEM.
    fn sign_v1(&mut self) {
        let bundle: Value = serde_json::from_slice(&fixture("dsse.sigstore.json")).unwrap();
        let entry: Value = serde_json::from_slice(&log::logged(&bundle).unwrap()[0]).unwrap();
        let signature = entry.pointer("/spec/hashedRekordV002/signature");
        let signature = signature.or(entry.pointer("/spec/dsseV002/signatures/0")).unwrap();
        let raw = signature["verifier"]["x509Certificate"]["rawBytes"].as_str().unwrap();
        let pem = format!("-----BEGIN CERTIFICATE-----\n{raw}\n-----END CERTIFICATE-----\n");
        let signatures = json!([{"signature": "MEUC", "verifier": STANDARD.encode(pem)}]);
        let body = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {"signatures": signatures}});
        self.entries.push(body.to_string().into_bytes());
    }

    fn command(&self, log: &str, more: &[&str]) -> LogWatch {
        let path = |name: &str| self.path(name).display().to_string();
        let (root, bundles) = (path("root.json"), path("bundles"));
        let line = ["log-watch", "--log", log, "--trusted-root", &root, "--bundles", &bundles];
        let who = ["--certificate-identity", SUBJECT, "--certificate-oidc-issuer", ISSUER];
        Arguments::try_parse_from([&line[..], &who, more].concat()).unwrap().watch
    }

    fn watch(&self, more: &[&str]) -> Result<Outcome, CommandError> {
        self.command(&self.path("log").display().to_string(), more).watch()
    }

    fn refused(&self, more: &[&str]) -> (i32, String) {
        self.watch(more).map_err(|error| (error.exit, error.sentence())).unwrap_err()
    }
}

#[test]
fn what_a_bundle_explains_is_not_reported() {
    let mut log = Log::new();
    log.fill(300);
    log.sign();
    log.fill(3);
    log.publish();
    let outcome = log.watch(&[]).unwrap();
    assert_eq!((outcome.size, outcome.read, outcome.entries), (304, 304, 1));
    let [found] = &outcome.unexplained[..] else { panic!("{outcome:?}") };
    assert_eq!(found.index, 300);
    assert!(found.subject.ends_with("oidc-beacon.yml@refs/heads/main"), "{found:?}");
    let told = outcome.to_string();
    assert!(told.starts_with(&format!("unexplained 300 {}: signed by https://github.com/", found.entry)), "{told}");
    assert!(told.ends_with("304 entries, 304 of them new; of 1 by this identity, 1 unexplained"), "{told}");
    // A bundle, one in a ConfigMap, and one in a list of ConfigMaps explain it.
    let bundle = String::from_utf8(fixture("dsse.sigstore.json")).unwrap();
    let config_map = json!({ "kind": "ConfigMap", "data": { "bundle.json": bundle, "key.pem": "no JSON" } });
    for text in [bundle.clone(), config_map.to_string(), json!({ "items": [config_map] }).to_string()] {
        fs::write(log.path("bundles/some.json"), text).unwrap();
        let outcome = log.watch(&[]).unwrap();
        assert_eq!((outcome.entries, outcome.unexplained.len()), (1, 0));
    }
    assert_eq!(log.command(&log.path("log").display().to_string(), &[]).run().unwrap(), exit::FINISHED);
    fs::write(log.path("bundles/some.json"), "no JSON").unwrap();
    let (code, told) = log.refused(&[]);
    assert!(code == exit::BAD_INPUT && told.starts_with("--bundles: ") && told.contains("some.json"), "{told}");
}

#[test]
fn a_run_continues_where_the_last_one_ended_and_forgets_nothing_unexplained() {
    let mut log = Log::new();
    log.fill(5);
    log.sign();
    log.publish();
    let state = log.path("state.json").display().to_string();
    let with = ["--state", state.as_str()];
    assert_eq!(log.watch(&with).unwrap().unexplained.len(), 1);
    // Entries that were read are not read again: their bundle may be gone once a larger one exists.
    log.fill(400);
    log.publish();
    let outcome = log.watch(&with).unwrap();
    assert_eq!((outcome.size, outcome.read, outcome.unexplained.len()), (406, 400, 1));
    assert_eq!(log.command(&log.path("log").display().to_string(), &with).run().unwrap(), exit::FAILED);
    fs::write(log.path("bundles/some.json"), fixture("dsse.sigstore.json")).unwrap();
    let outcome = log.watch(&with).unwrap();
    assert_eq!((outcome.read, outcome.entries, outcome.unexplained.len()), (0, 1, 0));
    assert_eq!(log.watch(&with).unwrap().entries, 0, "what was explained is settled");
    // The state is of this identity alone.
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace(ISSUER, "https://other.example.com")).unwrap();
    let (code, told) = log.refused(&with);
    assert!(code == exit::BAD_INPUT && told.contains("it is of the identity"), "{told}");
    fs::write(&state, text.replacen("\"size\":406", "\"size\":407", 1).replacen("\"size\": 406", "\"size\": 407", 1))
        .unwrap();
    let (code, told) = log.refused(&with);
    assert!(code == exit::BAD_INPUT && told.contains("hashes do not describe 407 entries"), "{told}");
    fs::write(&state, "{}").unwrap();
    assert!(log.refused(&with).1.contains("it is not a state of codex log-watch"));
}

/// What a run had read when it was killed is not read again: its tiles may be gone.
#[test]
fn a_run_that_was_killed_is_continued() {
    let mut log = Log::new();
    log.sign();
    log.fill(70 * WIDTH as usize);
    log.publish();
    let keys = LogKeys::of_root(&fs::read_to_string(log.path("root.json")).unwrap()).unwrap();
    let pattern = IdentityPattern::new(ISSUER, SUBJECT).unwrap();
    let source = Source::of(&log.path("log").display().to_string()).unwrap();
    let (identity, issuer) = (SUBJECT.to_owned(), ISSUER.to_owned());
    let mut state = State { schema_version: SCHEMA_VERSION, identity, issuer, ..State::default() };
    let written = RefCell::new(Vec::new());
    let keep = |state: &State| -> Result<(), CommandError> {
        written.borrow_mut().push(state.clone());
        Ok(())
    };
    state.advance(&source, &keys, &pattern, &keep).unwrap();
    let written = written.into_inner();
    let [killed] = &written[..] else { panic!("{written:?}") };
    assert_eq!((killed.size, killed.total(), killed.unexplained.len()), (0, WRITTEN_AFTER * WIDTH, 0));

    let path = log.path("state.json");
    fs::write(&path, serde_json::to_vec(killed).unwrap()).unwrap();
    for index in 0..WRITTEN_AFTER {
        fs::remove_file(log.path("log").join(log::bundle_path(index, WIDTH))).unwrap();
    }
    let file = path.display().to_string();
    let outcome = log.watch(&["--state", &file]).unwrap();
    assert_eq!((outcome.size, outcome.read), (70 * WIDTH + 1, (70 - WRITTEN_AFTER) * WIDTH + 1));
    let indices: Vec<u64> = outcome.unexplained.iter().map(|found| found.index).collect();
    assert_eq!(indices, [0], "an entry that the killed run read");
    let kept: State = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((kept.size, kept.reading), (outcome.size, None));
}

/// What was read before a log failed counts only if the log signed it.
#[test]
fn a_part_that_was_read_before_a_log_failed_is_compared_with_what_it_signed() {
    let mut log = Log::new();
    log.sign();
    log.fill(3 * WIDTH as usize);
    log.publish();
    let (path, missing) = (log.path("state.json"), log.path("log").join(log::bundle_path(2, WIDTH)));
    let file = path.display().to_string();
    let with = ["--state", file.as_str()];
    let kept = || serde_json::from_slice::<State>(&fs::read(&path).unwrap()).unwrap();
    fs::remove_file(&missing).unwrap();
    let (code, told) = log.refused(&with);
    assert!(code == UNREAD && told.contains("cannot be read"), "{told}");
    assert_eq!((kept().size, kept().total(), kept().unexplained.len()), (0, 2 * WIDTH, 0));

    // An entry of that part was changed: the part is given up, and the next run reads everything.
    log.entries[3] = b"changed".to_vec();
    log.publish();
    let (code, told) = log.refused(&with);
    assert!(code == UNREAD && told.contains("changed some that were read before"), "{told}");
    assert_eq!((kept().reading, kept().total()), (None, 0));
    let outcome = log.watch(&with).unwrap();
    assert_eq!((outcome.read, outcome.unexplained.len()), (3 * WIDTH + 1, 1));

    // The part of another log is no part of this one.
    let mut other = kept();
    other.reading =
        Some(Reading { origin: "other".to_owned(), size: other.size, peaks: other.peaks.clone(), found: Vec::new() });
    fs::write(&path, serde_json::to_vec(&other).unwrap()).unwrap();
    assert!(log.refused(&with).1.contains("the state is of the log other, but this one is log.example.com"));
    other.reading = Some(Reading { origin: other.origin.clone(), size: 3, peaks: Vec::new(), found: Vec::new() });
    fs::write(&path, serde_json::to_vec(&other).unwrap()).unwrap();
    let (code, told) = log.refused(&with);
    assert!(code == exit::BAD_INPUT && told.contains("0 hashes do not describe 3 entries"), "{told}");
}

#[test]
fn a_log_that_lies_is_not_believed() {
    let mut log = Log::new();
    log.fill(9);
    log.publish();
    let state = log.path("state.json").display().to_string();
    let with = ["--state", state.as_str()];
    log.watch(&with).unwrap();
    let kept = fs::read(&state).unwrap();
    let lies = |log: &Log, why: &str| {
        let (code, told) = log.refused(&with);
        assert!(code == UNREAD && told.contains(why), "{told}");
        assert_eq!(fs::read(&state).unwrap(), kept, "the state stays");
    };
    // Fewer entries, another root, an entry that was changed after it was read, and another key.
    log.checkpoint(8, Sha256::of("x"));
    lies(&log, "the log has 8 entries, and had 9");
    log.checkpoint(9, Sha256::of("x"));
    lies(&log, "shows other entries than it has");
    log.entries[2] = b"changed".to_vec();
    log.fill(1);
    log.publish();
    lies(&log, "changed some that were read before");
    let other = Log::new();
    fs::copy(other.path("root.json"), log.path("root.json")).unwrap();
    lies(&log, "is not signed by a log of the trusted root");
    fs::write(log.path("log/checkpoint"), "x").unwrap();
    lies(&log, "the checkpoint is invalid");
    fs::remove_file(log.path("log/checkpoint")).unwrap();
    lies(&log, "cannot be read");
    let (code, told) = log.command("nowhere", &[]).watch().map_err(|error| (error.exit, error.sentence())).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("is neither a folder nor an address"), "{told}");
}

/// Serves the files of a folder over HTTP below a path.
fn serve(folder: PathBuf, below: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}{below}", listener.local_addr().unwrap());
    let answer = move |mut stream: TcpStream| -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).and_then(|path| path.strip_prefix(below)).unwrap_or_default();
        let path = if path == "/log" { "log/info" } else { path.trim_start_matches('/') };
        let (status, body) = fs::read(folder.join(path)).map_or((404, Vec::new()), |body| (200, body));
        write!(stream, "HTTP/1.1 {status} Answer\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body)
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away.
            let _ = answer(stream.unwrap());
        }
    });
    address
}

#[test]
fn a_log_is_read_over_http() {
    let mut log = Log::new();
    log.fill(WIDTH as usize);
    log.sign();
    log.publish();
    let address = serve(log.path("log"), "/api/v2");
    let watch = |address: &str| log.command(address, &[]).watch();
    let outcome = watch(&address).unwrap();
    assert_eq!((outcome.size, outcome.unexplained.len()), (257, 1));
    // The part is gone because the log has grown meanwhile; the whole bundle begins with it.
    let part = log.path("log/tile/entries/001.p/1");
    fs::rename(&part, log.path("log/tile/entries/001")).unwrap();
    assert_eq!(watch(&format!("{address}/")).unwrap().size, 257);
    fs::remove_file(log.path("log/tile/entries/000")).unwrap();
    let (code, told) = watch(&address).map_err(|error| (error.exit, error.sentence())).unwrap_err();
    assert!(code == UNREAD && told.ends_with("/api/v2/tile/entries/000 answered with status 404"), "{told}");
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, told) = watch(&format!("http://{away}")).map_err(|error| (error.exit, error.sentence())).unwrap_err();
    assert!(code == UNREAD && told.contains("/checkpoint does not answer"), "{told}");
}

/// A log of Rekor v1 that was rotated: the entries of both of its trees are read, with indices through both.
#[test]
fn every_tree_of_rekor_v1_is_read() {
    let mut log = Log::new();
    log.fill(5);
    log.publish_v1(0);
    let address = serve(log.path("log"), "/api/v1");
    let state = log.path("state.json").display().to_string();
    let with = ["--state", state.as_str()];
    let watch = |log: &Log| log.command(&address, &with).watch();
    let refused = |log: &Log| watch(log).map_err(|error| (error.exit, error.sentence())).unwrap_err();
    let outcome = watch(&log).unwrap();
    assert_eq!((outcome.size, outcome.read, outcome.entries), (5, 5, 0));

    // The state continues in the tree that it knows, and then in the next one.
    let (first, second) = (log.tree("2", &log.entries), log.entries.len());
    log.sign_v1();
    log.fill(3);
    log.publish_v1(0);
    let outcome = watch(&log).unwrap();
    assert_eq!((outcome.size, outcome.read, outcome.unexplained.len()), (9, 4, 1));
    assert_eq!(outcome.unexplained[0].index, second as u64);
    let ended = log.tree("2", &log.entries);
    log.fill(1);
    log.sign_v1();
    let mut info = log.tree("3", &log.entries[9..]);
    info["inactiveShards"] = json!([ended]);
    log.publish_v1(0);
    let publish = |info: &Value| fs::write(log.path("log/log/info"), info.to_string()).unwrap();
    publish(&info);
    let outcome = watch(&log).unwrap();
    let indices: Vec<u64> = outcome.unexplained.iter().map(|found| found.index).collect();
    assert_eq!((outcome.size, outcome.read, &indices[..]), (11, 2, &[5, 10][..]));
    assert_eq!(outcome.origin, "log.example.com - 3");
    assert_eq!(watch(&log).unwrap().read, 0);

    // A tree that ended must not change or go, and its successor must not shrink.
    let kept = fs::read(&state).unwrap();
    let mut other = info.clone();
    other["inactiveShards"] = json!([first]);
    publish(&other);
    let (code, told) = refused(&log);
    assert!(code == UNREAD && told.contains("log.example.com - 2 had ended with 9 entries"), "{told}");
    publish(&log.tree("3", &log.entries[9..]));
    assert!(refused(&log).1.contains("shows another one in its place"));
    publish(&json!({"signedTreeHead": "x"}));
    assert!(refused(&log).1.contains("the checkpoint is invalid"));
    publish(&json!({}));
    assert!(refused(&log).1.contains("the description of the log is invalid"), "{}", refused(&log).1);
    assert_eq!(fs::read(&state).unwrap(), kept, "the state stays");

    // Bundles explain entries of both trees.
    publish(&info);
    for index in [5, 10] {
        let body = STANDARD.encode(&log.entries[index]);
        let bundle = json!({"verificationMaterial": {"tlogEntries": [{"canonicalizedBody": body}]}});
        fs::write(log.path(&format!("bundles/{index}.json")), bundle.to_string()).unwrap();
    }
    assert_eq!(watch(&log).unwrap().unexplained.len(), 0);
}

/// Rekor v1 fails in its second tree: the first one is not read again, nor what was read of the second.
#[test]
fn a_run_through_rekor_v1_continues_in_the_tree_where_it_failed() {
    let mut log = Log::new();
    log.fill(2);
    log.sign_v1();
    log.fill(3);
    log.publish_v1(2);
    let address = serve(log.path("log"), "/api/v1");
    let path = log.path("state.json");
    let file = path.display().to_string();
    let watch = || log.command(&address, &["--state", &file]).watch();
    let entry = |index: usize| log.path(&format!("log/log/entries?logIndex={index}"));
    let last = fs::read(entry(5)).unwrap();
    fs::remove_file(entry(5)).unwrap();
    let (code, told) = watch().map_err(|error| (error.exit, error.sentence())).unwrap_err();
    assert!(code == UNREAD && told.ends_with("/api/v1/log/entries?logIndex=5 answered with status 404"), "{told}");
    let kept: State = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((kept.ended[0].size, kept.size, kept.total()), (2, 0, 5));

    fs::write(entry(5), last).unwrap();
    (0..5).for_each(|index| fs::remove_file(entry(index)).unwrap());
    let outcome = watch().unwrap();
    assert_eq!((outcome.size, outcome.read, outcome.unexplained.len()), (6, 1, 1));
    assert_eq!(outcome.unexplained[0].index, 2);
}

#[test]
fn rekor_v1_that_lies_is_not_believed() {
    let mut log = Log::new();
    log.fill(3);
    log.sign_v1();
    log.publish_v1(2);
    let address = serve(log.path("log"), "/api/v1");
    let watch = || log.command(&format!("{address}/"), &[]).watch();
    let refused = || watch().map_err(|error| (error.exit, error.sentence())).unwrap_err();
    assert_eq!(watch().unwrap().unexplained.len(), 1);
    let entry = |index: usize| log.path(&format!("log/log/entries?logIndex={index}"));
    let genuine = fs::read(entry(3)).unwrap();
    // The entry of the identity is replaced by another one, or is that of another index.
    fs::write(entry(3), String::from_utf8_lossy(&fs::read(entry(2)).unwrap()).replace(":2,", ":3,")).unwrap();
    let (code, told) = refused();
    assert!(code == UNREAD && told.contains("shows other entries than it has"), "{told}");
    fs::copy(entry(2), entry(3)).unwrap();
    assert!(refused().1.contains("it is the entry 2, but 3 was asked for"), "{}", refused().1);
    fs::remove_file(entry(3)).unwrap();
    assert!(refused().1.ends_with("/api/v1/log/entries?logIndex=3 answered with status 404"), "{}", refused().1);
    fs::write(entry(3), genuine).unwrap();
    let foreign = Log::new();
    fs::copy(foreign.path("root.json"), log.path("root.json")).unwrap();
    assert!(refused().1.contains("is not signed by a log of the trusted root"));
}
