//! Debian's Prometheus as a process of this machine, with the configuration and alerts of `manifests/monitoring/plain`, and its
//! API. Does I/O.

mod discovery;

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::{self, File},
    io::ErrorKind,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use codex_metrics::{
    alerts,
    dashboard::{Panel, legend},
    scrape,
};
use kube::{Client, Config};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::task::JoinHandle;
use url::form_urlencoded;

use crate::{Error, Result, picture::Line, wait::until_found};

/// The program of Debian's package `prometheus`.
const PROGRAM: &str = "prometheus";
/// The time between two scrapes of a target. Less than the 15 s of a real installation, because a test is short.
pub const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// The time until the process answers.
const STARTED: Duration = Duration::from_secs(60);
const LOG: &str = "prometheus.log";
const CONFIGURATION: &str = "prometheus.yaml";
const ALERTS: &str = "alerts.yaml";

/// A running Prometheus, whose process is killed when it is dropped.
pub struct Prometheus {
    url: String,
    client: Client,
    process: Child,
    discovery: JoinHandle<()>,
    /// Holds the configuration, the targets, the data and the log.
    folder: tempfile::TempDir,
}

/// The times at which queries are evaluated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// The first one, in Unix time.
    pub start: f64,
    /// The last one, in Unix time.
    pub end: f64,
    /// The seconds between two of them.
    pub step: f64,
}

impl Window {
    /// Returns at most `points` times from `start` until `end`, whole seconds apart.
    pub fn new(start: f64, end: f64, points: u32) -> Self {
        let step = ((end - start) / f64::from(points)).ceil().max(1.0);
        // The last time is exactly the end, at which bars are read.
        Self { start: end - ((end - start) / step).floor() * step, end, step }
    }

    /// Returns the range of rates, in the notation of Prometheus: what Grafana uses for `$__rate_interval`.
    pub fn rate_interval(&self) -> String {
        let scrape = SCRAPE_INTERVAL.as_secs_f64();
        format!("{}s", (self.step + scrape).max(4.0 * scrape).ceil())
    }
}

/// A series of the result of a query.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Series {
    /// Its labels.
    #[serde(rename = "metric")]
    pub labels: BTreeMap<String, String>,
    /// Its values, each with its Unix time.
    #[serde(rename = "values", deserialize_with = "samples")]
    pub samples: Vec<(f64, f64)>,
}

/// What Prometheus scrapes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The labels of its series, such as `job` and `pod`.
    pub labels: BTreeMap<String, String>,
    /// `up`, `down` or `unknown`.
    pub health: String,
    /// Why the last scrape failed; empty if it did not.
    pub last_error: String,
}

/// An alert as Prometheus evaluates it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// `ok` once it was evaluated without an error.
    pub health: String,
    /// Why the last evaluation failed.
    #[serde(default)]
    pub last_error: String,
    /// The series on which it is pending or fires.
    #[serde(default)]
    pub alerts: Vec<Active>,
}

/// A series on which an alert is pending or fires.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Active {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `pending` until it has lasted long enough, then `firing`.
    pub state: String,
}

