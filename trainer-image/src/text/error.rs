//! The errors of tokenizers and chat templates. Pure.

use crate::atomic_fs::FileError;

/// The tokenizer is unsupported, or refuses a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The library cannot read `tokenizer.json`.
    #[error("tokenizer.json cannot be read: {0}")]
    Unreadable(String),
    /// A required token is missing.
    #[error("tokenizer.json has no token {0:?}")]
    Missing(String),
    /// Another file of the tokenizer is not JSON of the right shape.
    #[error("{file} cannot be read")]
    Json {
        /// The file.
        file: &'static str,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A file of the tokenizer is not UTF-8.
    #[error("{0} is not UTF-8")]
    Encoding(&'static str),
    /// The directory has no `tokenizer.json`.
    #[error("the model has no file tokenizer.json")]
    NoTokenizer,
    /// The directory has a tokenizer of SentencePiece only.
    #[error(
        "the model has tokenizer.model and no tokenizer.json: write one with transformers, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )]
    SentencePiece,
    /// No file names the token that ends a response.
    #[error("no end token is known: write eos_token_id into config.json, or eos_token into tokenizer_config.json")]
    NoEnd,
    /// The library refuses the text.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
    /// A character is outside the vocabulary.
    #[error("character {character:?} is not in the tokenizer's vocabulary: use printable ASCII and line feeds")]
    Character {
        /// Its position, counted from 1.
        at: usize,
        /// The character.
        character: char,
    },
    /// The same, of a text that stands in a file.
    #[error("character {at} is not in the tokenizer's vocabulary: use printable ASCII and line feeds")]
    CharacterOfFile {
        /// Its position, counted from 1.
        at: usize,
    },
    /// The text is empty.
    #[error("the text is empty: write at least one character")]
    Empty,
    /// The model has no chat template.
    #[error("the model has no chat template: it takes plain prompts only")]
    NoTemplate,
    /// The chat template is invalid, or refuses the messages.
    #[error("the chat template cannot be rendered: {0}")]
    Template(String),
    /// The template's text for a conversation does not begin with its text for the conversation's first messages.
    #[error(
        "the chat template rewrites earlier messages, so the tokens of assistant message {0} cannot be told from the \
         others: train on conversations that end with their first assistant message"
    )]
    Rewritten(usize),
    /// An assistant's message has no end token after it.
    #[error(
        "the chat template ends assistant message {0} with none of the model's end tokens: write the token that ends a \
         turn into eos_token_id of generation_config.json"
    )]
    Endless(usize),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TokenizerError {
    /// Makes the error of a text that stands in a file: errors do not quote files.
    pub(crate) fn of_file(self) -> Self {
        match self {
            Self::Character { at, .. } => Self::CharacterOfFile { at },
            other => other,
        }
    }

    /// Makes the error of a refused text from the library's error.
    #[allow(clippy::needless_pass_by_value, reason = "fits map_err")]
    pub(super) fn text(error: tokenizers::Error) -> Self {
        Self::Text(error.to_string())
    }
}
