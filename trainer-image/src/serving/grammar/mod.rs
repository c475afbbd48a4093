//! Structured output: grammars that bind the tokens of a response. Compiles them in threads of their own; no other I/O.
//!
//! A grammar is a JSON Schema, a regular expression, a list of texts or a grammar in Lark's form. The `llguidance` crate compiles
//! it for the vocabulary of the model and says which tokens may come next; a [`Constraint`] applies that to one response. What
//! may come next depends on the grammar and on the tokens of the same response alone.

mod constraint;
mod limits;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use codex_provenance::Sha256;
use codex_reports::CopiedGrammar;
use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarInit, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub(super) use self::{
    constraint::{Around, Constraint},
    limits::checked,
};
use crate::text::Tokenizer;

/// The most compiled grammars that are kept.
const KEPT: usize = 32;
/// The longest time that the vocabulary is prepared, once.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// The longest time that a grammar is compiled.
const COMPILE_LIMIT: Duration = Duration::from_secs(5);
/// The longest time that a request waits until another grammar is compiled.
const COMPILE_WAIT: Duration = Duration::from_secs(5);
/// Stack of a thread that compiles: rules that name rules are compiled recursively.
const STACK: usize = 64 << 20;
/// The first tokens that a grammar is tried with before it binds an answer.
const TRIED: usize = 16;
/// The longest time that the choice of one of these tokens takes.
const TOKEN_LIMIT: Duration = Duration::from_millis(500);
/// The most characters of a reason that the compiler gives.
const MAX_REASON: usize = 400;
/// White space between the parts of a JSON text: enough for indentation, and an end to it.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// What a response must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grammar {
    /// A JSON text by a JSON Schema, which is an object.
    Json(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of some texts.
    Choice(Vec<String>),
    /// A text by a grammar in Lark's form, as `llguidance` reads it; its first rule is `start`.
    Lark(String),
    /// The arguments of a call by a JSON Schema, and the brace that ends the call.
    Arguments(Value),
}

/// A reason why a response cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GrammarError {
    /// The grammar is refused.
    #[error("{0}")]
    Refused(String),
    /// The grammar takes too long to compile.
    #[error("compiling it takes longer than {} seconds: simplify it", COMPILE_LIMIT.as_secs())]
    TooComplex,
    /// The choice of a token takes too long.
    #[error("the choice of a token takes longer than {} ms with it: simplify it", TOKEN_LIMIT.as_millis())]
    TooSlow,
    /// The bytes of the model's tokens are unknown.
    #[error("this server cannot bind what this model says ({0}): remove it")]
    Tokenizer(String),
    /// Another grammar is being compiled.
    #[error("the server is compiling the grammar of another request; retry in a second")]
    Busy,
}

/// Compiles grammars for the vocabulary of one model, and keeps the last ones.
pub(super) struct Grammars {
    /// Of the model; prepared when a request needs it first.
    factory: Arc<OnceLock<Result<ParserFactory, String>>>,
    tokenizer: Tokenizer,
    ends: Vec<u32>,
    /// The last used are at the end.
    kept: Mutex<Vec<(Sha256, Constraint)>>,
    /// One grammar is compiled at a time. A thread that took too long holds the permit until it ends.
    compiling: Arc<Semaphore>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Grammars {
    /// Makes the grammars of a model with this tokenizer and these end tokens.
    pub(super) fn new(tokenizer: Tokenizer, ends: Vec<u32>) -> Self {
        let compiling = Arc::new(Semaphore::new(1));
        Self { factory: Arc::default(), tokenizer, ends, kept: Mutex::default(), compiling }
    }

    /// Returns what binds one response to a grammar: one that is kept, or a new one.
    ///
    /// # Errors
    /// The grammar is refused or takes too long, or the model's tokens cannot be bound.
    pub(super) async fn bind(&self, grammar: &Grammar, around: &Around) -> Result<Constraint, GrammarError> {
        let key = grammar.key();
        if let Some(constraint) = self.kept(key) {
            return Ok(constraint.around(around));
        }
        let permit = tokio::time::timeout(COMPILE_WAIT, Arc::clone(&self.compiling).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(GrammarError::Busy) };
        // The request before may have had the same one.
        if let Some(constraint) = self.kept(key) {
            return Ok(constraint.around(around));
        }
        let ((prepared, ready), (told, compiled)) = (oneshot::channel(), oneshot::channel());
        let (factory, tokenizer) = (Arc::clone(&self.factory), self.tokenizer.clone());
        let (ends, grammar) = (self.ends.clone(), grammar.clone());
        let work = move |_held: OwnedSemaphorePermit| {
            let factory = factory.get_or_init(|| prepare(&tokenizer, &ends));
            // The request may have gone.
            let _ = prepared.send(());
            let _ = told.send(compile(factory, &grammar));
        };
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || work(permit));
        started.map_err(|error| GrammarError::Tokenizer(format!("no thread can be started: {error}")))?;
        match tokio::time::timeout(PREPARE_LIMIT, ready).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(GrammarError::Tokenizer("its vocabulary cannot be prepared".to_owned())),
            Err(_) => return Err(GrammarError::Busy),
        }
        let constraint = match tokio::time::timeout(COMPILE_LIMIT, compiled).await {
            Ok(Ok(constraint)) => constraint?,
            Ok(Err(_)) => return Err(GrammarError::Refused("the compiler failed on it: simplify it".to_owned())),
            Err(_) => return Err(GrammarError::TooComplex),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Another request may have compiled the same one since.
        kept.retain(|(other, _)| *other != key);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, constraint.clone()));
        drop(kept);
        Ok(constraint.around(around))
    }

    /// Returns a copy of a kept one, and makes it the last used.
    fn kept(&self, key: Sha256) -> Option<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| *other == key)?;
        let used = kept.remove(at);
        let constraint = used.1.clone();
        kept.push(used);
        Some(constraint)
    }
}

