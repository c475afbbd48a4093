//! A reporter against a real HTTPS server on this machine.

use std::{
    collections::{HashMap, VecDeque},
    io::{BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Condvar, Mutex},
    thread,
};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use codex_provenance::Sha256;
use codex_reports::{
    CHALLENGE_HEADER, KEY_HEADER, Kind, MAX_BYTES, MAX_TERMINATION_BYTES, Report, SIGNATURE_HEADER, Stage, State,
    TrainingState, signed_message,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

use super::{
    endpoint::Endpoint,
    sender::{Identity, Pace},
    *,
};

/// What the server does with a request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Status(u16),
    /// Reads the request, then hangs up.
    Lost,
    /// Answers 204 after so long.
    Slow(Duration),
    /// Asks for a signature over this challenge.
    Challenge(&'static str),
}

#[derive(Debug)]
struct Seen {
    report: Report,
    size: usize,
    token: String,
    /// Headers by their names.
    headers: HashMap<String, String>,
    body: Vec<u8>,
    at: Instant,
}

impl Seen {
    /// The key and the challenge of the request, if it is signed.
    fn signed(&self) -> Option<(&str, &str)> {
        let header = |name: &str| self.headers.get(name).map(String::as_str);
        let (key, challenge) = (header(KEY_HEADER)?, header(CHALLENGE_HEADER)?);
        let signature = hex::decode(header(SIGNATURE_HEADER)?).unwrap();
        let message = signed_message(challenge, &self.body);
        let public = UnparsedPublicKey::new(&ED25519, hex::decode(key).unwrap());
        public.verify(&message, &signature).unwrap();
        Some((key, challenge))
    }
}

/// A report endpoint that answers by a script, and 204 when the script is over.
struct Server {
    directory: tempfile::TempDir,
    url: String,
    script: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<Seen>>,
    arrived: Condvar,
}

impl Server {
    fn start(script: &[Answer]) -> Arc<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.crt"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("token"), "first\n").unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()),
            )
            .unwrap();
        let listener = TcpListener::bind(("localhost", 0)).unwrap();
        let url = format!("https://localhost:{}{}", listener.local_addr().unwrap().port(), codex_reports::PATH);
        let server = Arc::new(Self {
            directory,
            url,
            script: Mutex::new(script.iter().copied().collect()),
            seen: Mutex::default(),
            arrived: Condvar::new(),
        });
        let (shared, config) = (Arc::clone(&server), Arc::new(config));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, config) = (Arc::clone(&shared), Arc::clone(&config));
                thread::spawn(move || server.serve(stream.unwrap(), config));
            }
        });
        server
    }

    fn serve(&self, stream: TcpStream, config: Arc<ServerConfig>) {
        let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream));
        while let Some(seen) = read_request(&mut stream) {
            let answer = self.script.lock().unwrap().pop_front().unwrap_or(Answer::Status(204));
            self.seen.lock().unwrap().push(seen);
            self.arrived.notify_all();
            let status = match answer {
                Answer::Status(status) => status,
                Answer::Slow(wait) => {
                    thread::sleep(wait);
                    204
                }
                Answer::Lost => return,
                Answer::Challenge(_) => 428,
            };
            let challenge = match answer {
                Answer::Challenge(challenge) => format!("{CHALLENGE_HEADER}: {challenge}\r\n"),
                _ => String::new(),
            };
            let length = if status == 204 { "" } else { "content-length: 7\r\n" };
            let body = if status == 204 { "" } else { "because" };
            write!(stream.get_mut(), "HTTP/1.1 {status} Said\r\n{challenge}{length}\r\n{body}").unwrap();
            stream.get_mut().flush().unwrap();
        }
    }

    /// Waits until so many requests have come, and looks at them.
    fn after<T>(&self, count: usize, look: impl FnOnce(&[Seen]) -> T) -> T {
        let seen = self.seen.lock().unwrap();
        let (seen, late) =
            self.arrived.wait_timeout_while(seen, Duration::from_secs(20), |seen| seen.len() < count).unwrap();
        assert!(!late.timed_out(), "{} of {count} requests came", seen.len());
        look(&seen)
    }

    /// Waits until a request is the wanted one, and returns how many have come then.
    fn until(&self, wanted: impl Fn(&Seen) -> bool) -> usize {
        let mut count = 1;
        while !self.after(count, |seen| wanted(&seen[count - 1])) {
            count += 1;
        }
        count
    }

    fn reporter(&self, interval: Duration) -> Reporter<TrainingState> {
        self.repeating(interval, None)
    }

    fn repeating(&self, interval: Duration, repeat: Option<Duration>) -> Reporter<TrainingState> {
        let path = |name: &str| self.directory.path().join(name);
        let identity = Identity {
            kind: Kind::TrainingRun,
            namespace: "team".to_owned(),
            name: "cot".to_owned(),
            object_uid: "object".to_owned(),
            pod_uid: "pod".to_owned(),
        };
        Reporter::with(Some(Settings {
            identity,
            endpoint: Endpoint::new(self.url.clone(), path("ca.crt"), path("token")).unwrap(),
            termination_log: path("termination-log"),
            pace: Pace {
                interval,
                first_pause: Duration::from_millis(20),
                longest_pause: Duration::from_millis(100),
                repeat,
            },
        }))
        .unwrap()
    }

    fn termination_message(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("termination-log")).unwrap()
    }
}

