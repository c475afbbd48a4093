//! Which events a command takes. Pure, but for the clock of durations.

use codex::arguments::{duration, timestamp, whole};
use jiff::Timestamp;
use rusqlite::types::Value;

use super::event::{Event, Role, SessionId, seconds, time};

/// Which events are taken.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only events of this role: system, user, assistant, tool, INFO or WARN. May be repeated.
    #[arg(long, value_name = "ROLE", value_parser = clap::value_parser!(Role))]
    pub role: Vec<Role>,
    /// Only events whose message has this text in it, in the same case.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub contains: Option<String>,
    /// Only events at or after this time: RFC 3339, seconds since 1970, or how long ago, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<f64>,
    /// Only events before this time: RFC 3339, seconds since 1970, or how long ago, such as 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<f64>,
    /// The most events, the first ones of what is left.
    #[arg(long, value_name = "COUNT", value_parser = whole::<u64>(1..=u64::from(u32::MAX)))]
    pub limit: Option<u64>,
}

/// Parses a time, or how long ago it is.
fn moment(text: &str) -> Result<f64, String> {
    if let Ok(ts) = text.parse::<f64>() {
        return time(ts).map(|_| ts).ok_or_else(|| RIGHT.to_owned());
    }
    if let Ok(time) = timestamp(text) {
        return Ok(seconds(time));
    }
    let ago = duration(text).map_err(|_| RIGHT.to_owned())?;
    Timestamp::now().checked_sub(ago.0).map(seconds).map_err(|_| RIGHT.to_owned())
}

const RIGHT: &str =
    "write a time as RFC 3339, such as 2026-11-28T09:00:00Z, seconds since 1970, or how long ago, such as 2h or 30d";

impl Filter {
    /// Returns the conditions in SQL, each begun by ` AND `, and the values of their parameters.
    pub(super) fn sql(&self, session: Option<&SessionId>) -> (String, Vec<Value>) {
        let (mut sql, mut values) = (String::new(), Vec::new());
        if let Some(id) = session {
            sql.push_str(" AND session_id = ?");
            values.push(Value::Text(id.as_str().to_owned()));
        }
        if !self.role.is_empty() {
            let marks = vec!["?"; self.role.len()].join(", ");
            sql.extend([" AND role IN (", &marks, ")"]);
            values.extend(self.role.iter().map(|role| Value::Text(role.name().to_owned())));
        }
        if let Some(text) = &self.contains {
            sql.push_str(" AND instr(message, ?) > 0");
            values.push(Value::Text(text.clone()));
        }
        if let Some(since) = self.since {
            sql.push_str(" AND ts >= ?");
            values.push(Value::Real(since));
        }
        if let Some(until) = self.until {
            sql.push_str(" AND ts < ?");
            values.push(Value::Real(until));
        }
        (sql, values)
    }

    /// Whether an event is taken, but for the limit.
    pub fn takes(&self, event: &Event) -> bool {
        (self.role.is_empty() || self.role.contains(&event.role))
            && self.contains.as_ref().is_none_or(|text| event.message.contains(text.as_str()))
            && self.since.is_none_or(|since| event.ts >= since)
            && self.until.is_none_or(|until| event.ts < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_three_forms() {
        assert_eq!(moment("1764320400.5"), Ok(1_764_320_400.5));
        assert_eq!(moment("2025-11-28T09:00:00Z"), Ok(1_764_320_400.0));
        let now = seconds(Timestamp::now());
        assert!((now - 7200.0 - moment("2h").unwrap()).abs() < 60.0);
        for text in ["", "yesterday", "nan", "inf", "1e300", "2y"] {
            assert!(moment(text).unwrap_err().contains("such as 2h"), "{text}");
        }
    }
}
