//! MLflow's tracking server: sends metrics through its REST API, from a thread. Does blocking I/O.
//!
//! A server that is away neither stops nor slows the run: rows wait in the thread up to a limit, and the run only hands them over.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::{
    Agent, Body,
    http::{HeaderValue, Response, header::AUTHORIZATION},
};

use super::{
    Described, Ended, Start, Tracker, TrackingError,
    error::Failures,
    mlflow_files::{Status, experiment_name, tags},
    series,
};
use crate::{
    artifacts::{environment::variable, ledger::Row},
    atomic_fs, hub,
};

/// The tracker's name.
pub(super) const NAME: &str = "mlflow-server";
/// The file that names the run at the server, among the artifacts of the run.
const FILE: &str = "mlflow.json";
/// The variable with the address of the server.
const URI: &str = "MLFLOW_TRACKING_URI";
/// The variable with the token.
const TOKEN: &str = "MLFLOW_TRACKING_TOKEN";
/// Batches of rows that wait for the thread.
const QUEUE: usize = 1024;
/// Rows that wait for the server.
const MOST_WAITING: usize = 100_000;
/// The most metrics of a request.
const MOST_METRICS: usize = 1000;
/// The most parameters of a request.
const MOST_PARAMS: usize = 100;
/// The most bytes of an answer.
const MOST_ANSWER: u64 = 1 << 20;
/// The most characters of a server's message in the log.
const MOST_TOLD: usize = 200;
/// Time from a failed request to the next one.
const PAUSE: Duration = Duration::from_secs(10);
/// Time that the end of an attempt waits for the server.
const LAST: Duration = Duration::from_secs(5);

/// A message to the thread.
enum Message {
    /// The ledger has these rows.
    Rows(Vec<Row>),
    /// The attempt ended.
    End(Ended),
}

/// The run at a server.
pub(super) struct MlflowServer {
    messages: SyncSender<Message>,
    /// Receives a message once the thread is done.
    done: Receiver<()>,
}

impl MlflowServer {
    /// Starts to send to the server that the environment names.
    ///
    /// # Errors
    /// When a variable is missing or invalid.
    pub(super) fn start(start: &Start, failures: &Failures) -> Result<Self, TrackingError> {
        Self::open(start, failures, Client::of_environment()?, experiment_name(), PAUSE)
    }

    /// Starts to send to a server. After a failed request it is left alone for `pause`.
    pub(super) fn open(
        start: &Start,
        failures: &Failures,
        client: Client,
        experiment: String,
        pause: Duration,
    ) -> Result<Self, TrackingError> {
        let (messages, receiver) = sync_channel(QUEUE);
        let (sender, done) = channel();
        let link = Link {
            client,
            experiment,
            run: start.run.clone(),
            artifacts: start.artifacts.to_owned(),
            history: start.history.to_vec(),
            failures: failures.apart(),
            pause,
            not_before: Instant::now(),
            id: None,
            params: Vec::new(),
            rows: Vec::new(),
        };
        std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || link.work(&receiver, &sender))
            .map_err(TrackingError::Thread)?;
        Ok(Self { messages, done })
    }
}

impl Tracker for MlflowServer {
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError> {
        self.messages.try_send(Message::Rows(rows.to_vec())).map_err(|_| TrackingError::Lost(rows.len()))
    }

    fn end(&mut self, ended: Ended) -> Result<(), TrackingError> {
        self.messages.try_send(Message::End(ended)).map_err(|_| TrackingError::Unsent)?;
        self.done.recv_timeout(LAST).map_err(|_| TrackingError::Unsent)
    }
}

/// The content of [`FILE`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Noted {
    pub(super) tracking_uri: String,
    pub(super) run_id: String,
}

impl Noted {
    /// Reads the file in the `artifacts` directory of a run; `None` if it is missing or damaged.
    pub(super) fn read(artifacts: &Path) -> Option<Self> {
        codex_json::from_slice(&atomic_fs::read(&artifacts.join(FILE)).ok()?).ok()
    }
}

/// The thread's side.
struct Link {
    client: Client,
    /// Name of the experiment.
    experiment: String,
    run: Described,
    /// The `artifacts` directory of the run.
    artifacts: PathBuf,
    /// Rows of the ledger before this attempt, for a run that the server does not know yet.
    history: Vec<Row>,
    failures: Failures,
    pause: Duration,
    /// When the server may be asked again.
    not_before: Instant,
    /// Id of the run at the server.
    id: Option<String>,
    /// Parameters that the server does not have yet.
    params: Vec<(String, String)>,
    /// Rows that the server does not have yet.
    rows: Vec<Row>,
}

