use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use clap::Parser;
use codex_reports::exit;
use jiff::SignedDuration;

use super::{
    database::{Database, DatabaseError, Journal},
    event::{Event, Role, SessionId},
    filter::Filter,
    lines,
    pool::Pool,
    rotate::{Limits, rotate},
};

fn id(text: &str) -> SessionId {
    text.parse().unwrap()
}

fn event(ts: f64, session: &str, role: Role, message: &str) -> Event {
    Event { ts, session_id: id(session), role, message: message.to_owned() }
}

fn some() -> Vec<Event> {
    vec![
        event(10.0, "a", Role::System, "Be brief."),
        event(11.0, "a", Role::User, "What is 2+2?"),
        event(12.5, "a", Role::Assistant, "4"),
        event(11.5, "b", Role::Info, "loaded"),
        event(13.0, "b", Role::Warn, "slow: 100% busy"),
        event(14.0, "b", Role::Tool, "{\"sum\": 4}"),
    ]
}

fn taken(database: &Database, session: Option<&str>, filter: &Filter) -> Vec<f64> {
    let mut found = Vec::new();
    let session = session.map(id);
    let wrong = database
        .each(session.as_ref(), filter, |event| {
            found.push(event.ts);
            Ok::<_, DatabaseError>(())
        })
        .unwrap();
    assert_eq!(wrong, 0);
    found
}

#[test]
fn events_are_found_by_every_filter() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("deep/sessions.db");
    Database::open(&path, Journal::Auto).unwrap().add(&some()).unwrap();
    let database = Database::read(&path).unwrap();
    let all = Filter::default();
    assert_eq!(taken(&database, None, &all), [10.0, 11.0, 11.5, 12.5, 13.0, 14.0]);
    assert_eq!(taken(&database, Some("a"), &all), [10.0, 11.0, 12.5]);
    let filters = [
        Filter { role: vec![Role::Warn, Role::Tool], ..Filter::default() },
        // A percent sign is no wildcard, and the case counts.
        Filter { contains: Some("0% b".to_owned()), ..Filter::default() },
        Filter { contains: Some("be brief".to_owned()), ..Filter::default() },
        Filter { since: Some(11.5), until: Some(13.0), ..Filter::default() },
        Filter { since: Some(11.5), role: vec![Role::Assistant], ..Filter::default() },
        Filter { limit: Some(2), ..Filter::default() },
    ];
    let expected: [&[f64]; 6] = [&[13.0, 14.0], &[13.0], &[], &[11.5, 12.5], &[12.5], &[10.0, 11.0]];
    for (filter, expected) in filters.iter().zip(expected) {
        assert_eq!(taken(&database, None, filter), expected, "{filter:?}");
        let mut other: Vec<f64> = some().iter().filter(|event| filter.takes(event)).map(|event| event.ts).collect();
        other.sort_by(f64::total_cmp);
        other.truncate(filter.limit.map_or(usize::MAX, |limit| limit as usize));
        assert_eq!(other, expected, "{filter:?}");
    }
    let (last, _) = database.last(2, Some(&id("a")), &all).unwrap();
    assert_eq!(last, some()[1..3]);
    let summaries = database.summaries().unwrap();
    let shown: Vec<_> =
        summaries.iter().map(|one| (one.session_id.as_str(), one.events, one.first, one.last)).collect();
    assert_eq!(shown, [("a", 3, 10.0, 12.5), ("b", 3, 11.5, 14.0)]);
}

