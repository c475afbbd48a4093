//! Sends copies of requests to shadows, after they were answered. Does I/O on a thread for each shadow, so that one that does not
//! answer delays no other. These threads have the lowest priority: answers need the processors first.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use codex_provenance::{ModelDigest, files, threads::give_way};
use codex_reports::{
    COPIES_PATH, COPY_KEY_HEADER, COPY_SIGNATURE_HEADER, CopiedGrammar, CopiedSampling, CopiedThinking, MAX_COPY,
    MirrorFile, MirrorTarget, RequestCopy, signed_copy,
};
use ureq::Agent;

use crate::{
    serving::{ServeError, batcher::Job, metrics::Metrics, thinking::Bounds},
    text::Tokenizer,
};

/// The most copies that wait to be sent to a shadow. Further ones are dropped.
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
    shadows: RwLock<(Vec<u8>, Arc<Vec<Lane>>)>,
    shared: Arc<Shared>,
}

/// The way to one shadow. Its thread ends once nothing holds the queue.
#[derive(Clone, Debug)]
struct Lane {
    target: MirrorTarget,
    queue: SyncSender<Arc<RequestCopy>>,
}

/// What all threads need, too.
#[derive(Debug)]
struct Shared {
    pair: Ed25519KeyPair,
    /// The public key that verifies copies.
    key: String,
    agent: Agent,
    /// The number of the last copy. Those of a shadow grow, because its thread takes them when it sends.
    sequence: AtomicU64,
    /// The model that answers, once it is loaded.
    served: OnceLock<(ModelDigest, Tokenizer)>,
    metrics: Arc<Metrics>,
}

/// A copy that waits for the end of the response.
struct Waiting {
    lanes: Vec<Lane>,
    copy: RequestCopy,
}