impl Link {
    fn work(mut self, messages: &Receiver<Message>, done: &Sender<()>) {
        self.deliver();
        loop {
            let settled = self.id.is_some() && self.params.is_empty() && self.rows.is_empty();
            let received = if settled {
                messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                messages.recv_timeout(self.pause)
            };
            let mut next = match received {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                // The attempt died.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut ended = None;
            while let Some(message) = next {
                match message {
                    Message::Rows(rows) => self.keep(rows),
                    Message::End(end) => ended = Some(end),
                }
                next = messages.try_recv().ok();
            }
            if ended.is_some() || Instant::now() >= self.not_before {
                self.deliver();
            }
            if let Some(ended) = ended {
                self.finish(ended);
                // Nobody waits any longer if the server was slow.
                let _ = done.send(());
                return;
            }
        }
    }

    /// Keeps rows until the server has them.
    fn keep(&mut self, mut rows: Vec<Row>) {
        let kept = rows.len().min(MOST_WAITING.saturating_sub(self.rows.len()));
        let lost = rows.len() - kept;
        rows.truncate(kept);
        self.rows.extend(rows);
        if lost > 0 {
            self.failures.observe(Err(TrackingError::Lost(lost)));
        }
    }

    /// Sends what the server does not have.
    fn deliver(&mut self) {
        let sent = self.send();
        if sent.is_err() {
            self.not_before = Instant::now() + self.pause;
        }
        self.failures.observe(sent);
    }

    fn send(&mut self) -> Result<(), TrackingError> {
        let id = self.connect()?;
        while !self.params.is_empty() {
            let count = self.params.len().min(MOST_PARAMS);
            let sent = self.client.log_batch(&json!({ "run_id": id, "params": pairs(&self.params[..count]) }));
            settle(&mut self.params, count, sent)?;
        }
        while !self.rows.is_empty() {
            let count = self.rows.len().min(MOST_METRICS);
            let metrics: Vec<Value> = self.rows[..count].iter().map(metric).collect();
            let sent = self.client.log_batch(&json!({ "run_id": id, "metrics": metrics }));
            settle(&mut self.rows, count, sent)?;
        }
        Ok(())
    }

    /// Returns the id of the run at the server: that of an earlier attempt, or of a new run.
    fn connect(&mut self) -> Result<String, TrackingError> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        if let Some(Noted { tracking_uri, run_id }) = Noted::read(&self.artifacts)
            && self.client.is_at(&tracking_uri)
        {
            let status = Status::Running.name();
            match self.client.post("runs/update", &json!({ "run_id": run_id, "status": status })) {
                Ok(_) => {
                    self.id = Some(run_id.clone());
                    return Ok(run_id);
                }
                // The run was deleted at the server.
                Err(TrackingError::Refused { status: 400 | 404, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let began = self.history.first().map_or_else(Timestamp::now, |row| row.timestamp);
        let created = json!({
            "experiment_id": self.experiment_id()?,
            "user_id": self.run.owner,
            "run_name": self.run.name,
            "start_time": began.as_millisecond(),
            "tags": pairs(&tags(&self.run)),
        });
        let answer = self.client.post("runs/create", &created)?;
        let run_id = text(&answer, "/run/info/run_id").ok_or_else(|| self.client.lacks("runs/create", "run_id"))?;
        self.id = Some(run_id.clone());
        self.params.clone_from(&self.run.params);
        let new = std::mem::take(&mut self.rows);
        self.rows = std::mem::take(&mut self.history);
        self.keep(new);
        let noted = Noted { tracking_uri: self.client.uri.clone(), run_id: run_id.clone() };
        atomic_fs::write_json(&self.artifacts.join(FILE), &noted)?;
        Ok(run_id)
    }

    /// Returns the id of the experiment, which is created if it does not exist.
    fn experiment_id(&self) -> Result<String, TrackingError> {
        let find = || {
            let path = "experiments/get-by-name";
            let answer = self.client.get(path, ("experiment_name", &self.experiment))?;
            text(&answer, "/experiment/experiment_id").ok_or_else(|| self.client.lacks(path, "experiment_id"))
        };
        match find() {
            Err(TrackingError::Refused { status: 404, .. }) => {
                let path = "experiments/create";
                match self.client.post(path, &json!({ "name": self.experiment })) {
                    Ok(answer) => {
                        text(&answer, "/experiment_id").ok_or_else(|| self.client.lacks(path, "experiment_id"))
                    }
                    // Another run created it in the meantime.
                    Err(TrackingError::Refused { status: 400, .. }) => find(),
                    Err(error) => Err(error),
                }
            }
            found => found,
        }
    }

    /// Tells the server how the attempt ended.
    fn finish(&self, ended: Ended) {
        if !self.rows.is_empty() || !self.params.is_empty() {
            self.failures.observe(Err(TrackingError::Unsent));
        }
        if let Some(id) = &self.id {
            let (status, now) = (Status::from(ended).name(), Timestamp::now().as_millisecond());
            let body = json!({ "run_id": id, "status": status, "end_time": now });
            self.failures.observe(self.client.post("runs/update", &body).map(drop));
        }
    }
}

/// Removes what a request held, unless the same request may succeed later.
fn settle<T>(waiting: &mut Vec<T>, count: usize, sent: Result<(), TrackingError>) -> Result<(), TrackingError> {
    if !sent.as_ref().is_err_and(TrackingError::is_transient) {
        waiting.drain(..count);
    }
    sent
}

/// Returns pairs as MLflow's objects.
pub(super) fn pairs(pairs: &[(String, String)]) -> Vec<Value> {
    pairs.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

/// Returns a row as MLflow's metric.
fn metric(row: &Row) -> Value {
    // JSON has no other numbers; protocol buffers name them in strings.
    let value = match row.value {
        value if value.is_finite() => json!(value),
        value if value.is_nan() => json!("NaN"),
        value => json!(if value > 0.0 { "Infinity" } else { "-Infinity" }),
    };
    json!({ "key": series(row), "value": value, "timestamp": row.timestamp.as_millisecond(), "step": row.step })
}

pub(super) fn text(answer: &Value, pointer: &str) -> Option<String> {
    answer.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

/// A server and how to ask it.
pub(super) struct Client {
    agent: Agent,
    /// Without a final slash.
    uri: String,
    token: Option<HeaderValue>,
}

impl Client {
    /// Returns the client of the server at `uri`. `certificates` is a file of trusted certificates, in place of Mozilla's.
    ///
    /// # Errors
    /// The address, the token or the certificates are invalid, or the token would travel in clear text.
    pub(super) fn new(
        uri: Option<&str>,
        token: Option<&str>,
        certificates: Option<PathBuf>,
    ) -> Result<Self, TrackingError> {
        let wrong = |variable, wrong, right| TrackingError::Variable { variable, wrong, right };
        let right = "set it to the address of a tracking server, such as https://mlflow.example.com";
        let uri = uri.ok_or_else(|| wrong(URI, "is not set", right))?.trim().trim_end_matches('/').to_owned();
        let authority = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
        match authority {
            // It may be a password.
            Some(rest) if rest.contains('@') => {
                return Err(wrong(URI, "has a user", "remove the user, and set a token in MLFLOW_TRACKING_TOKEN"));
            }
            Some(rest) if !rest.is_empty() && !rest.contains(['?', '#', ' ']) => {}
            _ => return Err(wrong(URI, "is no address of an HTTP server", right)),
        }
        let token = token.map(hub::bearer).transpose();
        let token = token.map_err(|_| wrong(TOKEN, "holds a character that no token has", "set it to the token alone"));
        let token = token?.flatten();
        if token.is_some() && !uri.starts_with("https://") && !hub::is_loopback(&uri) {
            let right = "use https in MLFLOW_TRACKING_URI, so that the token is not sent in clear text";
            return Err(wrong(TOKEN, "is set, but the server has no https", right));
        }
        Ok(Self { agent: hub::agent(&uri, certificates)?, uri, token })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/2.0/mlflow/{path}", self.uri)
    }

    /// Returns the client of the server that the environment names.
    ///
    /// # Errors
    /// When a variable is missing or invalid.
    pub(super) fn of_environment() -> Result<Self, TrackingError> {
        let certificates = variable("SSL_CERT_FILE").map(PathBuf::from);
        Self::new(variable(URI).as_deref(), variable(TOKEN).as_deref(), certificates)
    }

    /// Whether the server is the one at `uri`.
    pub(super) fn is_at(&self, uri: &str) -> bool {
        self.uri == uri
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, TrackingError> {
        let url = self.url(path);
        let mut request = self.agent.post(&url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        read(url, request.send_json(body))
    }

    pub(super) fn get(&self, path: &str, (name, value): (&str, &str)) -> Result<Value, TrackingError> {
        let url = self.url(path);
        let mut request = self.agent.get(&url).query(name, value);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        read(url, request.call())
    }

    fn log_batch(&self, body: &Value) -> Result<(), TrackingError> {
        self.post("runs/log-batch", body).map(drop)
    }

    pub(super) fn lacks(&self, path: &str, field: &'static str) -> TrackingError {
        TrackingError::Answer { url: self.url(path), field }
    }
}

/// Reads the answer of `url`.
fn read(url: String, answer: Result<Response<Body>, ureq::Error>) -> Result<Value, TrackingError> {
    let no_answer = |source| TrackingError::NoAnswer { url: url.clone(), source: Box::new(source) };
    let mut answer = answer.map_err(no_answer)?;
    let status = answer.status();
    let bytes = answer.body_mut().with_config().limit(MOST_ANSWER).read_to_vec().map_err(no_answer)?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let parts: Vec<String> = ["/error_code", "/message"].iter().filter_map(|part| text(&value, part)).collect();
    let told = parts.join(": ").chars().take(MOST_TOLD).map(|it| if it.is_control() { ' ' } else { it }).collect();
    Err(TrackingError::Refused { url, status: status.as_u16(), told })
}
