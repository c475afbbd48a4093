//! Mutated lines of session files; see [`codex_fuzz`].

mod targets {
    use codex_fuzz::{TEXT, Target};

    use crate::sessions::{Event, SessionId};

    pub(super) fn events() -> Target {
        let session: SessionId = "session".parse().unwrap();
        let seeds = [
            r#"{"ts": 1.5, "session_id": "other", "role": "user", "message": "1+1"}"#,
            r#"{"ts": "2026-11-30T10:00:00Z", "role": "WARN", "message": "slow"}"#,
        ];
        Target::new("events", seeds.map(|line| line.as_bytes().to_vec()).to_vec(), TEXT, move |bytes| {
            Event::parse(bytes, Ok(&session)).is_ok_and(|event| event.line().is_ok())
        })
    }
}

codex_fuzz::tests! { events }
