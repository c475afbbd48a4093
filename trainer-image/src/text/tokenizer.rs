//! The tokenizer of a model: one of two kinds, with its files. Pure, but for [`Tokenizer::load`].

use std::{borrow::Cow, collections::BTreeMap, path::Path, sync::Arc};

use codex_engine::Vocabulary;
use serde::Deserialize;

use super::{
    Clock, Conversation, Message, Rendered, Role, TextStream, TokenizerError, Turns,
    characters::Characters,
    chat::Chat,
    fast::{Allowed, Fast},
    jinja::Template,
};
use crate::atomic_fs;

const TOKENIZER: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "tokenizer.model";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Files with the ids that end a response.
const ENDS: [&str; 2] = ["config.json", "generation_config.json"];
/// Files of a tokenizer, which are written as they were read.
const FILES: [&str; 8] = [
    TOKENIZER,
    CONFIG,
    TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    SENTENCEPIECE,
];

/// Converts text to token ids and back. Clones share their data.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Characters(Arc<Characters>),
    Fast(Arc<Loaded>),
}

/// A tokenizer that came with a model. A clone shares what is large.
#[derive(Clone, Debug)]
struct Loaded {
    fast: Arc<Fast>,
    /// The chat template, or why there is none.
    chat: Result<Chat, Missing>,
    ends: Vec<u32>,
    pad: Option<u32>,
    files: Arc<BTreeMap<String, Vec<u8>>>,
}

/// Why a model has no chat template.
#[derive(Clone, Debug)]
enum Missing {
    Absent,
    Invalid(String),
}

/// `tokenizer_config.json`, as far as it is used.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    pad_token: Option<Special>,
    unk_token: Option<Special>,
    sep_token: Option<Special>,
    cls_token: Option<Special>,
    mask_token: Option<Special>,
}

/// One template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// A special token: its text, or an object with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Added { content: String },
}

impl Special {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

/// The key of `config.json` and `generation_config.json` with the ids that end a response.
#[derive(Default, Deserialize)]
struct Ends {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Tokenizer {
    /// Makes the tokenizer of models that are trained from random weights: [`PAD`](super::PAD) 0, [`UNKNOWN`](super::UNKNOWN)
    /// 1, line feed 2, then ASCII from space to tilde.
    ///
    /// # Errors
    /// When the library refuses the vocabulary.
    pub fn characters() -> Result<Self, TokenizerError> {
        Ok(Self { kind: Kind::Characters(Arc::new(Characters::new()?)) })
    }

    /// Makes the tokenizer of a model from the files of its directory: `tokenizer.json`, and if they are there,
    /// `tokenizer_config.json`, `chat_template.jinja`, and the end tokens of `config.json` and `generation_config.json`. Other
    /// files are ignored.
    ///
    /// # Errors
    /// A file is missing or invalid. An invalid chat template is an error only when it is used.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, TokenizerError> {
        let missing =
            if files.contains_key(SENTENCEPIECE) { TokenizerError::SentencePiece } else { TokenizerError::NoTokenizer };
        let json = files.get(TOKENIZER).ok_or(missing)?;
        // The library panics at JSON whose strings are not Unicode, and at normalizers with wrong fields. It quotes files that are
        // not of its kind.
        let unreadable = |error: serde_json::Error| TokenizerError::Unreadable(error.to_string());
        serde_json::from_slice::<serde_json::Value>(json).map_err(unreadable)?;
        codex_json::from_slice::<Recognized>(json).map_err(unreadable)?;
        let library = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        let panicked = |_| TokenizerError::Unreadable("a component does not have the fields of its type".to_owned());
        let library = library.map_err(panicked)?;
        let library = library.map_err(|error| TokenizerError::Unreadable(error.to_string().replace('\n', " ")))?;
        if let Some(characters) = Characters::recognize(&library)? {
            return Ok(Self { kind: Kind::Characters(Arc::new(characters)) });
        }
        let fast = Arc::new(Fast::new(library)?);
        let config: Config = parse(files, CONFIG)?;
        let mut ends = Vec::new();
        for file in ENDS {
            match parse::<Ends>(files, file)?.eos_token_id {
                Some(Ids::One(id)) => ends.push(id),
                Some(Ids::Several(ids)) => ends.extend(ids),
                None => {}
            }
        }
        ends.extend(config.eos_token.as_ref().and_then(|token| fast.id(token.text())));
        let mut seen = std::collections::BTreeSet::new();
        ends.retain(|id| seen.insert(*id));
        let pad = config.pad_token.as_ref().and_then(|token| fast.id(token.text()));
        let chat = chat(files.get(TEMPLATE).map(Vec::as_slice), &config)?;
        let kept = FILES.iter().filter_map(|name| Some(((*name).to_owned(), files.get(*name)?.clone())));
        Ok(Self { kind: Kind::Fast(Arc::new(Loaded { fast, chat, ends, pad, files: Arc::new(kept.collect()) })) })
    }