fn read_request(stream: &mut impl std::io::BufRead) -> Option<Seen> {
    let (mut size, mut token, mut line) = (0, String::new(), String::new());
    let mut headers = HashMap::new();
    let mut first = true;
    loop {
        line.clear();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let text = line.trim_end();
        if first {
            assert_eq!(text, "POST /v1/reports HTTP/1.1");
            first = false;
        }
        match text.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value)) {
            Some((name, value)) if name == "content-length" => size = value.parse().unwrap(),
            Some((name, value)) if name == "authorization" => token = value.to_owned(),
            Some((name, value)) => drop(headers.insert(name, value.to_owned())),
            None if text.is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; size];
    stream.read_exact(&mut body).ok()?;
    Some(Seen { report: serde_json::from_slice(&body).unwrap(), size, token, headers, body, at: Instant::now() })
}

fn training(report: &Report) -> &TrainingState {
    match &report.state {
        State::Training(state) => state,
        other => panic!("{other:?}"),
    }
}

const FAST: Duration = Duration::from_millis(30);
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn reports_have_identity_token_and_growing_sequence_numbers() {
    let server = Server::start(&[]);
    let reporter = server.reporter(FAST);
    let digest = ConfigDigest(Sha256::of("config"));
    reporter.set_attempt(3);
    reporter.set_config_digest(digest);
    reporter.update(|state| state.stage = Stage::Running);
    server.after(1, |_| ());
    fs::write(server.directory.path().join("token"), "second").unwrap();
    reporter.update(|state| state.steps_executed = 7);
    reporter.finish(exit::FINISHED);
    server.after(2, |seen| {
        let last = seen.last().unwrap();
        assert_eq!((last.report.kind, last.report.attempt), (Kind::TrainingRun, 3));
        assert_eq!(
            [&last.report.namespace, &last.report.name, &last.report.object_uid, &last.report.pod_uid],
            ["team", "cot", "object", "pod"]
        );
        assert_eq!((last.report.config_digest, training(&last.report).steps_executed), (Some(digest), 7));
        assert_eq!([&*seen[0].token, &*last.token], ["Bearer first", "Bearer second"]);
        assert!(seen.is_sorted_by(|a, b| a.report.seq < b.report.seq));
        // Later than any container that ran in this pod before.
        assert!(seen[0].report.seq > 1_700_000_000_000);
    });
}

