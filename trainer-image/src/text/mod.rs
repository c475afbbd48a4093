//! Text: tokenizers, chat templates, and text that arrives token by token. Pure, but for [`Tokenizer::load`].
//!
//! A [`Tokenizer`] is one of two kinds. Models that are trained from random weights have single characters as tokens; a model
//! from elsewhere brings its `tokenizer.json`, and possibly a chat template in `chat_template.jinja` or
//! `tokenizer_config.json`. The ids and the rendered text are those of `transformers`, with one exception:
//!
//! **Special tokens stand only where the template or the tokenizer puts them.** `<|im_end|>` in a prompt or in a message is text.
//! A template may trim, split and join what messages contain, so the content itself is rendered. Wherever it could form a special
//! token, with itself or with what the template puts around it, a private mark breaks the token: a character that occurs in no
//! message and not in the template. The marks are removed from the rendered text, and their places are remembered. A special
//! token that has a mark inside is encoded as text.
//!
//! Added tokens that `tokenizer.json` does not mark as special, such as Qwen3's `<think>`, are words and stand anywhere.
//!
//! ```no_run
//! # use codex::text::{Message, Role, Tokenizer};
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let tokenizer = Tokenizer::load(std::path::Path::new("model"))?;
//! let question = Message { role: Role::User, content: "What is 2 + 2?".to_owned() };
//! let prompt = tokenizer.encode_chat(std::slice::from_ref(&question))?;
//! let answer = Message { role: Role::Assistant, content: "4".to_owned() };
//! let example = tokenizer.encode_turns(&[question, answer])?;
//! assert_eq!(example.ids.len(), example.assistant.len());
//! # Ok(())
//! # }
//! ```

mod characters;
mod chat;
mod error;
mod fast;
mod jinja;
mod marks;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use characters::{PAD, UNKNOWN};
pub(crate) use chat::{CALL, CALL_END};
pub use chat::{Conversation, Message, Rendered, Role, Turns};
pub use error::TokenizerError;
pub use jinja::Clock;
pub use stop::Stops;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
