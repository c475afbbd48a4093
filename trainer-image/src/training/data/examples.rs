//! Records that a model is trained on: prompts with responses, conversations, or plain text, under the configured names of
//! their fields. Pure.

use std::ops::ControlFlow;

use codex_configs::{DataFields, DataSettings};
use serde_json::{Map, Value};

use super::{
    DataError,
    formats::each_row,
    input::Input,
    preferences::{Preference, preference},
};
use crate::{
    tasks::RecordError,
    text::{Message, Role},
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
    /// Text, all of which the model is trained to write.
    Text(String),
    /// A prompt and two responses, of which the model is trained to prefer one.
    Preference(Preference),
}

impl Example {
    /// Returns all texts of the record, in their order.
    pub(crate) fn texts(&self) -> Vec<&str> {
        match self {
            Self::Pair { prompt, response } => vec![prompt, response],
            Self::Text(text) => vec![text],
            Self::Chat(messages) => contents(messages).collect(),
            Self::Preference(Preference::Texts { prompt, responses: [chosen, rejected] }) => {
                vec![prompt, chosen, rejected]
            }
            Self::Preference(Preference::Chat { prompt, responses: [chosen, rejected] }) => {
                contents(prompt).chain(contents(chosen)).chain(contents(rejected)).collect()
            }
        }
    }

    /// Returns what the record asks: its prompt, the messages of its users, or its text.
    pub(crate) fn asked(&self) -> Vec<&str> {
        match self {
            Self::Pair { prompt, .. } | Self::Preference(Preference::Texts { prompt, .. }) => vec![prompt],
            Self::Chat(messages) | Self::Preference(Preference::Chat { prompt: messages, .. }) => {
                messages.iter().filter(|message| message.role == Role::User).map(|it| it.content.as_str()).collect()
            }
            Self::Text(text) => vec![text],
        }
    }

    /// Returns what the record asks, and all its other texts; both joined by line feeds. A text asks nothing.
    pub(crate) fn question_and_rest(&self) -> (String, String) {
        match self {
            Self::Pair { prompt, response } => (prompt.clone(), response.clone()),
            Self::Text(text) => (String::new(), text.clone()),
            Self::Chat(messages) => parts(messages.iter()),
            Self::Preference(Preference::Texts { prompt, responses }) => (prompt.clone(), responses.join("\n")),
            Self::Preference(Preference::Chat { prompt, responses }) => {
                parts(prompt.iter().chain(responses.iter().flatten()))
            }
        }
    }

    /// Returns the bytes of its texts.
    pub(crate) fn size(&self) -> usize {
        self.texts().into_iter().map(str::len).sum()
    }
}

/// Returns the messages of users, and all others.
fn parts<'a>(messages: impl Iterator<Item = &'a Message>) -> (String, String) {
    let (asked, rest): (Vec<&Message>, Vec<&Message>) = messages.partition(|message| message.role == Role::User);
    let joined = |messages: Vec<&Message>| messages.iter().map(|it| it.content.as_str()).collect::<Vec<_>>().join("\n");
    (joined(asked), joined(rest))
}

/// Fields that make a record without any configured name: what question-and-answer data is called on Hugging Face's hub.
const QUESTION: [&str; 2] = ["question", "answer"];

/// Reads the records of an input, which are preferences or none of them is, with the number of the line or row of each, from 1,
/// until `each` breaks.
///
/// # Errors
/// When the input cannot be read or a record is invalid, with the file and the line; the errors of `each`.
pub(crate) fn each_record(
    input: &Input,
    settings: &DataSettings,
    preferences: bool,
    mut each: impl FnMut(usize, Example) -> Result<ControlFlow<()>, DataError>,
) -> Result<(), DataError> {
    let fields = &settings.fields;
    let file = || input.label.clone();
    let mut empty = true;
    each_row(input, settings.format, &fields.text, &mut |line, mut row| {
        empty = false;
        let read =
            if preferences { preference(&mut row, fields).map(Example::Preference) } else { example(&mut row, fields) };
        let malformed = |why| RecordError::Malformed { file: file(), line, why, right: right(fields, preferences) };
        each(line, read.map_err(malformed)?)
    })?;
    if empty { Err(RecordError::Empty { file: file() }.into()) } else { Ok(()) }
}

