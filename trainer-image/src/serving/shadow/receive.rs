//! The endpoint of a shadow, or of a canary that is compared: takes signed copies of requests, generates their responses again, and
//! compares. Reads a file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use axum::{
    Json,
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use codex_engine::{LogProbabilities, Sampler, Sampling};
use codex_provenance::{ModelDigest, files};
use codex_reports::{
    COPY_KEY_HEADER, COPY_SIGNATURE_HEADER, Comparison, CopiedGrammar, CopiedThinking, MAX_COPY, RequestCopy,
    ShadowFile, signed_copy,
};
use serde_json::json;

use super::compare::{Comparisons, answer, compare};
use crate::serving::{
    access::Client,
    batcher::{Bound, Job, Piece, Pieces, RequestError},
    grammar::{Around, Grammar, checked},
    http::App,
    metrics::Metrics,
    openai::{CALLS, Markers, reasoning_markers},
    phase::ServedModel,
    thinking::{Bounds, Thinking, closing},
};

/// The most likely tokens whose log-probabilities are computed: the other server's token may be among them.
const LIKELIEST: usize = 20;
/// The most bytes of the file with the keys; a ConfigMap holds no more.
const MAX_FILE: usize = 1 << 20;
/// The most bytes of a copy that are read if its key is unknown: clients reach the endpoint of a canary, too.
const MAX_UNKNOWN: usize = 1 << 16;
/// The result of a copy that was not compared: a value of the label `result`.
const SKIPPED: &str = "skipped";

/// Whom a server answers beside comparing copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serving) enum Beside {
    /// It is a shadow.
    Nobody,
    /// It is a canary. Copies give way to the requests of clients, and their times are not among those of requests.
    Clients,
}

/// What a shadow accepts, and what it has compared.
#[derive(Debug)]
pub(in crate::serving) struct Shadow {
    path: PathBuf,
    beside: Beside,
    /// The bytes that were read last, and what they say.
    accepts: RwLock<(Vec<u8>, Arc<ShadowFile>)>,
    /// The number of the last copy of each key. That of a removed key stays, so that nobody repeats its copies if it returns.
    sequences: Mutex<BTreeMap<String, u64>>,
    comparisons: Mutex<Comparisons>,
    metrics: Arc<Metrics>,
}