    /// Reads the tokenizer of a model directory; see [`from_files`](Self::from_files).
    ///
    /// # Errors
    /// A file cannot be read, is missing or invalid.
    pub fn load(directory: &Path) -> Result<Self, TokenizerError> {
        let mut files = BTreeMap::new();
        for name in FILES.into_iter().chain(ENDS) {
            match atomic_fs::read(&directory.join(name)) {
                Ok(bytes) => drop(files.insert(name.to_owned(), bytes)),
                Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::from_files(&files)
    }

    /// Returns the files of the tokenizer by their names, as they were read. For the characters, only `tokenizer.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` cannot be encoded.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>, TokenizerError> {
        match &self.kind {
            Kind::Characters(characters) => Ok(BTreeMap::from([(TOKENIZER.to_owned(), characters.to_json()?)])),
            Kind::Fast(loaded) => Ok(loaded.files.as_ref().clone()),
        }
    }

    /// Writes the tokenizer's [`files`](Self::files) into a directory, each whole or not at all.
    ///
    /// # Errors
    /// When the file system returns an error.
    pub fn write(&self, directory: &Path) -> Result<(), TokenizerError> {
        for (name, bytes) in self.files()? {
            atomic_fs::write(&directory.join(name), &bytes).map_err(TokenizerError::from)?;
        }
        Ok(())
    }

    /// Returns a tokenizer whose chat template sees another time as now. New tokenizers have [`Clock::Fixed`].
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        match self.kind {
            Kind::Fast(mut loaded) => {
                if let Ok(chat) = &mut Arc::make_mut(&mut loaded).chat {
                    chat.clock = clock;
                }
                Self { kind: Kind::Fast(loaded) }
            }
            kind @ Kind::Characters(_) => Self { kind },
        }
    }

    /// Returns whether tokens are single characters.
    pub fn is_characters(&self) -> bool {
        matches!(self.kind, Kind::Characters(_))
    }

    /// Returns the size of the vocabulary: one more than the largest id.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Characters(characters) => characters.vocabulary(),
            Kind::Fast(loaded) => loaded.fast.size(),
        }
    }

    /// Returns the vocabulary for a new model's configuration.
    ///
    /// # Errors
    /// No token ends a response.
    pub fn for_model(&self) -> Result<Vocabulary, TokenizerError> {
        let end = *self.ends().first().ok_or(TokenizerError::NoEnd)?;
        Ok(Vocabulary { size: self.vocabulary(), end, pad: self.pad().unwrap_or(end) })
    }

    /// Returns the ids of the tokens that end a response, in the order of `config.json`, `generation_config.json` and
    /// `tokenizer_config.json`.
    pub fn ends(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Characters(characters) => vec![characters.end()],
            Kind::Fast(loaded) => loaded.ends.clone(),
        }
    }

    /// Returns the id of the padding token, if there is one.
    pub fn pad(&self) -> Option<u32> {
        match &self.kind {
            Kind::Characters(characters) => Some(characters.pad()),
            Kind::Fast(loaded) => loaded.pad,
        }
    }

    /// Returns the ids of the special tokens, in ascending order.
    pub fn specials(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Characters(characters) => vec![characters.pad(), characters.unknown()],
            Kind::Fast(loaded) => loaded.fast.special_ids(),
        }
    }

    /// Returns whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        matches!(&self.kind, Kind::Fast(loaded) if !matches!(loaded.chat, Err(Missing::Absent)))
    }

    /// Returns the token of an id as the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Characters(characters) => characters.decode(&[id]).ok().filter(|_| (id as usize) < self.vocabulary()),
            Kind::Fast(loaded) => loaded.fast.token(id),
        }
    }

    /// Returns the ids of a text that begins a sequence, with the special tokens that `tokenizer.json` puts around it, such as the
    /// one that begins a sequence. Special tokens in the text are text.
    ///
    /// # Errors
    /// When the text is empty, or has a character outside the vocabulary of the characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Fast(_) if text.is_empty() => Err(TokenizerError::Empty),
            Kind::Fast(loaded) => {
                let encoding = loaded.fast.framed(loaded.fast.encode(text, Allowed::None)?)?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// Returns the ids of a text that continues a sequence, without special tokens.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.kind {
            Kind::Characters(characters) => characters.encode(text),
            Kind::Fast(_) if text.is_empty() => Err(TokenizerError::Empty),
            Kind::Fast(loaded) => Ok(loaded.fast.encode(text, Allowed::None)?.get_ids().to_vec()),
        }
    }

    /// Returns the ids of a conversation by the chat template, and of what begins the assistant's next message.
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the messages.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, TokenizerError> {
        let (loaded, chat) = self.chat()?;
        chat.prompt(messages, &loaded.fast)
    }

    /// Returns the prompt of the next response in a conversation that may have tools, by the chat template.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat); and when the name of a field has a special token in it.
    pub fn encode_conversation(&self, conversation: &Conversation) -> Result<Rendered, TokenizerError> {
        let (loaded, chat) = self.chat()?;
        chat.conversation(conversation, &loaded.fast)
    }

    /// Returns whether a text stands in the chat template, such as the name of a variable that it uses.
    pub fn template_has(&self, text: &str) -> bool {
        matches!(&self.kind, Kind::Fast(loaded) if loaded.chat.as_ref().is_ok_and(|chat| chat.template.source().contains(text)))
    }

    /// Returns the id of a token that the vocabulary has under this text.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Fast(loaded) => loaded.fast.id(token),
        }
    }

    /// Returns the ids of a prompt: a user's message by the chat template if the model has one, else the text as it is.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat) and [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if self.has_template() && !text.is_empty() {
            self.encode_chat(&[Message { role: Role::User, content: text.to_owned() }])
        } else {
            self.encode(text)
        }
    }

    /// Returns the text of a conversation by the chat template, and of what begins the assistant's next message.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat).
    pub fn render_chat(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        let (loaded, chat) = self.chat()?;
        chat.text(messages, &loaded.fast)
    }

    /// Returns the ids of a whole conversation, and which of them the assistant writes: what a model is trained on.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat); and when the assistant's tokens cannot be told from the others, because the template
    /// rewrites earlier messages or ends a message with no end token.
    pub fn encode_turns(&self, messages: &[Message]) -> Result<Turns, TokenizerError> {
        let (loaded, chat) = self.chat()?;
        chat.turns(messages, &loaded.fast, &loaded.ends)
    }

    fn chat(&self) -> Result<(&Loaded, &Chat), TokenizerError> {
        let Kind::Fast(loaded) = &self.kind else { return Err(TokenizerError::NoTemplate) };
        match &loaded.chat {
            Ok(chat) => Ok((loaded, chat)),
            Err(Missing::Absent) => Err(TokenizerError::NoTemplate),
            Err(Missing::Invalid(why)) => Err(TokenizerError::Template(why.clone())),
        }
    }

    /// Returns the text of ids. The characters include the end token; otherwise special tokens are left out.
    ///
    /// # Errors
    /// When the library refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match &self.kind {
            Kind::Characters(characters) => characters.decode(ids),
            Kind::Fast(loaded) => loaded.fast.decode(ids),
        }
    }

    /// Returns a stream that decodes ids one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(Cow::Borrowed(self))
    }

    /// Returns a stream that decodes ids one by one and borrows nothing.
    pub fn into_stream(self) -> TextStream<'static> {
        TextStream::new(Cow::Owned(self))
    }

    /// Returns the library's tokenizer.
    #[cfg(test)]
    pub(super) fn library(&self) -> Option<&tokenizers::Tokenizer> {
        match &self.kind {
            Kind::Characters(_) => None,
            Kind::Fast(loaded) => Some(loaded.fast.library()),
        }
    }
}

