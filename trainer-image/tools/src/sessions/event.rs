//! An event of a session, and its line of JSON. Pure.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most bytes of a session's name, which is part of a file's name.
const MAX_ID: usize = 128;
/// The most bytes of a message.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// What wrote an event. Words are kept as users of codex-ml know them: roles of a conversation in lower case, levels in upper case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
    /// A program's note.
    Info,
    /// A program's warning.
    Warn,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] = [Self::System, Self::User, Self::Assistant, Self::Tool, Self::Info, Self::Warn];

    /// Returns the word in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Info => "INFO",
            Self::Warn => "WARN",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("use one of {names}")
        })
    }
}

impl TryFrom<String> for Role {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|right| format!("the role is none: {right}"))
    }
}

impl From<Role> for &'static str {
    fn from(role: Role) -> Self {
        role.name()
    }
}

/// The name of a session: it is a file's name, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

impl SessionId {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
        let begins = text.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        if begins && text.len() <= MAX_ID && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "write 1 to {MAX_ID} letters, digits, dots, dashes or underscores, with a letter or digit first, such as chat-1"
        ))
    }
}

impl TryFrom<String> for SessionId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|right| format!("the session_id is none: {right}"))
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

/// An event of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Seconds since 1970.
    pub ts: f64,
    /// The session.
    pub session_id: SessionId,
    /// What wrote it.
    pub role: Role,
    /// The text.
    pub message: String,
}

/// Why a line is no event. No variant quotes the line, which may hold what a user said.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// It has another shape.
    #[error("it is no event ({0}): write {{\"ts\": SECONDS, \"session_id\": ID, \"role\": ROLE, \"message\": TEXT}}")]
    Shape(String),
    /// It names no session, and its file does not either.
    #[error("it has no session_id, and the name of its file is none: {0}")]
    NoSession(String),
    /// The time is out of range.
    #[error("ts is no time: write seconds since 1970, or a time as RFC 3339")]
    Time,
    /// The message is too long.
    #[error("message has {0} bytes: write at most {MAX_MESSAGE}")]
    Long(usize),
}

/// A line as programs write it.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "timestamp")]
    ts: Written,
    session_id: Option<String>,
    role: String,
    #[serde(alias = "content")]
    message: String,
}

/// A time as programs write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(f64),
    Text(Timestamp),
}

impl Event {
    /// Makes an event of now.
    pub fn now(session_id: SessionId, role: Role, message: String) -> Self {
        Self { ts: seconds(Timestamp::now()), session_id, role, message }
    }

    /// Reads a line of JSON. A line without `session_id` belongs to `session`. Other fields than those of an event are ignored.
    ///
    /// # Errors
    /// The line is no event.
    pub fn parse(line: &[u8], session: Result<&SessionId, &str>) -> Result<Self, EventError> {
        let Line { ts, session_id, role, message } =
            codex_json::from_slice(line).map_err(|why| EventError::Shape(why.to_string()))?;
        // Read as texts before, because errors of the parser name a place, and no reason.
        let role = Role::try_from(role).map_err(EventError::Shape)?;
        let session_id = match (session_id, session) {
            (Some(id), _) => SessionId::try_from(id).map_err(EventError::Shape)?,
            (None, Ok(id)) => id.clone(),
            (None, Err(why)) => return Err(EventError::NoSession(why.to_owned())),
        };
        let ts = match ts {
            Written::Seconds(ts) => ts,
            Written::Text(time) => seconds(time),
        };
        time(ts).ok_or(EventError::Time)?;
        if message.len() > MAX_MESSAGE {
            return Err(EventError::Long(message.len()));
        }
        Ok(Self { ts, session_id, role, message })
    }

    /// Returns the event as a line of JSON, with its line feed.
    ///
    /// # Errors
    /// The time is no number.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

/// Returns the seconds since 1970 of a time.
pub(super) fn seconds(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

/// Returns the time of seconds since 1970; `None` if they are out of range.
pub(super) fn time(ts: f64) -> Option<Timestamp> {
    if !ts.is_finite() || ts.abs() > 253_402_207_200.0 {
        return None;
    }
    Timestamp::from_microsecond((ts * 1e6).round() as i64).ok()
}