/// The reasons for which a copy is not compared.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the body cannot be read: {0}")]
    Body(String),
    #[error("a copy of a request needs the headers {COPY_KEY_HEADER} and {COPY_SIGNATURE_HEADER}")]
    Unsigned,
    #[error("the key {0:?} is not one of the servers whose requests this server compares")]
    UnknownKey(String),
    #[error("the signature does not fit the copy, the key and this server")]
    Signature,
    #[error("the copy has the wrong form: {0}")]
    Malformed(serde_json::Error),
    #[error("copy {0} of this server was taken before")]
    Repeated(u64),
    #[error("the model is not ready: {0}")]
    NotReady(&'static str),
    #[error("sampling: {0}")]
    Sampling(String),
    #[error("the prompt is another text for the tokenizer of this server, so that tokens cannot be compared")]
    Tokenizer,
    #[error("the prompt has {tokens} tokens, but the context of this server holds {context}")]
    TooLong { tokens: usize, context: usize },
    #[error("what binds the response: {0}")]
    Grammar(String),
    #[error("this server does not know the marker of reasoning {0:?}")]
    Marker(String),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Body(_) | Self::Malformed(_) | Self::Sampling(_) | Self::Grammar(_) | Self::Marker(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Unsigned => StatusCode::UNAUTHORIZED,
            Self::UnknownKey(_) | Self::Signature => StatusCode::FORBIDDEN,
            Self::Repeated(_) => StatusCode::CONFLICT,
            Self::Tokenizer | Self::TooLong { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Request(RequestError::Overloaded { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::NotReady(_) | Self::Request(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Shadow {
    /// Reads the file. Until it exists, no copy is accepted.
    pub(in crate::serving) fn new(path: PathBuf, beside: Beside, metrics: Arc<Metrics>) -> Arc<Self> {
        let shadow = Self {
            path,
            beside,
            accepts: RwLock::default(),
            sequences: Mutex::default(),
            comparisons: Mutex::default(),
            metrics,
        };
        // The reason is logged, and the next time tells again.
        let _ = shadow.reload();
        Arc::new(shadow)
    }

    /// Reads the file again. Without a valid one, no copy is accepted.
    ///
    /// # Errors
    /// One sentence: the file is missing or invalid.
    pub(in crate::serving) fn reload(&self) -> Result<(), String> {
        let ((bytes, accepted), result) = match read(&self.path) {
            Ok(read) => (read, Ok(())),
            Err(why) => {
                let path = self.path.display();
                tracing::error!(%path, "{why}; no copy is accepted until it is valid");
                ((Vec::new(), ShadowFile::default()), Err(format!("{path}: {why}")))
            }
        };
        let mut accepts = self.accepts.write().unwrap_or_else(PoisonError::into_inner);
        if accepts.0 != bytes {
            tracing::info!(keys = accepted.keys.len(), "the servers whose copies are accepted changed");
            *accepts = (bytes, Arc::new(accepted));
        }
        result
    }

    /// Returns what was compared since the server started.
    pub(in crate::serving) fn comparisons(&self) -> Vec<Comparison> {
        self.comparisons.lock().unwrap_or_else(PoisonError::into_inner).all().to_vec()
    }

    /// Whether the server answers nobody.
    pub(in crate::serving) fn is_alone(&self) -> bool {
        self.beside == Beside::Nobody
    }

    /// Returns the key and the signature in the headers of a copy, if the key is one of those that are accepted.
    fn sender(&self, headers: &HeaderMap) -> Result<Sender, Refused> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(key), Some(signature)) = (header(COPY_KEY_HEADER), header(COPY_SIGNATURE_HEADER)) else {
            return Err(Refused::Unsigned);
        };
        let accepts = Arc::clone(&self.accepts.read().unwrap_or_else(PoisonError::into_inner).1);
        if !accepts.keys.iter().any(|known| known == key) {
            return Err(Refused::UnknownKey(key.chars().take(64).collect()));
        }
        Ok(Sender { accepts, key: key.to_owned(), signature: signature.to_owned() })
    }

    /// Checks that the sender signed a copy, that it is for this shadow, and that it is new.
    fn accept(&self, Sender { accepts, key, signature }: Sender, body: &[u8]) -> Result<RequestCopy, Refused> {
        let public = hex::decode(&key).map_err(|_| Refused::Signature)?;
        let signature = hex::decode(signature).map_err(|_| Refused::Signature)?;
        UnparsedPublicKey::new(&ED25519, public)
            .verify(&signed_copy(&accepts.uid, body), &signature)
            .map_err(|_| Refused::Signature)?;
        let copy: RequestCopy = codex_json::from_slice(body).map_err(Refused::Malformed)?;
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        let last = sequences.entry(key).or_default();
        if copy.sequence <= *last {
            return Err(Refused::Repeated(copy.sequence));
        }
        *last = copy.sequence;
        Ok(copy)
    }

    /// Generates the response to a copied request.
    fn begin(&self, model: &ServedModel, job: Job, client: Client) -> Result<Pieces, RequestError> {
        match self.beside {
            Beside::Nobody => model.batcher.stream(job, client),
            Beside::Clients => model.batcher.stream_aside(job, client),
        }
    }

    /// Counts a copy that was not compared.
    fn skip(&self, model: ModelDigest) {
        self.metrics.compared(SKIPPED);
        self.comparisons.lock().unwrap_or_else(PoisonError::into_inner).skip(model);
    }
}

/// Who sent a copy, and what the file said at that time.
struct Sender {
    accepts: Arc<ShadowFile>,
    key: String,
    signature: String,
}

/// Reads the file; an absent or empty one accepts nobody.
fn read(path: &Path) -> Result<(Vec<u8>, ShadowFile), String> {
    match files::read_start(path, MAX_FILE) {
        Ok(bytes) if bytes.is_empty() => Ok((bytes, ShadowFile::default())),
        Ok(bytes) => {
            let parsed =
                codex_json::from_slice(&bytes).map_err(|why| format!("the file with keys is invalid: {why}"))?;
            Ok((bytes, parsed))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((Vec::new(), ShadowFile::default())),
        Err(error) => Err(format!("the file with keys cannot be read: {error}")),
    }
}

/// Takes a copy: answers once it is checked and queued, and compares afterwards.
pub(in crate::serving) async fn receive(State(app): State<App>, request: Request) -> Response {
    let Some(shadow) = app.shadow() else {
        return (StatusCode::NOT_FOUND, Json(json!({ "error": "this server compares no copies" }))).into_response();
    };
    let (head, body) = request.into_parts();
    let sender = shadow.sender(&head.headers);
    let body = to_bytes(body, if sender.is_ok() { MAX_COPY } else { MAX_UNKNOWN }).await;
    let body = body.map_err(|error| Refused::Body(error.to_string()));
    match sender.and_then(|sender| taken(&app, &shadow, sender, &body?)) {
        Ok(()) => (StatusCode::ACCEPTED, Json(json!({ "status": "accepted" }))).into_response(),
        Err(refused) => (refused.status(), Json(json!({ "error": refused.to_string() }))).into_response(),
    }
}

fn taken(app: &App, shadow: &Arc<Shadow>, sender: Sender, body: &Bytes) -> Result<(), Refused> {
    let copy = shadow.accept(sender, body)?;
    let phase = app.phase();
    let model = phase.model().ok_or(Refused::NotReady(phase.name()))?;
    let skipped = |refused| {
        shadow.skip(copy.model);
        refused
    };
    let job = job(model, &copy).map_err(skipped)?;
    let client = Client::anonymous(app.metrics_handle());
    let Some(bound) = &copy.bound else {
        let pieces = shadow.begin(model, job, client).map_err(|error| skipped(error.into()))?;
        let (shadow, model, begun) = (Arc::clone(shadow), Arc::clone(model), Instant::now());
        tokio::spawn(async move { again(&shadow, &model, copy, pieces, begun).await });
        return Ok(());
    };
    let (grammar, around) = grammar(bound).map_err(skipped)?;
    let (shadow, model) = (Arc::clone(shadow), Arc::clone(model));
    // A grammar may take longer to compile than the other server waits.
    tokio::spawn(async move {
        let bound = model
            .grammars
            .bind(&grammar, &around)
            .await
            .map(|constraint| Bound { constraint, source: Arc::new(grammar.copied(&around)) });
        let Ok(bound) = bound else { return shadow.skip(copy.model) };
        let begun = Instant::now();
        match shadow.begin(&model, Job { bound: Some(bound), ..job }, client) {
            Ok(pieces) => again(&shadow, &model, copy, pieces, begun).await,
            Err(_) => shadow.skip(copy.model),
        }
    });
    Ok(())
}

/// Reads what binds the response, within the limits of requests.
fn grammar(copied: &CopiedGrammar) -> Result<(Grammar, Around), Refused> {
    let grammar: Grammar = codex_json::from_str(&copied.grammar)
        .map_err(|why| Refused::Grammar(format!("it has the wrong form: {why}")))?;
    let grammar = checked(grammar).map_err(|why| Refused::Grammar(why.to_string()))?;
    let reasoning = copied.reasoning.as_deref().map(markers).transpose()?;
    let reasoning = reasoning.map(|markers| (markers.open, markers.close));
    Ok((grammar, Around { reasoning, opened: copied.opened, calls: copied.calls.then_some(CALLS) }))
}

/// Returns the markers of reasoning of which the first one is given.
fn markers(open: &str) -> Result<Markers, Refused> {
    reasoning_markers(open).ok_or_else(|| Refused::Marker(open.chars().take(64).collect()))
}

/// Ends the reasoning where the other server would have ended it.
fn thinking(model: &ServedModel, copied: &CopiedThinking) -> Result<Thinking, Refused> {
    let markers = markers(&copied.open)?;
    let closing = closing(&model.tokenizer, markers).map_err(|_| Refused::Tokenizer)?;
    let bounds = Bounds { markers, opened: copied.opened, budget: copied.budget, until: copied.until };
    Ok(Thinking::new(&model.tokenizer, Arc::clone(&model.specials), closing, bounds))
}

/// Returns the job that generates the response to a copied request again.
fn job(model: &ServedModel, copy: &RequestCopy) -> Result<Job, Refused> {
    let (tokens, context) = (copy.prompt.len(), model.context);
    if tokens >= context {
        return Err(Refused::TooLong { tokens, context });
    }
    if model.tokenizer.decode(&copy.prompt).ok().as_ref() != Some(&copy.prompt_text) {
        return Err(Refused::Tokenizer);
    }
    let sampling = Sampling {
        temperature: copy.sampling.temperature,
        top_p: copy.sampling.top_p,
        top_k: copy.sampling.top_k,
        seed: copy.sampling.seed,
    };
    let sampler = Sampler::new(sampling).map_err(|error| Refused::Sampling(error.to_string()))?;
    // What a text has stopped is compared as far as it got.
    let limit = if copy.stopped { copy.tokens.len() } else { copy.limit };
    Ok(Job {
        sampler,
        scores: Some(LIKELIEST),
        thinking: copy.thinking.as_ref().map(|copied| thinking(model, copied)).transpose()?,
        ..Job::greedy(copy.prompt.clone(), limit.clamp(1, context))
    })
}

/// Receives the response, and compares it.
async fn again(shadow: &Shadow, model: &ServedModel, copy: RequestCopy, mut pieces: Pieces, begun: Instant) {
    let (mut tokens, mut scores): (Vec<u32>, Vec<Option<LogProbabilities>>) = (Vec::new(), Vec::new());
    loop {
        match pieces.recv().await {
            Some(Piece::Token(token)) => {
                tokens.push(token.id);
                scores.push(token.scores);
            }
            Some(Piece::Prompt(_)) => {}
            Some(Piece::End(Ok(_))) => break,
            Some(Piece::End(Err(_)) | Piece::Late(_)) | None => return shadow.skip(copy.model),
        }
    }
    let own = begun.elapsed().as_secs_f64();
    let outcome = compare(&tokens, &scores, &copy.tokens, |tokens| answer(model, tokens));
    shadow.metrics.compared(outcome.name());
    let other = copy.milliseconds as f64 / 1_000.0;
    shadow.comparisons.lock().unwrap_or_else(PoisonError::into_inner).count(copy.model, outcome, own, other);
}