#[test]
fn reports_are_signed_over_the_newest_challenge_with_one_key() {
    let server = Server::start(&[Answer::Challenge("one"), Answer::Status(204), Answer::Challenge("two")]);
    let reporter = server.reporter(FAST);
    reporter.update(|state| state.stage = Stage::Running);
    server.after(2, |seen| {
        assert_eq!(seen[0].signed(), None, "the controller has given no challenge yet");
        assert_eq!((seen[1].signed().unwrap().1, seen[0].report.seq), ("one", seen[1].report.seq));
    });
    reporter.update(|state| state.steps_executed = 1);
    server.after(4, |seen| {
        let keys: Vec<_> = seen.iter().map(|seen| &seen.headers[KEY_HEADER]).collect();
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]) && keys[0].len() == 64, "{keys:?}");
        assert_eq!([2, 3].map(|at| seen[at].signed().unwrap().1), ["one", "two"]);
        assert_eq!(seen[2].body, seen[3].body);
    });
}

#[test]
fn the_first_report_waits_for_the_config_digest() {
    let server = Server::start(&[]);
    let reporter = server.reporter(Duration::from_millis(200));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(server.after(0, <[_]>::len), 0);
    drop(reporter);

    let reporter = server.reporter(Duration::from_millis(200));
    let digest = ConfigDigest(Sha256::of("config"));
    reporter.update(|state| state.stage = Stage::Starting);
    reporter.set_config_digest(digest);
    server.after(1, |seen| assert_eq!(seen[0].report.config_digest, Some(digest)));
}

#[test]
fn lost_responses_and_overload_are_retried() {
    let server = Server::start(&[Answer::Lost, Answer::Status(503), Answer::Status(429), Answer::Status(200)]);
    let reporter = server.reporter(NEVER);
    reporter.finish(exit::FINISHED);
    server.after(4, |seen| assert!(seen.len() <= 6, "{} requests", seen.len()));
}

#[test]
fn finish_returns_when_the_final_report_is_taken() {
    let server = Server::start(&[Answer::Status(204), Answer::Status(503), Answer::Lost]);
    let reporter = server.reporter(NEVER);
    reporter.update(|state| state.stage = Stage::Running);
    server.after(1, |_| ());
    reporter.update(|state| state.stage = Stage::Finished);
    reporter.finish(exit::FINISHED);
    server.after(4, |seen| assert_eq!(training(&seen.last().unwrap().report).stage, Stage::Finished));
}

#[test]
fn a_refused_final_report_is_given_up_after_some_retries() {
    let server = Server::start(&[Answer::Status(403); 20]);
    let reporter = server.reporter(NEVER);
    let begun = Instant::now();
    reporter.finish(exit::FAILED);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.after(3, |seen| assert!((3..=5).contains(&seen.len()), "{} requests", seen.len()));
}

