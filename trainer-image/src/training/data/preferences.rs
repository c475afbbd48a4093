//! Records of preferences: a prompt, a chosen and a rejected response, each text or messages. Names and forms are those of TRL. Pure.

use codex_configs::DataFields;
use serde_json::{Map, Value};

use super::examples::{messages, text};
use crate::text::{Message, Role};

/// A prompt with two responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Preference {
    /// Texts.
    Texts {
        /// What the model reads.
        prompt: String,
        /// The better and the worse response.
        responses: [String; 2],
    },
    /// Messages.
    Chat {
        /// The conversation before the responses.
        prompt: Vec<Message>,
        /// What follows it, the better and the worse; the last message is the assistant's.
        responses: [Vec<Message>; 2],
    },
}

/// Takes the record from a row. Other fields are ignored.
pub(super) fn preference(row: &mut Map<String, Value>, fields: &DataFields) -> Result<Preference, String> {
    let DataFields { prompt, chosen, rejected, .. } = fields;
    let lists = [chosen, rejected].map(|name| row.get(name).is_some_and(Value::is_array));
    if lists == [false, false] {
        let prompt = text(row, prompt)?;
        return Ok(Preference::Texts { prompt, responses: [text(row, chosen)?, text(row, rejected)?] });
    }
    let mut responses = [messages(row, chosen)?, messages(row, rejected)?];
    let before = if row.get(prompt).is_some_and(|value| !value.is_null()) {
        messages(row, prompt)?
    } else {
        let shared = responses[0].iter().zip(&responses[1]).take_while(|(a, b)| a == b).count();
        // Equal conversations share all messages; the last one is the response.
        let shared = shared.min(responses[0].len().min(responses[1].len()).saturating_sub(1));
        let before = responses[0][..shared].to_vec();
        for messages in &mut responses {
            drop(messages.drain(..shared));
        }
        before
    };
    if before.is_empty() {
        return Err(format!("{prompt} is empty, and {chosen} and {rejected} begin with no message that both have"));
    }
    for (name, messages) in [chosen, rejected].into_iter().zip(&responses) {
        if messages.last().is_none_or(|last| last.role != Role::Assistant) {
            return Err(format!("{name} does not end with a message of the assistant"));
        }
    }
    Ok(Preference::Chat { prompt: before, responses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::data::examples::{
        Example,
        testing::{self, settings},
    };

    fn read(line: &str) -> Result<Preference, String> {
        let settings = settings(codex_configs::DataFormat::Auto);
        let mut records = testing::read("a", line.as_bytes(), &settings, true)?;
        assert_eq!(records.len(), 1);
        let Example::Preference(preference) = records.remove(0) else { panic!("{line}") };
        Ok(preference)
    }

    fn said(role: Role, content: &str) -> Message {
        Message { role, content: content.to_owned() }
    }

    #[test]
    fn texts_and_messages_are_read() {
        let texts = read(r#"{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "score": 3}"#).unwrap();
        let responses = ["4".to_owned(), "5".to_owned()];
        assert_eq!(texts, Preference::Texts { prompt: "2 + 2?".to_owned(), responses });
        let user = r#"{"role": "user", "content": "2 + 2?"}"#;
        let says = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
        let chat = Preference::Chat {
            prompt: vec![said(Role::User, "2 + 2?")],
            responses: [vec![said(Role::Assistant, "4")], vec![said(Role::Assistant, "5")]],
        };
        let explicit = format!(r#"{{"prompt": [{user}], "chosen": [{}], "rejected": [{}]}}"#, says("4"), says("5"));
        assert_eq!(read(&explicit).unwrap(), chat);
        let implicit = format!(r#"{{"chosen": [{user}, {}], "rejected": [{user}, {}]}}"#, says("4"), says("5"));
        assert_eq!(read(&implicit).unwrap(), chat);
        let equal = format!(r#"{{"chosen": [{user}, {0}], "rejected": [{user}, {0}]}}"#, says("4"));
        let Preference::Chat { prompt, responses } = read(&equal).unwrap() else { panic!() };
        assert!(prompt.len() == 1 && responses[0] == responses[1] && responses[0].len() == 1);
    }

    #[test]
    fn what_is_no_preference_is_named_with_its_line() {
        let user = r#"{"role": "user", "content": "2 + 2?"}"#;
        for (line, why) in [
            (r#"{"prompt": "1", "chosen": "2"}"#.to_owned(), "rejected is missing"),
            (r#"{"prompt": "1", "response": "2"}"#.to_owned(), "chosen is missing"),
            (r#"{"chosen": "2", "rejected": "3"}"#.to_owned(), "prompt is missing"),
            (r#"{"prompt": "1", "chosen": 2, "rejected": "3"}"#.to_owned(), "chosen is a number, not a string"),
            (format!(r#"{{"prompt": [{user}], "chosen": "2", "rejected": "3"}}"#), "prompt is an array, not a string"),
            (
                format!(r#"{{"prompt": "1", "chosen": [{user}], "rejected": [{user}]}}"#),
                "prompt is a string, not an array",
            ),
            (
                format!(r#"{{"prompt": [{user}], "chosen": [{user}], "rejected": "3"}}"#),
                "rejected is a string, not an array",
            ),
            (
                format!(r#"{{"prompt": [{user}], "chosen": [{user}], "rejected": []}}"#),
                "chosen does not end with a message of the assistant",
            ),
            (format!(r#"{{"chosen": [{user}], "rejected": [{user}]}}"#), "prompt is empty"),
        ] {
            let told = read(&line).unwrap_err();
            assert!(told.starts_with("a:1: invalid record: ") && told.contains(why), "{line}: {told}");
            assert!(told.contains(r#"write {"prompt", "chosen", "rejected"}"#), "{told}");
        }
        assert_eq!(read("\n").unwrap_err(), "a: no records: write one JSON object per line");
    }
}