/// What tells a `tokenizer.json` from other files.
#[derive(Deserialize)]
struct Recognized {
    #[serde(rename = "model")]
    _model: serde::de::IgnoredAny,
}

/// Parses a JSON file; a missing one has the defaults.
fn parse<T: Default + for<'a> Deserialize<'a>>(
    files: &BTreeMap<String, Vec<u8>>,
    file: &'static str,
) -> Result<T, TokenizerError> {
    let Some(bytes) = files.get(file) else { return Ok(T::default()) };
    codex_json::from_slice(bytes).map_err(|source| TokenizerError::Json { file, source })
}

/// Compiles the chat template: that of `chat_template.jinja`, else the one named `default` of `tokenizer_config.json`.
fn chat(file: Option<&[u8]>, config: &Config) -> Result<Result<Chat, Missing>, TokenizerError> {
    let source = match (file, &config.chat_template) {
        (Some(bytes), _) => std::str::from_utf8(bytes).map_err(|_| TokenizerError::Encoding(TEMPLATE))?,
        (None, Some(Templates::One(template))) => template,
        (None, Some(Templates::Several(all))) => match all.iter().find(|named| named.name == "default") {
            Some(named) => &named.template,
            None => return Ok(Err(Missing::Absent)),
        },
        (None, None) => return Ok(Err(Missing::Absent)),
    };
    let named = [
        ("bos_token", &config.bos_token),
        ("eos_token", &config.eos_token),
        ("pad_token", &config.pad_token),
        ("unk_token", &config.unk_token),
        ("sep_token", &config.sep_token),
        ("cls_token", &config.cls_token),
        ("mask_token", &config.mask_token),
    ];
    let tokens = named.iter().filter_map(|(name, token)| Some(((*name).to_owned(), token.as_ref()?.text().to_owned())));
    Ok(match Template::new(source) {
        Ok(template) => Ok(Chat { template, tokens: tokens.collect(), clock: Clock::Fixed }),
        Err(TokenizerError::Template(why)) => Err(Missing::Invalid(why)),
        Err(error) => return Err(error),
    })
}