/// Returns what a record must be.
fn right(fields: &DataFields, preferences: bool) -> String {
    let DataFields { prompt, response, messages, text, chosen, rejected } = fields;
    if preferences {
        return format!(
            "{{\"{prompt}\", \"{chosen}\", \"{rejected}\"}}, all strings or all lists of {{\"role\", \"content\"}}, or name \
             other fields in data.fields"
        );
    }
    format!(
        "{{\"{prompt}\", \"{response}\"}} or {{\"{messages}\": [{{\"role\", \"content\"}}]}} or {{\"{text}\"}}, or name other fields \
         in data.fields"
    )
}

/// Yields the texts of messages.
fn contents(messages: &[Message]) -> impl Iterator<Item = &str> {
    messages.iter().map(|message| message.content.as_str())
}

/// Takes the record from a row. Fields without a meaning here are ignored: real data has identifiers and labels beside them.
fn example(row: &mut Map<String, Value>, fields: &DataFields) -> Result<Example, String> {
    let has = |name: &str| row.get(name).is_some_and(|value| !value.is_null());
    let names = match (has(&fields.prompt), has(&fields.response), has(&fields.messages), has(&fields.text)) {
        (true, true, false, _) => [fields.prompt.as_str(), fields.response.as_str()],
        (false, false, true, _) => return messages(row, &fields.messages).map(Example::Chat),
        (false, false, false, _) if QUESTION.iter().all(|name| has(name)) => QUESTION,
        (false, false, false, true) => return text(row, &fields.text).map(Example::Text),
        (_, _, true, _) => {
            let DataFields { prompt, response, messages, .. } = fields;
            return Err(format!("{messages} stand beside {prompt} or {response}"));
        }
        (true, false, ..) if has(&fields.chosen) && has(&fields.rejected) => {
            let DataFields { response, chosen, rejected, .. } = fields;
            return Err(format!(
                "{response} is missing; {chosen} and {rejected} are preferences, from which training.method=dpo learns"
            ));
        }
        (true, false, ..) => return Err(format!("{} is missing", fields.response)),
        (false, true, ..) => return Err(format!("{} is missing", fields.prompt)),
        (false, false, false, false) => {
            let names: Vec<_> = row.keys().map(|name| format!("{name:?}")).collect();
            return Err(format!(
                "no field that is read; there is {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ));
        }
    };
    Ok(Example::Pair { prompt: text(row, names[0])?, response: text(row, names[1])? })
}

pub(super) fn text(row: &mut Map<String, Value>, name: &str) -> Result<String, String> {
    match row.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{name} is {}, not a string", kind(&other))),
        None => Err(format!("{name} is missing")),
    }
}

pub(super) fn messages(row: &mut Map<String, Value>, name: &str) -> Result<Vec<Message>, String> {
    let value = row.remove(name).unwrap_or_default();
    let Value::Array(items) = value else { return Err(format!("{name} is {}, not an array", kind(&value))) };
    let message =
        |(at, item): (usize, Value)| codex_json::from_value(item).map_err(|source| format!("{name}[{at}]: {source}"));
    items.into_iter().enumerate().map(message).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use codex_configs::{
        AugmentationSettings, DataFormat, HeldOutShare, Loss, ReplaySampling, ReplaySettings, SafetySettings,
    };

    use super::*;

    /// Returns settings with the default names of fields, which select every record.
    pub(crate) fn settings(format: DataFormat) -> DataSettings {
        let name = |name: &str| name.to_owned();
        let fields = DataFields {
            prompt: name("prompt"),
            response: name("response"),
            chosen: name("chosen"),
            rejected: name("rejected"),
            messages: name("messages"),
            text: name("text"),
        };
        let validation = HeldOutShare { share: 0.0, seed: 0 };
        let loss = Loss::Responses;
        let sampling = ReplaySampling::Uniform;
        let replay = ReplaySettings { buffer: 1, ratio: 0.0, interleave_every: 1, sampling };
        let languages = Vec::new();
        let augmentation = AugmentationSettings { probability: 0.0, rate: 0.1, variants: 1, kinds: Vec::new() };
        let (weights, deduplicate, safety) = (None, false, SafetySettings::default());
        DataSettings { format, fields, loss, weights, deduplicate, languages, safety, validation, replay, augmentation }
    }

    /// Reads the records of a file with this name and these bytes. The error is its chain.
    pub(crate) fn read(
        file: &str,
        bytes: &[u8],
        settings: &DataSettings,
        preferences: bool,
    ) -> Result<Vec<Example>, String> {
        let mut examples = Vec::new();
        let input = Input::of_bytes("a", file, bytes);
        let read = each_record(&input, settings, preferences, |_, example| {
            examples.push(example);
            Ok(ControlFlow::Continue(()))
        });
        read.map(|()| examples).map_err(|error| crate::error::chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use codex_configs::DataFormat;

    use super::{
        testing::{read as read_with, settings},
        *,
    };

    fn read(file: &str, bytes: &[u8]) -> Result<Vec<Example>, String> {
        read_with(file, bytes, &settings(DataFormat::Auto), false)
    }

    fn pair(prompt: &str, response: &str) -> Example {
        Example::Pair { prompt: prompt.to_owned(), response: response.to_owned() }
    }

    #[test]
    fn every_kind_is_read_and_the_wrong_line_is_named() {
        let plain = r#"{"prompt": "1 + 1?", "response": "2"}"#;
        let old = r#"{"prompt": "1 + 1?", "response": "2", "difficulty": "easy", "category": "sum"}"#;
        let question = r#"{"id": 7, "question": "1 + 1?", "answer": "2"}"#;
        let chat = r#"{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}"#;
        let text = r#"{"text": "one", "url": null}"#;
        let examples = read("a", [plain, "", old, question, chat, text].join("\n").as_bytes()).unwrap();
        assert_eq!(examples[..3], [pair("1 + 1?", "2"), pair("1 + 1?", "2"), pair("1 + 1?", "2")]);
        let Example::Chat(messages) = &examples[3] else { panic!("{examples:?}") };
        assert_eq!((messages[1].role, messages[1].content.as_str()), (Role::Assistant, "2"));
        assert_eq!(examples[4], Example::Text("one".to_owned()));
        for (wrong, why) in [
            (r#"{"prompt": "1"}"#, "response is missing"),
            (r#"{"response": "1"}"#, "prompt is missing"),
            (
                r#"{"prompt": "1", "chosen": "2", "rejected": "3"}"#,
                "preferences, from which training.method=dpo learns",
            ),
            ("{}", "no field that is read; there is none"),
            (r#"{"input": "1", "output": "2"}"#, r#"no field that is read; there is "input", "output""#),
            (r#"{"prompt": "1", "response": 2}"#, "response is a number, not a string"),
            (r#"{"prompt": "1", "response": "2", "messages": []}"#, "messages stand beside prompt or response"),
            (r#"["1", "2"]"#, "invalid type: sequence"),
            (r#"{"messages": [["user", "hi"]]}"#, "messages[0]: invalid type: sequence"),
            (r#"{"messages": [{"role": "robot", "content": ""}]}"#, "unknown name, expected one of `system`"),
        ] {
            let told = read("a", [plain, wrong].join("\n").as_bytes()).unwrap_err();
            assert!(told.starts_with("a:2: invalid record: ") && told.contains(why), "{told}");
            assert!(told.contains(r#"write {"prompt", "response"} or {"messages""#), "{told}");
        }
        assert_eq!(read("a", b"\n").unwrap_err(), "a: no records: write one JSON object per line");
    }

    #[test]
    fn fields_can_have_other_names() {
        let mut settings = settings(DataFormat::Auto);
        settings.fields.prompt = "instruction".to_owned();
        settings.fields.response = "output".to_owned();
        let line = br#"{"instruction": "a", "output": "b", "prompt": "c"}"#;
        assert_eq!(read_with("a", line, &settings, false).unwrap(), [pair("a", "b")]);
    }

    #[test]
    fn tables_text_arrays_and_compressed_files_are_read() {
        let both = [pair("1, 2", "3\n4"), pair("5", "6")];
        let csv = "prompt,id,response\r\n\"1, 2\",7,\"3\n4\"\n5,8,6\n";
        assert_eq!(read("a.csv", csv.as_bytes()).unwrap(), both);
        assert_eq!(read("a.tsv", b"prompt\tresponse\n1, 2\t\"3\n4\"\n5\t6\n").unwrap(), both);
        let told = read("a.csv", b"prompt,response\n1,2\n3,4,5\n").unwrap_err();
        assert!(told.starts_with("a.csv:3: ") && told.contains("2 fields"), "{told}");
        for (wrong, why) in [
            ("[{}, 5]", "a.json:1: invalid record: no field"),
            (r#"[{"text": "a"}, 5]"#, "a.json:2: invalid record: not an object; write an array of objects"),
            ("[{\"text\": \"a\"}\n,", "a.json:2: invalid record: "),
        ] {
            let told = read("a.json", wrong.as_bytes()).unwrap_err();
            assert!(told.starts_with(why), "{told}");
        }
        let array = br#"[{"prompt": "1, 2", "response": "3\n4"}, {"prompt": "5", "response": "6"}]"#;
        assert_eq!(read("a.json", array).unwrap(), both);
        let texts = [Example::Text("one".to_owned()), Example::Text("two words".to_owned())];
        assert_eq!(read("a.txt", b"one\n\ntwo words\n").unwrap(), texts);
        let lines = b"{\"text\": \"one\"}\n{\"text\": \"two words\"}\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(lines).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read("a.jsonl.gz", &gzip).unwrap(), texts);
        assert_eq!(read("a.jsonl.zst", &zstd::encode_all(&lines[..], 1).unwrap()).unwrap(), texts);
        let told = read("a.gz", &gzip[..gzip.len() - 9]).unwrap_err();
        assert!(told.starts_with("a.gz: the gzip file cannot be unpacked"), "{told}");
        // The name of a compressed file tells the format of its content.
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(csv.as_bytes()).unwrap();
        assert_eq!(read("a.csv.gz", &gzip.finish().unwrap()).unwrap(), both);
    }

    /// A compressed file without a line feed would otherwise be in memory as a whole.
    #[test]
    fn endless_lines_are_refused() {
        let mut zstd = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        for _ in 0..65 {
            zstd.write_all(&vec![b' '; 1 << 20]).unwrap();
        }
        let told = read("a.jsonl.zst", &zstd.finish().unwrap()).unwrap_err();
        assert_eq!(
            told,
            "a.jsonl.zst:1: the record has more than 64 MiB: check the format of the file, or split the record"
        );
    }

    #[test]
    fn a_compressed_parquet_file_is_read() {
        let packed = zstd::encode_all(&include_bytes!("fixtures/chat.parquet")[..], 1).unwrap();
        assert_eq!(read("chat.parquet.zst", &packed).unwrap().len(), 3);
    }

    /// The file was written by `parquet.py` beside it.
    #[test]
    fn parquet_of_pyarrow_is_read() {
        let examples = read("chat.parquet", include_bytes!("fixtures/chat.parquet")).unwrap();
        assert_eq!(examples.len(), 3);
        let Example::Chat(messages) = &examples[2] else { panic!("{examples:?}") };
        assert_eq!((messages.len(), messages[1].content.as_str()), (2, "2 + 2 = 4"));
        let told = read("a.parquet", b"PAR1 and nothing else").unwrap_err();
        assert!(told.starts_with("a.parquet: the Parquet file cannot be read"), "{told}");
    }
}
