//! Clients of a server: `codex infer`, `codex chat` and `codex bench-serve`. They use the network and the terminal.

mod bench;
mod chat;
mod infer;
mod knee;
mod session_log;
#[cfg(test)]
mod tests;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    time::Duration,
};

use serde_json::Value;

pub use self::{bench::BenchServe, chat::Chat, infer::Infer};
use crate::error::CommandError;

/// The most bytes of a line of a stream, and of an error.
const MAX_LINE: u64 = 4 << 20;

/// The server that a command talks to.
#[derive(Clone, Debug, clap::Args)]
struct Remote {
    /// URL of the server, without /v1.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// API key, if the server needs one. Better in the environment than on the command line, which other users see.
    #[arg(long, value_name = "KEY", env = "CODEX_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Seconds that a request may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = crate::arguments::whole::<u64>(1..=86_400))]
    timeout: u64,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    /// The server refuses it.
    #[error("the server answered {status}: {message}")]
    Refused { status: u16, message: String },
    /// There is no connection, or it broke.
    #[error("{url}: {why}; is a server running there?")]
    Network { url: String, why: String },
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { status: 400..=428 | 430..=499, .. } => Self::bad_input(error),
            error => Self::failed(error),
        }
    }
}

impl Remote {
    fn agent(&self) -> ureq::Agent {
        let timeout = Duration::from_secs(self.timeout);
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(timeout)).build().new_agent()
    }

    /// Sends a JSON body and returns a reader of the answer.
    fn post(&self, agent: &ureq::Agent, path: &str, body: &Value) -> Result<impl std::io::Read + use<>, ClientError> {
        let url = format!("{}{path}", self.url.trim_end_matches('/').trim_end_matches("/v1"));
        let mut request = agent.post(&url).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let network = |why: String| ClientError::Network { url: url.clone(), why };
        let response = request.send(body.to_string().as_bytes()).map_err(|error| network(error.to_string()))?;
        let status = response.status().as_u16();
        let mut reader = response.into_body().into_reader();
        if status == 200 {
            return Ok(reader);
        }
        let mut text = String::new();
        (&mut reader).take(MAX_LINE).read_to_string(&mut text).map_err(|error| network(error.to_string()))?;
        Err(ClientError::Refused { status, message: message(&text) })
    }

    /// Sends a JSON body and passes on the data of each server-sent event until the last one.
    fn stream(
        &self,
        agent: &ureq::Agent,
        path: &str,
        body: &Value,
        mut event: impl FnMut(Value) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut lines = BufReader::new(self.post(agent, path, body)?);
        let network = |why: String| ClientError::Network { url: self.url.clone(), why };
        loop {
            let mut line = Vec::new();
            let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line);
            if read.map_err(|error| network(error.to_string()))? == 0 {
                return Err(network("the stream ended before the answer did".to_owned()));
            }
            let Some(data) = line.trim_ascii().strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                return Ok(());
            }
            let value: Value = serde_json::from_slice(data).map_err(|error| network(error.to_string()))?;
            if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
                return Err(ClientError::Refused {
                    status: 200,
                    message: error["message"].as_str().unwrap_or_default().to_owned(),
                });
            }
            event(value)?;
        }
    }
}

/// Returns the message of an error in one of the shapes that servers have.
fn message(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let error = &value["error"];
    let told = error.as_str().or_else(|| error["message"].as_str()).unwrap_or(text);
    told.chars().take(2000).collect()
}
