//! The thread that writes checkpoints and records: training only copies the state; this thread computes digests, writes and syncs.
//! One state is in flight at a time. Does I/O.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::JoinHandle,
};

use codex_engine::EngineState;
use codex_provenance::Sha256;

use super::{CheckpointError, CheckpointStore, Origin, store::SavedCheckpoint};
use crate::training::{
    attempts::LockHandle,
    records::{AppendLog, LEDGER, LedgerRow, STATES, StateRow},
    state::{Digests, Snapshot},
};

/// A state to record or to write.
#[derive(Debug)]
pub(crate) struct WriteJob {
    /// Copy of the state.
    pub(crate) snapshot: Snapshot,
    /// Whether to record its digest in the chain.
    pub(crate) record: bool,
    /// Measurements for `state.json`, if a checkpoint is to be written.
    pub(crate) checkpoint: Option<BTreeMap<String, f64>>,
    /// Ledger rows of the steps since the last job.
    pub(crate) rows: Vec<LedgerRow>,
    /// Whether to keep rows in memory until the next job, because the volume failed recently.
    pub(crate) hold: bool,
}

/// Result of a job.
#[derive(Debug)]
pub(crate) struct WriteResult {
    /// Step of the state.
    pub(crate) step: u64,
    /// Whether a checkpoint was requested.
    pub(crate) asked: bool,
    /// The checkpoint, if one was requested, or the error.
    pub(crate) outcome: Result<Option<SavedCheckpoint>, CheckpointError>,
    /// Vectors of the snapshot, for reuse.
    engine: Option<EngineState>,
}

/// State of the thread.
#[derive(Debug)]
struct Worker {
    lock: LockHandle,
    store: CheckpointStore,
    origin: Origin,
    states: AppendLog,
    ledger: AppendLog,
    /// Latest chain value, and the step of its row.
    chain: Option<Sha256>,
    recorded: u64,
    /// Rows that are not written yet.
    pending: (Vec<StateRow>, Vec<LedgerRow>),
}

/// Handle of the thread that writes checkpoints and records.
#[derive(Debug)]
pub(crate) struct AsyncWriter {
    jobs: Option<Sender<WriteJob>>,
    done: Receiver<WriteResult>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
    spare: Option<EngineState>,
}

/// Last rows of the records when an attempt resumes a run.
#[derive(Debug)]
pub(crate) struct RecordEnds {
    /// Last row of the ledger.
    pub(crate) ledger: Option<LedgerRow>,
    /// Last row of the states.
    pub(crate) state: Option<StateRow>,
    /// Notices about damaged lines.
    pub(crate) notices: Vec<String>,
}

impl AsyncWriter {
    /// Starts the thread for a run that resumes at `step`. Later rows of its records in `artifacts` are dropped. Files of records have at
    /// most `size` bytes.
    ///
    /// # Errors
    /// When a file operation fails, or the thread cannot start.
    pub(crate) fn start(
        lock: LockHandle,
        store: CheckpointStore,
        origin: Origin,
        (artifacts, size): (&Path, u64),
        step: u64,
    ) -> Result<(Self, RecordEnds), CheckpointError> {
        let states = AppendLog::open::<StateRow>(artifacts.join(STATES), step)?;
        let ledger = AppendLog::open::<LedgerRow>(artifacts.join(LEDGER), step)?;
        let (chain, recorded) = states.last.as_ref().map_or((None, 0), |row| (Some(row.chain), row.step));
        let notices = [ledger.notice, states.notice].into_iter().flatten().collect();
        let ends = RecordEnds { ledger: ledger.last, state: states.last, notices };
        let (states, ledger) = (states.log.rotated_at(size), ledger.log.rotated_at(size));
        let mut worker =
            Worker { lock, store, origin, states, ledger, chain, recorded, pending: (Vec::new(), Vec::new()) };
        let ((jobs, todo), (answers, done)) = (channel::<WriteJob>(), channel());
        #[cfg(test)]
        let left = crate::training::fault_injection::left();
        let work = move || {
            #[cfg(test)]
            crate::training::fault_injection::set(left);
            for job in todo {
                let (step, asked) = (job.snapshot.step, job.checkpoint.is_some());
                let (outcome, snapshot) = worker.process(job);
                if answers.send(WriteResult { step, asked, outcome, engine: Some(snapshot.engine) }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(work);
        let thread = thread.map_err(CheckpointError::Thread)?;
        let saver = Self { jobs: Some(jobs), done, thread: Some(thread), busy: false, spare: None };
        Ok((saver, ends))
    }

    /// Whether a state is in flight.
    pub(crate) fn busy(&self) -> bool {
        self.busy
    }

    /// Takes the vectors of the last snapshot, if there are any, for reuse.
    pub(crate) fn take_spare(&mut self) -> Option<EngineState> {
        self.spare.take()
    }

    /// Returns the result of the job in flight if it is done; does not wait.
    pub(crate) fn poll(&mut self) -> Option<WriteResult> {
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

    /// Waits for the job in flight.
    pub(crate) fn wait(&mut self) -> Option<WriteResult> {
        if !self.busy {
            return None;
        }
        let done = self.done.recv();
        self.busy = false;
        Some(self.take(done.ok()?))
    }

    fn take(&mut self, mut done: WriteResult) -> WriteResult {
        self.busy = false;
        self.spare = done.engine.take();
        done
    }

    /// Submits a job. No other may be in flight.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(crate) fn submit(&mut self, job: WriteJob) -> Result<(), CheckpointError> {
        debug_assert!(!self.busy, "one state at a time");
        let gone = || CheckpointError::Thread(std::io::Error::other("the thread that writes them has ended"));
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.busy = true;
        Ok(())
    }
}

impl Drop for AsyncWriter {
    fn drop(&mut self) {
        // The job in flight is finished: half a checkpoint would be wasted work.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Worker {
    fn process(&mut self, job: WriteJob) -> (Result<Option<SavedCheckpoint>, CheckpointError>, Snapshot) {
        let WriteJob { snapshot, record, checkpoint, rows, hold } = job;
        let digests = snapshot.digests();
        self.pending.1.extend(rows);
        // A repeated step is not recorded again.
        if record && snapshot.step > self.recorded {
            let row = StateRow::new(snapshot.step, &digests, self.chain);
            (self.chain, self.recorded) = (Some(row.chain), row.step);
            self.pending.0.push(row);
        }
        let outcome = if hold { Ok(None) } else { self.write(&snapshot, &digests, checkpoint) };
        (outcome, snapshot)
    }

    /// Writes records first, so that they always cover the checkpoint.
    fn write(
        &mut self,
        snapshot: &Snapshot,
        digests: &Digests,
        checkpoint: Option<BTreeMap<String, f64>>,
    ) -> Result<Option<SavedCheckpoint>, CheckpointError> {
        self.lock.check()?;
        self.ledger.append_each(&mut self.pending.1)?;
        self.states.append_each(&mut self.pending.0)?;
        checkpoint.map(|metrics| self.store.save(snapshot, digests, metrics, &self.origin)).transpose()
    }
}
