//! Records that a model from elsewhere is trained on: prompts with responses, or conversations. Pure.

use serde::Deserialize;

use crate::{
    tasks::{Difficulty, RecordError, json_lines},
    text::Message,
};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Example {
    /// A prompt and its response.
    Pair {
        /// What the model reads.
        prompt: String,
        /// What it is trained to write.
        response: String,
    },
    /// A conversation. The model is trained to write the assistant's messages.
    Chat(Vec<Message>),
}

/// A line of either kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    response: Option<String>,
    messages: Option<Vec<Message>>,
    #[serde(rename = "difficulty")]
    _difficulty: Option<Difficulty>,
    #[serde(rename = "category")]
    _category: Option<String>,
}

/// What a line must be.
const RIGHT: &str = "{\"prompt\", \"response\"} or {\"messages\": [{\"role\", \"content\"}]}";

/// Reads JSON lines. `file` is the name in errors.
///
/// # Errors
/// [`RecordError`], with the file and the line.
pub(crate) fn parse_examples(file: &str, bytes: &[u8]) -> Result<Vec<Example>, RecordError> {
    json_lines(file, bytes, |line, text| {
        let malformed = |why: String| RecordError::Malformed { file: file.to_owned(), line, why, right: RIGHT };
        let parsed: Line = codex_json::from_str(text)
            .map_err(|source| malformed(source.to_string().replacen(" at line 1 column", " in column", 1)))?;
        match parsed {
            Line { prompt: Some(prompt), response: Some(response), messages: None, .. } => {
                Ok(Example::Pair { prompt, response })
            }
            Line { prompt: None, response: None, messages: Some(messages), .. } => Ok(Example::Chat(messages)),
            Line { messages: Some(_), .. } => Err(malformed("messages stand beside prompt or response".to_owned())),
            Line { prompt: None, response: Some(_), .. } => Err(malformed("prompt is missing".to_owned())),
            Line { prompt: Some(_), response: None, .. } => Err(malformed("response is missing".to_owned())),
            Line { .. } => Err(malformed("neither prompt nor messages are there".to_owned())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Role;

    #[test]
    fn both_kinds_are_read_and_the_wrong_line_is_named() {
        let pair = r#"{"prompt": "1 + 1?", "response": "2"}"#;
        let old = r#"{"prompt": "1 + 1?", "response": "2", "difficulty": "easy", "category": "sum"}"#;
        let chat = r#"{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}"#;
        let read = parse_examples("a", [pair, "", old, chat].join("\n").as_bytes()).unwrap();
        assert_eq!((read.len(), &read[0]), (3, &read[1]));
        let Example::Chat(messages) = &read[2] else { panic!("{read:?}") };
        assert_eq!((messages[1].role, messages[1].content.as_str()), (Role::Assistant, "2"));
        for (wrong, why) in [
            (r#"{"prompt": "1"}"#, "response is missing"),
            (r#"{"response": "1"}"#, "prompt is missing"),
            ("{}", "neither prompt nor messages are there"),
            (r#"{"prompt": "1", "response": "2", "messages": []}"#, "messages stand beside prompt or response"),
            (r#"{"prompt": "1", "response": "2", "answer": "3"}"#, "unknown field `answer`"),
            (r#"["1", "2"]"#, "invalid type: sequence"),
            (r#"{"messages": [["user", "hi"]]}"#, "invalid type: sequence"),
            (r#"{"messages": [{"role": "robot", "content": ""}]}"#, "unknown name, expected one of `system`"),
        ] {
            let told = parse_examples("a", [pair, wrong].join("\n").as_bytes()).unwrap_err().to_string();
            assert!(told.starts_with("a:2: invalid record: ") && told.contains(why), "{told}");
            assert!(told.ends_with(r#"write {"prompt", "response"} or {"messages": [{"role", "content"}]}"#), "{told}");
        }
        assert!(matches!(parse_examples("a", b"\n"), Err(RecordError::Empty { .. })));
    }
}