#[test]
fn other_roles_and_sessions_are_refused() {
    let parse = |line: &str| Event::parse(line.as_bytes(), Err("write a name"));
    let told = parse(r#"{"ts": 1, "session_id": "a", "role": "admin", "message": "secret"}"#).unwrap_err().to_string();
    assert!(
        told.contains("use one of system, user, assistant, tool, INFO, WARN") && !told.contains("secret"),
        "{told}"
    );
    for (line, why) in [
        (r#"{"ts": 1, "session_id": "../a", "role": "user", "message": ""}"#, "the session_id is none"),
        (r#"{"ts": 1, "role": "user", "message": ""}"#, "has no session_id"),
        (r#"{"ts": 1e300, "session_id": "a", "role": "user", "message": ""}"#, "ts is no time"),
        (r#"{"ts": "soon", "session_id": "a", "role": "user", "message": ""}"#, "is no event"),
        ("[]", "is no event"),
        ("", "is no event"),
    ] {
        let told = parse(line).unwrap_err().to_string();
        assert!(told.contains(why), "{line}: {told}");
    }
    let read = parse(
        r#"{"timestamp": "2025-11-28T09:00:00.5Z", "session_id": "a", "role": "INFO", "content": "x", "more": 1}"#,
    );
    assert_eq!(read.unwrap(), event(1_764_320_400.5, "a", Role::Info, "x"));
    for role in Role::ALL {
        assert_eq!(role.name().parse(), Ok(role));
    }
    for text in ["", ".", "..", "a/b", "-a", "a b", &"a".repeat(129)] {
        assert!(text.parse::<SessionId>().unwrap_err().contains("such as chat-1"), "{text}");
    }
}

#[test]
fn a_write_ahead_log_is_refused_on_network_file_systems() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mode = |database: Database| {
        let path = database.path().to_owned();
        drop(database);
        std::fs::read(path).unwrap()[19]
    };
    // A version of 2 in the header is a write-ahead log, 1 a rollback journal.
    assert_eq!(mode(Database::open_on(&at("local"), Journal::Auto, None).unwrap()), 2);
    assert_eq!(mode(Database::open_on(&at("remote"), Journal::Auto, Some("NFS")).unwrap()), 1);
    assert_eq!(mode(Database::open_on(&at("chosen"), Journal::Delete, None).unwrap()), 1);
    let told = Database::open_on(&at("other"), Journal::Wal, Some("CIFS")).unwrap_err().to_string();
    assert!(
        told.starts_with("--journal wal: ") && told.contains("(CIFS)") && told.contains("use --journal delete"),
        "{told}"
    );
    assert!(!at("other").exists());
    let told = Database::open_on(&at("local"), Journal::Auto, Some("FUSE")).unwrap_err().to_string();
    assert!(told.contains("has a write-ahead log and is on a network file system (FUSE)"), "{told}");
    // A journal can be changed, and events stay.
    let mut database = Database::open(&at("local"), Journal::Wal).unwrap();
    database.add(&some()).unwrap();
    drop(database);
    assert_eq!(mode(Database::open(&at("local"), Journal::Delete).unwrap()), 1);
    assert_eq!(taken(&Database::read(&at("local")).unwrap(), None, &Filter::default()).len(), 6);
}

#[test]
fn other_files_are_no_databases() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let told = Database::read(&at("none.db")).unwrap_err().to_string();
    assert!(told.contains("does not exist: name the database"), "{told}");
    assert!(!at("none.db").exists());
    fs::write(at("text"), "this is no database of any kind").unwrap();
    assert!(matches!(Database::open(&at("text"), Journal::Auto), Err(DatabaseError::Foreign(_))));
    assert_eq!(fs::read(at("text")).unwrap(), b"this is no database of any kind");
    let other = rusqlite::Connection::open(at("other.db")).unwrap();
    other.execute_batch("CREATE TABLE session_events (at TEXT)").unwrap();
    drop(other);
    let told = Database::read(&at("other.db")).unwrap_err().to_string();
    assert!(told.contains("has no table session_events(ts, session_id, role, message)"), "{told}");
}

#[test]
fn the_table_of_codex_ml_is_read_and_foreign_rows_are_left_out() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("session_logs.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch(
            "CREATE TABLE session_events (ts REAL NOT NULL, session_id TEXT NOT NULL, role TEXT NOT NULL, message TEXT NOT NULL,
                                          seq INTEGER, meta TEXT, PRIMARY KEY (session_id, ts, role));
             INSERT INTO session_events VALUES (1, 'a', 'user', 'hello', 1, NULL), (2, 'a', 'robot', '', 2, NULL),
                                               (3, 'a', 'INFO', 'end', 3, '{}'), ('x', 'a', 'WARN', '', 4, NULL);",
        )
        .unwrap();
    drop(other);
    let database = Database::read(&path).unwrap();
    let (last, wrong) = database.last(10, None, &Filter::default()).unwrap();
    assert_eq!(last, [event(1.0, "a", Role::User, "hello"), event(3.0, "a", Role::Info, "end")]);
    assert_eq!(wrong, 2);
    Database::open(&path, Journal::Auto).unwrap().add(&[event(5.0, "a", Role::Tool, "new")]).unwrap();
    assert_eq!(database.last(1, None, &Filter::default()).unwrap().0[0].message, "new");
}

/// Many threads write through few connections, while a reader and a writer have their own. No event is lost.
#[test]
fn a_pool_bounds_the_connections_of_many_writers() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s.db");
    let pool = Pool::new(&path, Journal::Auto, 3);
    let (used, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let write = |writer: u32| {
        for number in 0..20 {
            let written = pool.with(|database| {
                most.fetch_max(used.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let added = database.add(&[event(f64::from(100 * writer + number), "a", Role::Info, "x")]);
                used.fetch_sub(1, Ordering::SeqCst);
                added
            });
            written.unwrap();
        }
    };
    Database::open(&path, Journal::Auto).unwrap();
    thread::scope(|scope| {
        for writer in 0..8 {
            scope.spawn(move || write(writer));
        }
        let mut own = Database::open(&path, Journal::Auto).unwrap();
        let reader = Database::read(&path).unwrap();
        for number in 0..20 {
            own.add(&[event(f64::from(1000 + number), "b", Role::Info, "y")]).unwrap();
            reader.summaries().unwrap();
        }
    });
    assert!((1..=3).contains(&most.into_inner()));
    let found = taken(&Database::read(&path).unwrap(), None, &Filter::default());
    let expected = (0..8).flat_map(|writer| (0..20).map(move |number| 100 * writer + number)).chain(1000..1020);
    assert_eq!(found, expected.map(f64::from).collect::<Vec<_>>());
}

#[test]
fn a_pool_that_is_in_use_says_so_and_recovers() {
    let place = tempfile::tempdir().unwrap();
    let pool = Pool::new(&place.path().join("s.db"), Journal::Auto, 0).waiting(Duration::from_millis(20));
    let told = pool.with(|_| pool.with(|_| Ok::<_, DatabaseError>(()))).unwrap_err().to_string();
    assert!(told.contains("all of the 1 connections to ") && told.ends_with("raise --pool, or try again"), "{told}");
    let failed = pool.with(|database| Err::<(), _>(DatabaseError::Missing(database.path().to_owned())));
    assert!(matches!(failed, Err(DatabaseError::Missing(_))));
    pool.with(|database| database.add(&some())).unwrap();
    assert_eq!(pool.with(|database| database.summaries()).unwrap().len(), 2);
}

#[test]
fn files_are_imported_by_several_connections() {
    let place = tempfile::tempdir().unwrap();
    let (db, lines) = (place.path().join("s.db"), place.path().join("lines"));
    for session in 0..7 {
        for number in 0..30 {
            let event = event(f64::from(number), &format!("s{session}"), Role::User, "x");
            super::lines::append(&lines, &event).unwrap();
        }
    }
    for _ in 0..2 {
        assert_eq!(run(&db, &["import", lines.to_str().unwrap(), "--pool", "4"]), Ok(exit::FINISHED));
        assert_eq!(taken(&Database::read(&db).unwrap(), None, &Filter::default()).len(), 210);
    }
}

fn numbered(count: u32) -> Vec<Event> {
    (0..count).map(|number| event(f64::from(number), "a", Role::Info, &"x".repeat(1000))).collect()
}

#[test]
fn rotation_moves_the_oldest_events_to_a_file_that_can_be_imported() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s.db");
    let archive = place.path().join("archive");
    let mut database = Database::open(&path, Journal::Auto).unwrap();
    database.add(&numbered(1000)).unwrap();
    let now = Event::now(id("b"), Role::User, "now".to_owned());
    database.add(std::slice::from_ref(&now)).unwrap();
    let before = database.size().unwrap();
    let limits = Limits { max_bytes: Some(before / 2), ..Limits::default() };
    let rotated = rotate(&mut database, limits, Some(&archive)).unwrap();
    assert!(rotated.events > 300 && rotated.events < 700, "{rotated:?}");
    let after = database.size().unwrap();
    assert!(after <= before * 11 / 20, "{after} of {before}");
    let left = taken(&database, None, &Filter::default());
    assert_eq!(left.len(), 1001 - rotated.events);
    assert_eq!(left[..1], [rotated.events as f64], "the oldest left");
    let moved = lines::read(rotated.archive.as_ref().unwrap()).unwrap();
    assert_eq!(moved, numbered(1000)[..rotated.events]);
    let old = Limits { max_age: Some(SignedDuration::from_hours(1)), ..Limits::default() };
    let rotated = rotate(&mut database, old, Some(&archive)).unwrap();
    assert_eq!(rotated.events, left.len() - 1);
    assert_eq!(taken(&database, None, &Filter::default()), [now.ts]);
    assert_eq!(rotate(&mut database, old, Some(&archive)).unwrap().archive, None);
    // Both files, once and again.
    let files = lines::files(&archive).unwrap();
    let read: Vec<Event> = files.iter().flat_map(|path| lines::read(path).unwrap()).collect();
    assert_eq!((files.len(), read.len()), (2, 1000));
    assert_eq!(database.add_missing(&read).unwrap(), 1000);
    assert_eq!(database.add_missing(&read).unwrap(), 0);
}

#[test]
fn an_archive_is_never_overwritten_by_other_events() {
    let place = tempfile::tempdir().unwrap();
    let mut database = Database::open(&place.path().join("s.db"), Journal::Auto).unwrap();
    let archive = place.path().join("archive");
    let old = Limits { max_age: Some(SignedDuration::from_hours(1)), ..Limits::default() };
    for message in ["one", "two"] {
        let event = Event { ts: 10.0, session_id: id("a"), role: Role::User, message: message.to_owned() };
        database.add(&[event]).unwrap();
        rotate(&mut database, old, Some(&archive)).unwrap();
    }
    let kept: Vec<String> =
        lines::files(&archive).unwrap().iter().map(|path| lines::read(path).unwrap()[0].message.clone()).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
}

#[test]
fn an_archive_that_cannot_be_written_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut database = Database::open(&place.path().join("s.db"), Journal::Auto).unwrap();
    database.add(&numbered(10)).unwrap();
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let limits = Limits { max_age: Some(SignedDuration::ZERO), ..Limits::default() };
    rotate(&mut database, limits, Some(&file.join("archive"))).unwrap_err();
    assert_eq!(taken(&database, None, &Filter::default()).len(), 10);
}