impl Mirror {
    /// Reads the file and starts the threads that send copies. They end when the mirror is dropped.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(in crate::serving) fn new(path: PathBuf, metrics: Arc<Metrics>) -> Result<Arc<Self>, ServeError> {
        let pair = Ed25519KeyPair::generate()
            .map_err(|_| ServeError::Mirror(io::Error::other("no key for copies can be generated")))?;
        let key = hex::encode(pair.public_key());
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        let shared = Shared { pair, key, agent, sequence: AtomicU64::new(0), served: OnceLock::new(), metrics };
        let mirror = Self { path, shadows: RwLock::default(), shared: Arc::new(shared) };
        // The reason is logged, and the next time tells again.
        let _ = mirror.reload();
        Ok(Arc::new(mirror))
    }

    /// Returns the public key that verifies copies, in hexadecimal digits.
    pub(in crate::serving) fn key(&self) -> &str {
        &self.shared.key
    }

    /// Says which model answers from now on.
    pub(in crate::serving) fn serves(&self, model: ModelDigest, tokenizer: Tokenizer) {
        // A server loads one model.
        let _ = self.shared.served.set((model, tokenizer));
    }

    /// Reads the file again. An absent or empty file names no shadow; an invalid one changes nothing.
    ///
    /// # Errors
    /// One sentence: the file cannot be read, or has become invalid.
    pub(in crate::serving) fn reload(&self) -> Result<(), String> {
        let path = self.path.display();
        let bytes = read(&self.path).map_err(|error| {
            tracing::error!(%error, %path, "the file with the shadows cannot be read; the former ones stay");
            format!("{path} cannot be read: {error}")
        })?;
        let mut shadows = self.shadows.write().unwrap_or_else(PoisonError::into_inner);
        if shadows.0 == bytes {
            return Ok(());
        }
        let named = if bytes.iter().all(u8::is_ascii_whitespace) {
            Ok(MirrorFile::default())
        } else {
            codex_json::from_slice::<MirrorFile>(&bytes)
        };
        let former = Arc::clone(&shadows.1);
        let (next, result) = match named {
            Ok(file) => {
                tracing::info!(shadows = file.shadows.len(), "the shadows changed");
                (Arc::new(file.shadows.into_iter().filter_map(|target| self.lane(target, &former)).collect()), Ok(()))
            }
            Err(error) => {
                tracing::error!(%error, %path, "the file with the shadows is invalid; the former ones stay");
                (former, Err(format!("{path} is invalid: {error}")))
            }
        };
        *shadows = (bytes, next);
        result
    }

    /// Returns the way to a shadow: the former one, if its address is the same, or a new one with a thread of its own.
    fn lane(&self, target: MirrorTarget, former: &[Lane]) -> Option<Lane> {
        let known = former.iter().find(|lane| lane.target.uid == target.uid && lane.target.url == target.url);
        if let Some(Lane { queue, .. }) = known {
            return Some(Lane { target, queue: queue.clone() });
        }
        let (queue, waiting) = sync_channel(QUEUE);
        let sender = Sender { target: target.clone(), shared: Arc::clone(&self.shared), silent: false };
        let started = std::thread::Builder::new().name("copies".to_owned()).spawn(move || sender.run(&waiting));
        match started {
            Ok(_) => Some(Lane { target, queue }),
            Err(error) => {
                tracing::error!(%error, url = target.url, "no thread for copies can start; the shadow gets none");
                None
            }
        }
    }

    /// Begins to record a request, if it is sampled for a shadow.
    pub(in crate::serving) fn begin(self: &Arc<Self>, job: &Job) -> Option<Recording> {
        let shadows = Arc::clone(&self.shadows.read().unwrap_or_else(PoisonError::into_inner).1);
        if shadows.is_empty() {
            return None;
        }
        let draw = rand::random::<u32>() % 100;
        let lanes: Vec<_> = shadows.iter().filter(|lane| draw < lane.target.sample_percent).cloned().collect();
        if lanes.is_empty() {
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
            bound: job.bound.as_ref().map(|bound| CopiedGrammar::clone(&bound.source)),
            thinking: job.thinking.as_ref().map(|thinking| {
                let Bounds { markers, opened, budget, until } = thinking.bounds();
                CopiedThinking { open: markers.open.to_owned(), opened, budget, until }
            }),
            tokens: Vec::new(),
            stopped: false,
            milliseconds: 0,
        };
        Some(Recording { mirror: Arc::clone(self), waiting: Waiting { lanes, copy }, begun: Instant::now() })
    }

    fn offer(&self, Waiting { lanes, copy }: Waiting) {
        let copy = Arc::new(copy);
        for lane in lanes {
            if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lane.queue.try_send(Arc::clone(&copy)) {
                self.shared.metrics.copied(DROPPED);
            }
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

/// Sends copies to one shadow, one after the other.
struct Sender {
    target: MirrorTarget,
    shared: Arc<Shared>,
    /// Whether the shadow takes no copies, and that was logged.
    silent: bool,
}

impl Sender {
    fn run(mut self, waiting: &Receiver<Arc<RequestCopy>>) {
        give_way();
        while let Ok(copy) = waiting.recv() {
            let text = self.shared.served.get().map(|(_, tokenizer)| tokenizer.decode(&copy.prompt));
            // A prompt that cannot be decoded cannot be compared.
            let Some(Ok(prompt_text)) = text else { continue };
            let sequence = self.shared.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let numbered = RequestCopy { sequence, prompt_text, ..RequestCopy::clone(&copy) };
            let Ok(body) = serde_json::to_vec(&numbered) else { continue };
            let result = if body.len() > MAX_COPY { DROPPED } else { self.send(&body) };
            self.shared.metrics.copied(result);
        }
    }

    fn send(&mut self, body: &[u8]) -> &'static str {
        let url = format!("{}{COPIES_PATH}", self.target.url);
        let signature = hex::encode(self.shared.pair.sign(&signed_copy(&self.target.uid, body)));
        let request = self
            .shared
            .agent
            .post(&url)
            .header("content-type", "application/json")
            .header(COPY_KEY_HEADER, &self.shared.key)
            .header(COPY_SIGNATURE_HEADER, signature);
        let (result, why) = match request.send(body) {
            Ok(response) => match response.status().as_u16() {
                200..=299 => (SENT, None),
                429 | 503 => (BUSY, None),
                status => (REFUSED, Some(format!("it answered {status}"))),
            },
            Err(error) => (FAILED, Some(error.to_string())),
        };
        // Once, and again after it took one.
        if let Some(why) = &why
            && !self.silent
        {
            tracing::warn!(url, why, "a shadow takes no copies");
        }
        self.silent = why.is_some();
        result
    }
}
