//! The thread that makes states durable: training pays for a copy of the state, this thread for digests, hashing, writing and
//! syncing. One state is in flight at a time. Does I/O.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::JoinHandle,
};

use codex_engine::EngineState;
use codex_provenance::Sha256;

use super::{
    TrainError,
    checkpoint::{Store, Written},
    origin::Origin,
    records::{LEDGER, LedgerRow, STATES, StateRow, Tail},
    snapshot::{Digests, Snapshot},
    writer::Lock,
};

/// A state on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// The state.
    pub(super) snapshot: Snapshot,
    /// Whether its digest is recorded in the chain.
    pub(super) record: bool,
    /// Whether it is written as a checkpoint, with what was measured.
    pub(super) checkpoint: Option<BTreeMap<String, f64>>,
    /// What the steps since the last job came to.
    pub(super) rows: Vec<LedgerRow>,
    /// Whether the volume is left alone: what is to be recorded waits in memory for the next job.
    pub(super) hold: bool,
}

/// What became of a state.
#[derive(Debug)]
pub(super) struct Done {
    /// Its step.
    pub(super) step: u64,
    /// Whether a checkpoint was asked for.
    pub(super) asked: bool,
    /// The checkpoint, where one was asked for, or why it could not be written.
    pub(super) outcome: Result<Option<Written>, TrainError>,
    /// The vectors, to be filled again.
    engine: Option<EngineState>,
}

/// What the thread owns.
#[derive(Debug)]
struct Keeper {
    lock: Lock,
    store: Store,
    origin: Origin,
    states: Tail,
    ledger: Tail,
    /// The chain so far, and the step of its last row.
    chain: Option<Sha256>,
    recorded: u64,
    /// Rows that could not be written yet.
    pending: (Vec<StateRow>, Vec<LedgerRow>),
}

/// The thread, as training sees it.
#[derive(Debug)]
pub(super) struct Saver {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
    spare: Option<EngineState>,
}

/// Where a run's records end when an attempt takes over.
#[derive(Debug)]
pub(super) struct Ends {
    /// The last row of the ledger.
    pub(super) ledger: Option<LedgerRow>,
    /// The last row of the states.
    pub(super) state: Option<StateRow>,
}

impl Saver {
    /// Starts the thread for a run that goes on from `step`; later rows of its records in `artifacts` are dropped.
    ///
    /// # Errors
    /// When the file system refuses, or the system gives no thread.
    pub(super) fn start(
        lock: Lock,
        store: Store,
        origin: Origin,
        artifacts: &Path,
        step: u64,
    ) -> Result<(Self, Ends), TrainError> {
        let (states, state) = Tail::open::<StateRow>(artifacts.join(STATES), step)?;
        let (ledger, row) = Tail::open::<LedgerRow>(artifacts.join(LEDGER), step)?;
        let (chain, recorded) = state.as_ref().map_or((None, 0), |row| (Some(row.chain), row.step));
        let ends = Ends { ledger: row, state };
        let mut keeper =
            Keeper { lock, store, origin, states, ledger, chain, recorded, pending: (Vec::new(), Vec::new()) };
        let ((jobs, todo), (answers, done)) = (channel::<Job>(), channel());
        #[cfg(test)]
        let left = super::death::left();
        let work = move || {
            #[cfg(test)]
            super::death::set(left);
            for job in todo {
                let (step, asked) = (job.snapshot.step, job.checkpoint.is_some());
                let (outcome, snapshot) = keeper.keep(job);
                if answers.send(Done { step, asked, outcome, engine: Some(snapshot.engine) }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(work);
        let thread = thread.map_err(TrainError::System)?;
        let saver = Self { jobs: Some(jobs), done, thread: Some(thread), busy: false, spare: None };
        Ok((saver, ends))
    }

    /// Whether a state is in flight.
    pub(super) fn busy(&self) -> bool {
        self.busy
    }

    /// Vectors to copy a state into, where there are some.
    pub(super) fn spare(&mut self) -> Option<EngineState> {
        self.spare.take()
    }

    /// What has been done since the last call; does not wait.
    pub(super) fn poll(&mut self) -> Option<Done> {
        if !self.busy {
            return None;
        }
        match self.done.try_recv() {
            Ok(done) => Some(self.take(done)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.busy = false;
                None
            }
        }
    }

    /// Waits for the state in flight.
    pub(super) fn wait(&mut self) -> Option<Done> {
        if !self.busy {
            return None;
        }
        let done = self.done.recv();
        self.busy = false;
        Some(self.take(done.ok()?))
    }

    fn take(&mut self, mut done: Done) -> Done {
        self.busy = false;
        self.spare = done.engine.take();
        done
    }

    /// Hands a state over. Nothing may be in flight.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(super) fn submit(&mut self, job: Job) -> Result<(), TrainError> {
        debug_assert!(!self.busy, "one state at a time");
        let gone = || TrainError::System(std::io::Error::other("the thread that writes checkpoints ended"));
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.busy = true;
        Ok(())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // What is in flight is finished: half a checkpoint would only be work thrown away.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Keeper {
    fn keep(&mut self, job: Job) -> (Result<Option<Written>, TrainError>, Snapshot) {
        let Job { snapshot, record, checkpoint, rows, hold } = job;
        let digests = snapshot.digests();
        self.pending.1.extend(rows);
        // A retry of a step is not recorded again.
        if record && snapshot.step > self.recorded {
            let row = StateRow::new(snapshot.step, &digests, self.chain);
            (self.chain, self.recorded) = (Some(row.chain), row.step);
            self.pending.0.push(row);
        }
        let outcome = if hold { Ok(None) } else { self.write(&snapshot, &digests, checkpoint) };
        (outcome, snapshot)
    }

    /// Records first: what a checkpoint holds is always in them.
    fn write(
        &mut self,
        snapshot: &Snapshot,
        digests: &Digests,
        checkpoint: Option<BTreeMap<String, f64>>,
    ) -> Result<Option<Written>, TrainError> {
        self.lock.check()?;
        self.ledger.append(&self.pending.1)?;
        self.pending.1.clear();
        self.states.append(&self.pending.0)?;
        self.pending.0.clear();
        checkpoint.map(|metrics| self.store.save(snapshot, digests, metrics, &self.origin)).transpose()
    }
}