#[test]
fn a_silent_controller_is_given_up_at_the_deadline() {
    let server = Server::start(&[Answer::Status(503); 200]);
    let reporter = server.reporter(NEVER);
    let (asked_to_end, soon) = (std::sync::atomic::AtomicBool::new(true), Duration::from_millis(300));
    let begun = Instant::now();
    assert_eq!(reporter.mailbox.deliver(&asked_to_end, begun + PATIENCE, soon), Outcome::Pending);
    assert!((soon..soon * 10).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn the_work_never_waits_for_a_slow_controller() {
    let server = Server::start(&[Answer::Slow(Duration::from_secs(2))]);
    let reporter = server.reporter(FAST);
    reporter.update(|state| state.stage = Stage::Running);
    server.after(1, |_| ());
    let begun = Instant::now();
    for step in 0..10_000 {
        reporter.update(|state| state.steps_executed = step);
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    // The states in between are gone: the next report says everything.
    server.after(2, |seen| assert_eq!(training(&seen[1].report).steps_executed, 9_999));
}

#[test]
fn reports_keep_their_interval_and_a_new_stage_does_not_wait() {
    let interval = Duration::from_millis(400);
    let server = Server::start(&[]);
    let reporter = server.reporter(interval);
    reporter.update(|state| state.stage = Stage::Running);
    server.after(1, |_| ());
    let (begun, mut steps) = (Instant::now(), 0);
    while begun.elapsed() < interval * 3 {
        steps += 1;
        reporter.update(|state| state.steps_executed = steps);
        thread::sleep(Duration::from_millis(5));
    }
    server.after(3, |seen| {
        assert!(seen.len() <= 5, "{} reports in three intervals", seen.len());
        assert!(seen.windows(2).all(|pair| pair[1].at - pair[0].at > interval * 9 / 10));
    });
    // The last change is told when it is due. After it nothing waits, so the next report is that of the new stage.
    let last = server.until(|seen| training(&seen.report).steps_executed == steps);
    reporter.update(|state| state.stage = Stage::Interrupted);
    let changed = Instant::now();
    server.after(last + 1, |seen| {
        assert!(seen[last].at < changed + interval / 2);
        assert_eq!(training(&seen[last].report).stage, Stage::Interrupted);
    });
}

#[test]
fn the_termination_message_is_the_final_report_and_fits() {
    let server = Server::start(&[]);
    let reporter = server.reporter(FAST);
    reporter.update(|state| state.notices = vec!["x".repeat(100); 1000]);
    reporter.fail(Failure { is_final: true, reason: "DataMismatch".to_owned(), message: "data[0] differs".to_owned() });
    reporter.finish(exit::BAD_INPUT);
    let message = server.termination_message();
    assert!(message.len() <= MAX_TERMINATION_BYTES);
    let told: Report = serde_json::from_slice(&message).unwrap();
    let state = training(&told);
    assert_eq!((state.stage, state.notices.len()), (Stage::Failed, 0));
    assert_eq!(state.failure.as_ref().unwrap().reason, "DataMismatch");
    // The endpoint takes more than the kubelet, though not everything.
    server.after(1, |seen| {
        assert!(seen.iter().all(|seen| seen.size <= MAX_BYTES));
        assert_eq!(seen.last().unwrap().report.contradicts_termination(&told), None);
    });
}

#[test]
fn a_change_after_the_final_report_is_ignored() {
    let server = Server::start(&[Answer::Status(503), Answer::Status(503)]);
    let reporter = Arc::new(server.reporter(FAST));
    reporter.update(|state| state.stage = Stage::Finished);
    let late = Arc::clone(&reporter);
    let changes = thread::spawn(move || {
        for _ in 0..40 {
            late.update(|state| state.steps_executed += 1);
            thread::sleep(Duration::from_millis(5));
        }
    });
    reporter.finish(exit::FINISHED);
    changes.join().unwrap();
    let told: Report = serde_json::from_slice(&server.termination_message()).unwrap();
    server.after(1, |seen| assert_eq!(seen.last().unwrap().report.contradicts_termination(&told), None));
}

#[test]
fn an_unchanged_state_is_repeated_if_it_must_be() {
    let server = Server::start(&[]);
    let reporter = server.repeating(FAST, Some(FAST));
    reporter.update(|state| state.stage = Stage::Running);
    server.after(4, |seen| {
        assert!(seen.windows(2).all(|pair| pair[0].report.contradicts(&pair[1].report).is_none()));
        assert!(seen.windows(2).all(|pair| pair[0].report.seq < pair[1].report.seq));
    });
}

#[test]
fn without_a_controller_the_state_is_kept_and_nothing_is_written() {
    let reporter = Reporter::<TrainingState>::with(None).unwrap();
    reporter.update(|state| state.steps_executed = 5);
    assert_eq!(reporter.state().steps_executed, 5);
    let begun = Instant::now();
    reporter.finish(exit::FINISHED);
    assert!(begun.elapsed() < Duration::from_secs(1));
}
