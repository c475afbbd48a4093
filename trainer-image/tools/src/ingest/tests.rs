use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
};

use clap::Parser;
use codex_provenance::Sha256;
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

/// Runs git in a directory.
fn git(path: &Path, arguments: &[&str]) -> String {
    let settings = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(path).args(settings).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Makes a repository with two commits, and returns both. The second one changes `b.md` and has the tag `v1`.
fn repository(path: &Path) -> [String; 2] {
    folder(path);
    git(path, &["init", "--quiet", "--initial-branch=main"]);
    let commit = |message: &str| {
        git(path, &["add", "--all"]);
        git(path, &["commit", "--quiet", "--message", message]);
        git(path, &["rev-parse", "HEAD"])
    };
    let first = commit("one");
    fs::write(path.join("b.md"), "changed").unwrap();
    let second = commit("two");
    git(path, &["tag", "--annotate", "v1", "--message", "one"]);
    [first, second]
}

#[test]
fn a_commit_of_a_repository_gives_its_files() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("repository");
    let [first, second] = repository(&path);
    let url = format!("git+file://{}", path.display());
    let (counts, records) = ingest(place.path(), &[&format!("{url}@{first}"), "--ending", ".md"]).unwrap();
    let names = [".hidden/c.md", "b.md", "large.md"].map(|name| format!("{url}@{first}#{name}"));
    assert_eq!((sources(&records), counts.short, counts.repeated), (names.iter().map(String::as_str).collect(), 1, 1));
    assert_eq!(records[1]["text"], "One.\nTwo.", "an older commit than the branch");
    let (counts, records) = ingest(
        place.path(),
        &[&format!("{url}@{second}#deep"), &format!("{url}@{second}#b.md"), "--max-document", "2K"],
    )
    .unwrap();
    assert_eq!((counts.written, counts.binary), (3, 1), "{records:?}");
    assert_eq!(records[2]["text"], "changed");
    assert!(!place.path().join("out.jsonl.fetched").exists(), "nothing is kept of a file that is written");

    let said = |revision: &str| ingest(place.path(), &[&format!("{url}{revision}")]).unwrap_err();
    for name in ["", "@main", "@v1"] {
        let told = said(name);
        assert!(told.contains(&format!("may become another commit: write @{second}, which it is now")), "{told}");
    }
    let none = "0".repeat(40);
    assert!(said("@nothing").contains("there is no branch or tag nothing"));
    assert!(said(&format!("@{none}")).contains("cannot be fetched: "));
    assert!(said(&format!("@{first}#nowhere")).contains("nowhere has no file in this commit"));
    assert!(said("-elsewhere@main").contains("cannot be fetched: "));
}

/// What a failed command fetched is used by the next one, and too much is not fetched.
#[test]
fn repositories_are_fetched_once_and_bounded() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("repository");
    let [first, _] = repository(&path);
    let noise: Vec<u8> = (0..6000_u32).flat_map(|at| Sha256::of(at.to_le_bytes()).bytes().to_vec()).collect();
    fs::write(path.join("noise.bin"), noise).unwrap();
    git(&path, &["add", "noise.bin"]);
    git(&path, &["commit", "--quiet", "--message", "three"]);
    let third = git(&path, &["rev-parse", "HEAD"]);
    let url = format!("git+file://{}", path.display());
    let told = ingest(place.path(), &[&format!("{url}@{third}"), "--max-repository", "100K"]).unwrap_err();
    assert!(told.contains("has more than 102400 bytes: raise --max-repository"), "{told}");
    let source = format!("{url}@{first}");
    let cut = ingest(place.path(), &[&source, "/nowhere/at-all"]).unwrap_err();
    assert!(cut.contains("/nowhere/at-all"), "{cut}");
    fs::rename(&path, place.path().join("moved")).unwrap();
    let (counts, _) = ingest(place.path(), &[&source, "--ending", ".md"]).unwrap();
    assert_eq!(counts.written, 3);
}

/// Answers requests with `git http-backend` below a directory, but those with `private` in their path.
fn serve(root: std::path::PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            drop(answer(stream, &root));
        }
    });
    url
}

fn answer(mut stream: std::net::TcpStream, root: &Path) -> std::io::Result<()> {
    let mut reader = std::io::BufReader::new(stream.try_clone()?);
    let (mut line, mut headers) = (String::new(), std::collections::BTreeMap::new());
    std::io::BufRead::read_line(&mut reader, &mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let method = line.split(' ').next().unwrap_or_default().to_owned();
    loop {
        line.clear();
        std::io::BufRead::read_line(&mut reader, &mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    if target.contains("private") {
        let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n";
        return stream.write_all(head.as_bytes());
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((target.as_str(), ""));
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .envs([
            ("GIT_HTTP_EXPORT_ALL", "1"),
            ("PATH_INFO", path),
            ("QUERY_STRING", query),
            ("REQUEST_METHOD", method.as_str()),
        ])
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    backend.stdin.take().unwrap().write_all(&body)?;
    let output = backend.wait_with_output()?.stdout;
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
    stream.write_all(&output)
}

#[test]
fn a_repository_is_fetched_over_http() {
    let place = tempfile::tempdir().unwrap();
    let [_, second] = repository(&place.path().join("repository"));
    let url = serve(place.path().to_owned());
    let source = format!("git+{url}/repository/.git@{second}#b.md");
    let (_, records) = ingest(place.path(), &[&source]).unwrap();
    assert_eq!((&records[0]["text"], sources(&records)), (&"changed".into(), vec![source.as_str()]));
    // Nobody is asked for a password.
    let told = ingest(place.path(), &[&format!("git+{url}/private@{second}")]).unwrap_err();
    assert!(told.contains("cannot be fetched: ") && told.contains("terminal prompts disabled"), "{told}");
    for wrong in ["git+https://me:word@host/a", "git+http://host/a", "git+https://host"] {
        let told = ingest(place.path(), &[wrong]).unwrap_err();
        assert!(told.contains("write "), "{told}");
    }
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
