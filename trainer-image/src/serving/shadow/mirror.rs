//! Sends copies of requests to shadows, after they were answered. Does I/O on a thread of its own.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use codex_provenance::{ModelDigest, files};
use codex_reports::{
    COPIES_PATH, COPY_KEY_HEADER, COPY_SIGNATURE_HEADER, CopiedSampling, MAX_COPY, MirrorFile, MirrorTarget,
    RequestCopy, signed_copy,
};
use ureq::Agent;

use crate::{
    serving::{ServeError, batcher::Job, metrics::Metrics},
    text::Tokenizer,
};

/// The most copies that wait to be sent. Further ones are dropped.
const QUEUE: usize = 64;
/// The timeout of a request. A shadow takes a copy before it generates.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The most bytes of the file with the shadows; a ConfigMap holds no more.
const MAX_FILE: usize = 1 << 20;

/// What became of a copy: a value of the label `result`.
const SENT: &str = "sent";
/// The queue was full.
const DROPPED: &str = "dropped";
/// The shadow had no room.
const BUSY: &str = "busy";
/// The shadow refused the copy.
const REFUSED: &str = "refused";
/// The shadow did not answer.
const FAILED: &str = "failed";

/// Copies requests to the shadows of a file.
#[derive(Debug)]
pub(in crate::serving) struct Mirror {
    path: PathBuf,
    /// The bytes that were read last, and the shadows that they name.
    shadows: RwLock<(Vec<u8>, Arc<Vec<MirrorTarget>>)>,
    queue: SyncSender<Waiting>,
    /// The public key that verifies copies.
    key: String,
    shared: Arc<Shared>,
}

/// What the sending thread needs, too.
#[derive(Debug)]
struct Shared {
    /// The model that answers, once it is loaded.
    served: OnceLock<(ModelDigest, Tokenizer)>,
    metrics: Arc<Metrics>,
}

/// A copy that waits to be sent.
struct Waiting {
    targets: Vec<MirrorTarget>,
    copy: RequestCopy,
}

impl Mirror {
    /// Reads the file and starts the thread that sends copies. It ends when the mirror is dropped.
    ///
    /// # Errors
    /// The system has no random bytes, or no thread can start.
    pub(in crate::serving) fn new(path: PathBuf, metrics: Arc<Metrics>) -> Result<Arc<Self>, ServeError> {
        let pair = Ed25519KeyPair::generate()
            .map_err(|_| ServeError::Mirror(io::Error::other("no key for copies can be generated")))?;
        let key = hex::encode(pair.public_key());
        let (queue, waiting) = sync_channel(QUEUE);
        let shared = Arc::new(Shared { served: OnceLock::new(), metrics });
        let sender = Sender {
            pair,
            key: key.clone(),
            shared: Arc::clone(&shared),
            agent: Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(None)
                .timeout_global(Some(TIMEOUT))
                .build()
                .into(),
            sequence: 0,
            silent: BTreeSet::new(),
        };
        std::thread::Builder::new()
            .name("copies".to_owned())
            .spawn(move || sender.run(&waiting))
            .map_err(ServeError::Mirror)?;
        let mirror = Self { path, shadows: RwLock::default(), queue, key, shared };
        mirror.reload();
        Ok(Arc::new(mirror))
    }

    /// Returns the public key that verifies copies, in hexadecimal digits.
    pub(in crate::serving) fn key(&self) -> &str {
        &self.key
    }

    /// Says which model answers from now on.
    pub(in crate::serving) fn serves(&self, model: ModelDigest, tokenizer: Tokenizer) {
        // A server loads one model.
        let _ = self.shared.served.set((model, tokenizer));
    }

