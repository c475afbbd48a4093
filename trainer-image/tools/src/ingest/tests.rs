use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
};

use clap::Parser;
use serde_json::Value;

use super::command::{Counts, Ingest};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    ingest: Ingest,
}

/// Runs the command, and returns the counts and the records.
fn ingest(place: &Path, arguments: &[&str]) -> Result<(Counts, Vec<Value>), String> {
    let out = place.join("out.jsonl");
    let line = ["ingest", "--out", out.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
    let parsed = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
    let counts = parsed.ingest.ingest().map_err(|error| codex::error::chain(&error))?;
    let text = fs::read_to_string(&out).unwrap();
    Ok((counts, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()))
}

fn sources(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["source"].as_str().unwrap()).collect()
}

/// Writes documents of all kinds.
fn folder(path: &Path) {
    fs::create_dir_all(path.join("deep")).unwrap();
    fs::create_dir_all(path.join(".hidden")).unwrap();
    fs::write(path.join("b.md"), "One.\r\nTwo.").unwrap();
    fs::write(path.join("deep/a.txt"), b"Stra\xdfe und Gr\xf6\xdfe sind sch\xf6n.").unwrap();
    fs::write(path.join("deep/same.md"), "One.\nTwo.").unwrap();
    fs::write(path.join("deep/picture.png"), b"\x89PNG\0\0").unwrap();
    fs::write(path.join("empty.md"), " \n").unwrap();
    fs::write(path.join("large.md"), "x".repeat(5000)).unwrap();
    fs::write(path.join(".hidden/c.md"), "hidden").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", path.join("link.md")).unwrap();
}

#[test]
fn a_folder_becomes_records_and_every_other_file_is_counted() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("docs");
    folder(&path);
    let path = path.to_str().unwrap();
    let (counts, records) = ingest(place.path(), &[path, "--max-document", "2K"]).unwrap();
    let expected = Counts { written: 2, repeated: 1, binary: 1, short: 1, large: 1, ..Counts::default() };
    assert_eq!(counts, expected);
    assert_eq!(sources(&records), ["b.md", "deep/a.txt"]);
    assert_eq!((&records[0]["text"], &records[0]["encoding"]), (&"One.\nTwo.".into(), &"UTF-8".into()));
    assert_eq!(records[1]["text"], "Straße und Größe sind schön.");
    assert_eq!(records[0]["sha256"], codex_provenance::Sha256::of("One.\r\nTwo.").to_string());
    let (counts, _) = ingest(place.path(), &[path, "--ending", ".txt", "--encoding", "utf-8"]).unwrap();
    assert_eq!(counts, Counts { invalid: 1, ..Counts::default() });
    let told = ingest(place.path(), &["/nowhere/at-all"]).unwrap_err();
    assert!(told.contains("/nowhere/at-all"), "{told}");
}

#[test]
fn rules_block_and_redact_and_fail_closed() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("a.txt"), "mail me at jane.doe@example.com").unwrap();
    fs::write(at("b.txt"), "the codeword is xyzzy").unwrap();
    fs::write(
        at("rules.yaml"),
        "rules: [{ id: word, action: block, literal: xyzzy }, { id: mail, action: redact, regex: '\\S+@\\S+' }]",
    )
    .unwrap();
    let (counts, records) = ingest(place.path(), &[&at("a.txt"), &at("b.txt"), "--rules", &at("rules.yaml")]).unwrap();
    assert_eq!(counts, Counts { written: 1, redacted: 1, blocked: 1, ..Counts::default() });
    assert_eq!(records[0]["text"], "mail me at {REDACTED}");
    let before = fs::read(at("out.jsonl")).unwrap();
    fs::write(at("rules.yaml"), "rules: [{ id: word, action: burn, literal: a }]").unwrap();
    let told = ingest(place.path(), &[&at("a.txt"), "--rules", &at("rules.yaml")]).unwrap_err();
    assert!(told.starts_with("--rules: "), "{told}");
    assert_eq!(fs::read(at("out.jsonl")).unwrap(), before, "nothing is written");
}