impl Grammar {
    /// Returns the digest of the grammar. Schemas that differ in the order of properties differ: answers keep that order.
    fn key(&self) -> Sha256 {
        let text = match self {
            Self::Json(schema) => json!(["json", schema]),
            Self::Regex(pattern) => json!(["regex", pattern]),
            Self::Choice(texts) => json!(["choice", texts]),
            Self::Lark(text) => json!(["lark", text]),
            Self::Arguments(schema) => json!(["arguments", schema]),
        };
        Sha256::of(text.to_string())
    }

    /// Returns the grammar as copies of requests hold it.
    pub(super) fn copied(&self, around: &Around) -> CopiedGrammar {
        CopiedGrammar {
            grammar: json!(self).to_string(),
            reasoning: around.reasoning.map(|(open, _)| open.to_owned()),
            opened: around.opened,
            calls: around.calls.is_some(),
        }
    }

    /// Returns the grammar in the form of the compiler.
    fn compilable(&self) -> TopLevelGrammar {
        match self {
            Self::Json(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
                TopLevelGrammar::from_regex(&format!("({})", texts.join("|")))
            }
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Arguments(schema) => {
                let schema = with_options(schema);
                TopLevelGrammar::from_lark(format!("start: arguments \"}}\"\narguments: %json {schema}\n"))
            }
        }
    }
}

/// Adds the compiler's options to a schema: bounded white space, and `oneOf` as `anyOf`, which the compiler has.
fn with_options(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["x-guidance"] = json!({ "whitespace_pattern": WHITE_SPACE, "coerce_one_of": true });
    schema
}

/// Compiles a grammar and tries its first tokens.
fn compile(factory: &Result<ParserFactory, String>, grammar: &Grammar) -> Result<Constraint, GrammarError> {
    let factory = factory.as_ref().map_err(|why| GrammarError::Tokenizer(why.clone()))?;
    let init = GrammarInit::Serialized(grammar.compilable());
    let parser = factory
        .create_parser_from_init_default(init)
        .map_err(|error| GrammarError::Refused(reason(&error.to_string())))?;
    let matcher = Matcher::new(Ok(parser));
    tried(matcher.deep_clone())?;
    Ok(Constraint::new(matcher, factory.tok_env().clone()))
}

/// Takes the first tokens that a grammar allows, so that most of what goes wrong later goes wrong here.
fn tried(mut matcher: Matcher) -> Result<(), GrammarError> {
    for at in 0..TRIED {
        if matcher.is_stopped() {
            break;
        }
        let begun = Instant::now();
        let first = match matcher.compute_mask() {
            Ok(mask) => mask.first_bit_set(),
            // The compiler's name for a mask without tokens.
            Err(error) if error.to_string().starts_with("NoExtensionBias") => None,
            Err(error) => return Err(GrammarError::Refused(reason(&error.to_string()))),
        };
        if begun.elapsed() > TOKEN_LIMIT {
            return Err(GrammarError::TooSlow);
        }
        match first {
            Some(token) => matcher
                .consume_token(token as u32)
                .map_err(|error| GrammarError::Refused(reason(&error.to_string())))?,
            None if at == 0 => {
                return Err(GrammarError::Refused("no text of the model's tokens matches it".to_owned()));
            }
            // Other tokens may have led on.
            None => break,
        }
    }
    Ok(())
}

/// Returns the reason of the compiler without what it adds for its developers.
fn reason(why: &str) -> String {
    let why = why.split("<state>").next().unwrap_or_default();
    let why = why.split("<backtrace>").next().unwrap_or_default();
    let why = why.replace("<non-verbose/>", "").replace("panic: ", "it is not supported: ");
    let mut text = why.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = text.char_indices().nth(MAX_REASON) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// Prepares the vocabulary of a model.
///
/// # Errors
/// A sentence: the bytes of the tokens are unknown.
fn prepare(tokenizer: &Tokenizer, ends: &[u32]) -> Result<ParserFactory, String> {
    let mut words = vocabulary::bytes(tokenizer)?;
    // An end token ends the response where the grammar may end, and is no text elsewhere.
    for end in ends {
        if let Some(word) = words.get_mut(*end as usize) {
            word.clear();
        }
    }
    let size = u32::try_from(words.len()).map_err(|_| "the vocabulary is too large".to_owned())?;
    let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < size).collect();
    let first = ends.first().copied().unwrap_or(INVALID_TOKEN);
    let mut trie = TokTrie::from(&TokRxInfo::new(size, first), &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(&ends);
    }
    // The model chooses how a text is cut into tokens.
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        .map_err(|error| reason(&error.to_string()))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_grammar_size = limits::GRAMMAR_SYMBOLS;
    limits.max_lexer_states = limits::LEXER_STATES;
    limits.verbose_errors = false;
    Ok(factory)
}