    /// Reads the file again. An absent or empty file names no shadow; an invalid one changes nothing.
    pub(in crate::serving) fn reload(&self) {
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "the file with the shadows cannot be read; the former ones stay");
                return;
            }
        };
        let mut shadows = self.shadows.write().unwrap_or_else(PoisonError::into_inner);
        if shadows.0 == bytes {
            return;
        }
        let named = if bytes.iter().all(u8::is_ascii_whitespace) {
            Ok(MirrorFile::default())
        } else {
            codex_json::from_slice::<MirrorFile>(&bytes)
        };
        let former = Arc::clone(&shadows.1);
        let next = match named {
            Ok(file) => {
                tracing::info!(shadows = file.shadows.len(), "the shadows changed");
                Arc::new(file.shadows)
            }
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "the file with the shadows is invalid; the former ones stay");
                former
            }
        };
        *shadows = (bytes, next);
    }

    /// Begins to record a request, if it is sampled for a shadow. Requests that a grammar binds are not copied.
    pub(in crate::serving) fn begin(self: &Arc<Self>, job: &Job) -> Option<Recording> {
        let shadows = Arc::clone(&self.shadows.read().unwrap_or_else(PoisonError::into_inner).1);
        if shadows.is_empty() || job.bound.is_some() {
            return None;
        }
        let draw = rand::random::<u32>() % 100;
        let targets: Vec<_> = shadows.iter().filter(|shadow| draw < shadow.sample_percent).cloned().collect();
        if targets.is_empty() {
            return None;
        }
        let sampling = job.sampler.sampling();
        let copy = RequestCopy {
            sequence: 0,
            model: self.shared.served.get()?.0,
            prompt: job.prompt.clone(),
            prompt_text: String::new(),
            limit: job.limit,
            sampling: CopiedSampling {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                seed: sampling.seed,
            },
            tokens: Vec::new(),
            stopped: false,
            milliseconds: 0,
        };
        Some(Recording { mirror: Arc::clone(self), waiting: Waiting { targets, copy }, begun: Instant::now() })
    }

    fn offer(&self, waiting: Waiting) {
        let targets = waiting.targets.len();
        // The thread ends only with the mirror.
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(waiting) {
            (0..targets).for_each(|_| self.shared.metrics.copied(DROPPED));
        }
    }
}

/// Reads the file; an absent one is empty.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match files::read_start(path, MAX_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// A request that is being answered and will be copied.
pub(in crate::serving) struct Recording {
    mirror: Arc<Mirror>,
    waiting: Waiting,
    begun: Instant,
}

impl Recording {
    /// Adds a token of the response.
    pub(in crate::serving) fn token(&mut self, id: u32) {
        self.waiting.copy.tokens.push(id);
    }

    /// Queues the copy of an answered request, or drops it if the queue is full. `stopped` says that a text ended the response
    /// early.
    pub(in crate::serving) fn finish(mut self, stopped: bool) {
        let copy = &mut self.waiting.copy;
        copy.stopped = stopped;
        copy.milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.mirror.offer(self.waiting);
    }
}

/// Sends copies, one after the other.
struct Sender {
    pair: Ed25519KeyPair,
    key: String,
    shared: Arc<Shared>,
    agent: Agent,
    sequence: u64,
    /// The shadows that take no copies, for which that was logged.
    silent: BTreeSet<String>,
}

impl Sender {
    fn run(mut self, waiting: &Receiver<Waiting>) {
        while let Ok(Waiting { targets, mut copy }) = waiting.recv() {
            let Some((_, tokenizer)) = self.shared.served.get() else { continue };
            // A prompt that cannot be decoded cannot be compared.
            let Ok(text) = tokenizer.decode(&copy.prompt) else { continue };
            copy.prompt_text = text;
            self.sequence += 1;
            copy.sequence = self.sequence;
            let Ok(body) = serde_json::to_vec(&copy) else { continue };
            for target in &targets {
                let result = if body.len() > MAX_COPY { DROPPED } else { self.send(target, &body) };
                self.shared.metrics.copied(result);
            }
        }
    }

    fn send(&mut self, target: &MirrorTarget, body: &[u8]) -> &'static str {
        let url = format!("{}{COPIES_PATH}", target.url);
        let signature = hex::encode(self.pair.sign(&signed_copy(&target.uid, body)));
        let request = self
            .agent
            .post(&url)
            .header("content-type", "application/json")
            .header(COPY_KEY_HEADER, &self.key)
            .header(COPY_SIGNATURE_HEADER, signature);
        let (result, why) = match request.send(body) {
            Ok(response) => match response.status().as_u16() {
                200..=299 => (SENT, None),
                429 | 503 => (BUSY, None),
                status => (REFUSED, Some(format!("it answered {status}"))),
            },
            Err(error) => (FAILED, Some(error.to_string())),
        };
        match why {
            None => {
                self.silent.remove(&target.uid);
            }
            // Once, and again after it took one.
            Some(why) if self.silent.insert(target.uid.clone()) => {
                tracing::warn!(url, why, "a shadow takes no copies");
            }
            Some(_) => {}
        }
        result
    }
}
