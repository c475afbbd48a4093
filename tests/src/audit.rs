//! Reads the API server's audit log while it grows.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;

use crate::{Error, Result};

/// A request that the API server has answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The client.
    pub user: User,
    /// The object; absent for paths such as `/readyz`.
    pub object_ref: Option<ObjectRef>,
    /// The response; absent if the client disconnected.
    pub response_status: Option<Answer>,
    /// The time at which it arrived.
    pub request_received_timestamp: Timestamp,
    /// The time at which it was answered.
    pub stage_timestamp: Timestamp,
    /// Annotations of the API server's plugins.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The client of a request.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// The user name, such as `system:serviceaccount:codex-system:codex-controller`.
    pub username: String,
    /// What its credentials say besides, such as the pod of a service account's token.
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Returns the name of the pod whose service account token the client has; `None` for other credentials.
    pub fn pod(&self) -> Option<&str> {
        self.extra.get("authentication.kubernetes.io/pod-name")?.first().map(String::as_str)
    }
}

/// The object of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// The API group; empty for the core group.
    pub api_group: String,
    /// The plural name of the kind, in lower case.
    pub resource: String,
    /// The subresource, such as `status`; empty for the object itself.
    pub subresource: String,
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The name; empty for collections.
    pub name: String,
}

/// The response to a request.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
}

impl Request {
    /// Returns true if it changed something: a verb that writes, and a response that reports success.
    pub fn is_write(&self) -> bool {
        let writes = ["create", "update", "patch", "delete", "deletecollection"].contains(&self.verb.as_str());
        writes && self.code().is_some_and(|code| (200..300).contains(&code))
    }

    /// Returns true if it created an object.
    pub fn is_creation(&self) -> bool {
        self.is_write() && self.code() == Some(201) && self.object().subresource.is_empty()
    }

    /// Returns true if no role allowed it. A namespace that is being deleted also answers 403; that does not count.
    pub fn is_forbidden(&self) -> bool {
        self.annotations.get("authorization.k8s.io/decision").is_some_and(|decision| decision == "forbid")
    }

    /// Returns the HTTP status of its response.
    pub fn code(&self) -> Option<u16> {
        self.response_status.as_ref().map(|status| status.code)
    }

    /// Returns its object; empty for paths such as `/readyz`.
    pub fn object(&self) -> ObjectRef {
        self.object_ref.clone().unwrap_or_default()
    }

    /// Returns its verb, group, resource and subresource, as a rule of a role has them: `patch codex-ml.dev/evaluations/status`.
    pub fn right(&self) -> String {
        let object = self.object();
        let subresource =
            if object.subresource.is_empty() { String::new() } else { format!("/{}", object.subresource) };
        format!("{} {}/{}{subresource}", self.verb, object.api_group, object.resource)
    }
}

/// Follows the log as it grows.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: BufReader<File>,
    /// The beginning of an incomplete line.
    begun: Vec<u8>,
    /// Requests that were read and not yet returned.
    waiting: VecDeque<Request>,
}

impl Follower {
    /// Starts at the first line.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub fn from_start(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io(format!("opening {}", path.display())))?;
        Ok(Self { path, file: BufReader::new(file), begun: Vec::new(), waiting: VecDeque::new() })
    }

    /// Starts at the present end.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub fn from_now(path: PathBuf) -> Result<Self> {
        let mut follower = Self::from_start(path)?;
        // A line that is being written now is read in full, or skipped because its rest does not parse.
        follower.file.seek(SeekFrom::End(0)).map_err(Error::io("seeking in the audit log"))?;
        Ok(follower)
    }

    /// Returns the requests since the last call, up to the last complete line.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn news(&mut self) -> Result<Vec<Request>> {
        self.read()?;
        Ok(self.waiting.drain(..).collect())
    }

    fn read(&mut self) -> Result<()> {
        loop {
            let read = self.file.read_until(b'\n', &mut self.begun);
            let read = read.map_err(Error::io(format!("reading {}", self.path.display())))?;
            if read == 0 || !self.begun.ends_with(b"\n") {
                return Ok(());
            }
            if let Ok(request) = serde_json::from_slice::<Request>(&self.begun) {
                self.waiting.push_back(request);
            }
            self.begun.clear();
        }
    }

    /// Waits for a request that `wanted` accepts, and drops those before it.
    ///
    /// # Errors
    /// If none arrives in time, or the log cannot be read.
    pub async fn next(&mut self, what: &str, patience: Duration, wanted: impl Fn(&Request) -> bool) -> Result<Request> {
        let deadline = Instant::now() + patience;
        loop {
            self.read()?;
            while let Some(request) = self.waiting.pop_front() {
                if wanted(&request) {
                    return Ok(request);
                }
            }
            if Instant::now() > deadline {
                let state = "the audit log has no such request".to_owned();
                return Err(Error::Timeout { what: what.to_owned(), patience, state });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(verb: &str, resource: &str, code: u16) -> String {
        format!(
            r#"{{"kind":"Event","stage":"ResponseComplete","verb":"{verb}","user":{{"username":"u","groups":[],"extra":{{"authentication.kubernetes.io/pod-name":["p"]}}}},"objectRef":{{"resource":"{resource}","namespace":"n","name":"x","apiGroup":"batch"}},"responseStatus":{{"metadata":{{}},"code":{code}}},"requestReceivedTimestamp":"2026-11-20T10:00:00.000001Z","stageTimestamp":"2026-11-20T10:00:00.000002Z"}}"#
        )
    }

    #[test]
    fn each_complete_line_is_returned_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{}", line("patch", "jobs", 201)).unwrap();
        let mut follower = Follower::from_start(file.path().to_owned()).unwrap();
        let news = follower.news().unwrap();
        assert_eq!(news.len(), 1);
        assert!(news[0].is_write() && news[0].is_creation());
        assert_eq!(news[0].right(), "patch batch/jobs");
        assert_eq!(news[0].user.pod(), Some("p"));
        assert!(news[0].stage_timestamp > news[0].request_received_timestamp);

        let next = line("get", "pods", 200);
        write!(file, "{}", &next[..20]).unwrap();
        assert!(follower.news().unwrap().is_empty());
        writeln!(file, "{}", &next[20..]).unwrap();
        let news = follower.news().unwrap();
        assert_eq!(news.len(), 1);
        assert!(!news[0].is_write());
    }

    #[test]
    fn a_refused_request_is_no_write_and_forbidden_only_by_a_role() {
        let mut refused: Request = serde_json::from_str(&line("create", "jobs", 403)).unwrap();
        assert!(!refused.is_write() && !refused.is_forbidden());
        refused.annotations.insert("authorization.k8s.io/decision".to_owned(), "forbid".to_owned());
        assert!(refused.is_forbidden());
    }
}