#[test]
fn a_line_that_is_not_finished_is_left_out_and_a_wrong_one_is_named() {
    let place = tempfile::tempdir().unwrap();
    for event in some() {
        lines::append(place.path(), &event).unwrap();
    }
    let path = place.path().join("a.ndjson");
    assert_eq!(lines::read(&path).unwrap(), some()[..3]);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{whole}{{\"ts\": 1, \"sess")).unwrap();
    assert_eq!(lines::read(&path).unwrap(), some()[..3]);
    fs::write(&path, format!("{whole}\n{{\"role\": \"none\"}}\n{whole}")).unwrap();
    assert!(lines::read(&path).unwrap_err().to_string().ends_with("a.ndjson:5"));
    // The file names the session, and a last line may lack its end.
    fs::write(&path, r#"{"ts": 3, "role": "user", "message": "hi"}"#).unwrap();
    assert_eq!(lines::read(&path).unwrap(), [event(3.0, "a", Role::User, "hi")]);
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    sessions: super::Sessions,
}

fn run(db: &Path, line: &[&str]) -> Result<i32, String> {
    let db = db.to_str().unwrap();
    let line = ["sessions"].into_iter().chain(line.iter().copied()).chain(["--db", db]);
    let parsed = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
    parsed.sessions.run().map_err(|error| error.sentence())
}

#[test]
fn an_export_can_be_imported_again() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (db, other) = (place.path().join("s.db"), place.path().join("t.db"));
    Database::open(&db, Journal::Auto).unwrap().add(&some()).unwrap();
    assert_eq!(
        run(&db, &["export", "--out", &at("all.ndjson"), "--role", "user", "--role", "WARN"]),
        Ok(exit::FINISHED)
    );
    assert_eq!(run(&other, &["import", &at("all.ndjson")]), Ok(exit::FINISHED));
    assert_eq!(taken(&Database::read(&other).unwrap(), None, &Filter::default()), [11.0, 13.0]);
    assert_eq!(run(&db, &["export", "a", "--format", "text", "--out", &at("a.txt")]), Ok(exit::FINISHED));
    let text = fs::read_to_string(at("a.txt")).unwrap();
    assert_eq!(text.lines().nth(2), Some("1970-01-01T00:00:12.500Z  assistant  4"), "{text}");
    for (line, why) in [
        (vec!["view", "a", "--role", "admin"], "use one of system, user"),
        (vec!["log", "a", "--role", "admin", "--message", "x"], "use one of system, user"),
        (vec!["query", "--since", "soon"], "such as 2h"),
        (vec!["rotate"], "required arguments"),
        (vec!["rotate", "--max-size", "many"], "such as 500M"),
        (vec!["import", "/nowhere/at-all.ndjson"], "failed"),
    ] {
        let told = run(&db, &line).unwrap_err();
        assert!(told.contains(why), "{line:?}: {told}");
    }
}