#[test]
fn zip_files_are_unpacked_in_memory_and_bounded() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("docs.zip");
    let mut writer = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    let bomb = vec![b'a'; 1 << 20];
    for (name, bytes) in [("../../evil.md", &b"up"[..]), ("b/c.md", b"deep"), (".git/x", b"no"), ("bomb.md", &bomb[..])]
    {
        writer.start_file(name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap();
    let (counts, records) = ingest(place.path(), &[path.to_str().unwrap(), "--max-document", "100K"]).unwrap();
    assert_eq!((counts.written, counts.large), (1, 1), "{records:?}");
    assert_eq!(sources(&records), ["b/c.md"]);
    fs::write(&path, "no zip").unwrap();
    assert!(ingest(place.path(), &[path.to_str().unwrap()]).unwrap_err().contains("cannot be unpacked"));
}

#[test]
fn a_checkout_gives_what_git_tracks() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("repository");
    folder(&path);
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&path).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "b.md", ".hidden/c.md", "link.md", "deep/a.txt"]);
    // A foreign checkout: its configuration names a program, and a folder became a link to files outside.
    let hook = place.path().join("hook");
    fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", place.path().join("ran").display())).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    git(&["config", "core.fsmonitor", hook.to_str().unwrap()]);
    fs::rename(path.join("deep"), place.path().join("outside")).unwrap();
    std::os::unix::fs::symlink(place.path().join("outside"), path.join("deep")).unwrap();
    let (_, records) = ingest(place.path(), &[path.to_str().unwrap()]).unwrap();
    assert_eq!(sources(&records), [".hidden/c.md", "b.md"]);
    assert!(!place.path().join("ran").exists(), "git ran a program that the checkout names");
}

#[test]
fn what_is_written_is_no_document() {
    let place = tempfile::tempdir().unwrap();
    for index in 0..20 {
        fs::write(place.path().join(format!("a{index:02}.md")), format!("{index} {}", "word ".repeat(200))).unwrap();
    }
    let folder = place.path().to_str().unwrap().to_owned();
    let (first, _) = ingest(place.path(), &[&folder]).unwrap();
    assert_eq!(first.written, 20);
    let (second, _) = ingest(place.path(), &[&folder]).unwrap();
    assert_eq!(second, first, "the same input gives the same bytes");
}

#[test]
fn an_address_is_downloaded_with_its_redirects() {
    let place = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap_or(0);
            let request = String::from_utf8_lossy(&buffer[..count]).into_owned();
            let answer = match request.split(' ').nth(1) {
                Some("/a") => "302 Found\r\nLocation: /b?sig=secret\r\nContent-Length: 0".to_owned(),
                Some("/b?sig=secret") => "200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
                Some("/away") => "302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0".to_owned(),
                _ => "404 Not Found\r\nContent-Length: 0".to_owned(),
            };
            let end = if answer.contains("\r\n\r\n") { "" } else { "\r\n\r\n" };
            let _ = stream.write_all(format!("HTTP/1.1 {answer}{end}").as_bytes());
        }
    });
    let (_, records) = ingest(place.path(), &[&format!("{url}/a")]).unwrap();
    assert_eq!((&records[0]["text"], &records[0]["source"]), (&"hello".into(), &format!("{url}/a").into()));
    for (path, why) in [("/none?sig=secret", "status 404"), ("/away", "it has no TLS")] {
        let told = ingest(place.path(), &[&format!("{url}{path}")]).unwrap_err();
        assert!(told.contains(why) && !told.contains("secret"), "{told}");
    }
    for wrong in ["ftp://a/b", "https://me:pw@host/a"] {
        let told = ingest(place.path(), &[wrong]).unwrap_err();
        assert!(told.contains("write ") && !told.contains("Counts"), "{told}");
    }
}