/// An answer of the API.
#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Matrix {
    result: Vec<Series>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Targets {
    active_targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// Reads pairs of a time and of a number in text, as which Prometheus writes NaN and infinity, too.
fn samples<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<(f64, f64)>, D::Error> {
    let pairs = Vec::<(f64, String)>::deserialize(deserializer)?;
    let parse = |(at, value): (f64, String)| Ok((at, value.parse().map_err(serde::de::Error::custom)?));
    pairs.into_iter().map(parse).collect()
}

/// Returns the Unix time in seconds.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Prometheus {
    /// Returns whether the program is installed.
    ///
    /// # Errors
    /// If it is and cannot be started.
    pub fn is_installed() -> Result<bool> {
        match Command::new(PROGRAM).arg("--version").output() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("starting {PROGRAM}"))(error)),
        }
    }

    /// Starts it on a free port of the loopback device. It scrapes the controller, and trainers and servers in `namespace`, of
    /// the cluster of `cluster`.
    ///
    /// # Errors
    /// If it cannot be started or does not answer.
    pub async fn start(cluster: Client, namespace: &str) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let mut configuration = scrape::configuration(ALERTS);
        let interval = format!("{}s", SCRAPE_INTERVAL.as_secs());
        configuration["global"] =
            json!({ "scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval });
        let jobs = discovery::replace(&mut configuration, namespace);
        write(&folder.path().join(CONFIGURATION), &configuration)?;
        write(&folder.path().join(ALERTS), &json!({ "groups": alerts::groups() }))?;

        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(Error::io("finding a free port of 127.0.0.1"))?;
        let unusable = |error: &dyn Display| Error::Prometheus(format!("{address}: {error}"));
        let own = format!("http://{address}");
        let url = own.parse().map_err(|error| unusable(&error))?;
        // Without TLS, it needs no certificate authorities.
        let mut config = Config::new(url);
        config.root_cert = Some(Vec::new());
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        let log = File::create(folder.path().join(LOG)).map_err(Error::io(format!("creating {LOG}")))?;
        let mut command = Command::new(PROGRAM);
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.args(["--config.file", CONFIGURATION, "--storage.tsdb.path", "data"]);
        command.arg(format!("--web.listen-address={address}"));
        let process =
            command.spawn().map_err(Error::io(format!("starting {PROGRAM}; install Debian's package prometheus")))?;
        let discovery = tokio::spawn(discovery::follow(cluster, jobs, folder.path().to_owned()));
        let mut started = Self { url: own, client, process, discovery, folder };
        until_found("Prometheus answers", STARTED, async || {
            if let Ok(Some(status)) = started.process.try_wait() {
                return Err(Error::Prometheus(format!("it ended with {status}: {}", started.last_words())));
            }
            let ready = http::Request::get("/-/ready").body(Vec::new()).map_err(kube::Error::HttpError)?;
            Ok(started.client.request_text(ready).await.ok())
        })
        .await?;
        Ok(started)
    }

    /// Returns its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Evaluates a query at each time of the window.
    ///
    /// # Errors
    /// If Prometheus refuses the query.
    pub async fn query_range(&self, query: &str, window: Window) -> Result<Vec<Series>> {
        let Window { start, end, step } = window;
        let [start, end, step] = [start, end, step].map(|number| number.to_string());
        let parameters = [("query", query), ("start", &start), ("end", &end), ("step", &step)];
        Ok(self.get::<Matrix>("query_range", &parameters).await?.result)
    }

    /// Evaluates the queries of a panel, for objects in `namespace`, and returns its series.
    ///
    /// # Errors
    /// If Prometheus refuses a query.
    pub async fn panel(&self, panel: &Panel, window: Window, namespace: &str) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for (query, template) in &panel.queries {
            let query = query.with_variables(&window.rate_interval(), namespace);
            for series in self.query_range(&query, window).await? {
                lines.push(Line { legend: legend(template, &series.labels), points: series.samples });
            }
        }
        Ok(lines)
    }

    /// Lists what it scrapes now.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub async fn targets(&self) -> Result<Vec<Target>> {
        Ok(self.get::<Targets>("targets", &[("state", "active")]).await?.active_targets)
    }

    /// Waits until it has scraped a pod of this job, and returns the target.
    ///
    /// # Errors
    /// If `patience` ends first.
    pub async fn scraped(&self, job: &str, patience: Duration) -> Result<Target> {
        until_found(&format!("Prometheus has scraped {job}"), patience, async || {
            let is_up = |target: &Target| target.health == "up" && target.labels.get("job").is_some_and(|it| it == job);
            Ok(self.targets().await?.into_iter().find(is_up))
        })
        .await
    }

    /// Lists the alerts that it evaluates.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let groups = self.get::<Rules>("rules", &[("type", "alert")]).await?.groups;
        Ok(groups.into_iter().flat_map(|group| group.rules).collect())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T> {
        let parameters = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let request = http::Request::get(format!("/api/v1/{path}?{parameters}")).body(Vec::new());
        let answer = self.client.request::<Answer<T>>(request.map_err(kube::Error::HttpError)?).await;
        answer.map(|answer| answer.data).map_err(|error| Error::Prometheus(format!("{path}: {error}")))
    }

    /// Returns the end of its log.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.discovery.abort();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes a file of YAML. JSON is YAML.
fn write(path: &Path, value: &serde_json::Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).map_err(Error::io(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_at_its_end_and_has_few_points() {
        let window = Window::new(1000.4, 1100.0, 60);
        assert_eq!(window, Window { start: 1002.0, end: 1100.0, step: 2.0 });
        assert_eq!(window.rate_interval(), "4s");
        assert_eq!(Window::new(0.0, 600.0, 60).rate_interval(), "11s");
        assert_eq!(Window::new(0.0, 30.0, 60), Window { start: 0.0, end: 30.0, step: 1.0 });
    }

    #[test]
    fn answers_of_the_api_are_read() {
        let answer = r#"{"status": "success", "data": {"resultType": "matrix", "result":
            [{"metric": {"pod": "a"}, "values": [[1435781430.781, "1.5"], [1435781431, "NaN"], [1435781432, "+Inf"]]}]}}"#;
        let series = serde_json::from_str::<Answer<Matrix>>(answer).unwrap().data.result;
        assert_eq!(series[0].labels["pod"], "a");
        assert_eq!(series[0].samples[0], (1_435_781_430.781, 1.5));
        assert!(series[0].samples[1].1.is_nan() && series[0].samples[2].1.is_infinite());
        let answer = r#"{"status": "success", "data": {"groups": [{"name": "codex", "rules": [{"state": "firing", "name": "A",
            "query": "x > 0", "labels": {}, "alerts": [{"labels": {"pod": "a"}, "state": "firing", "value": "1"}],
            "health": "err", "lastError": "why", "type": "alerting"}]}]}}"#;
        let rule = &serde_json::from_str::<Answer<Rules>>(answer).unwrap().data.groups[0].rules[0];
        assert_eq!(
            (rule.health.as_str(), rule.last_error.as_str(), rule.alerts[0].state.as_str()),
            ("err", "why", "firing")
        );
    }
}
