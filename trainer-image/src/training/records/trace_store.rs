//! The file of reasoning traces, which holds the latest ones. Does I/O.

use std::{fs, path::PathBuf};

use super::{AppendLog, Row, append_log::Opened};
use crate::{
    artifacts::reasoning::TraceRow,
    atomic_fs::{self, FileError},
};

impl Row for TraceRow {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The file of traces, open for appending.
///
/// After every `history`th trace of the run, all but the latest `history` are removed. When that is depends on the number of the trace
/// alone, so a run that was killed and resumed leaves the same bytes as one that was not.
#[derive(Debug)]
pub(crate) struct TraceStore {
    path: PathBuf,
    log: AppendLog,
    history: u64,
}

impl TraceStore {
    /// Opens the file for a run that resumes at `step`, and returns a notice if it was damaged. Traces of later steps are dropped,
    /// because they will be written again.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open(path: PathBuf, step: u64, history: u64) -> Result<(Self, Option<String>), FileError> {
        let Opened { log, notice, .. } = AppendLog::open::<TraceRow>(path.clone(), step)?;
        Ok((Self { path, log, history }, notice))
    }

    /// Appends a trace, the `number`th of the run from 1.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append(&mut self, row: &TraceRow, number: u64) -> Result<(), FileError> {
        self.log.append_unsynced(std::slice::from_ref(row))?;
        if !number.is_multiple_of(self.history) {
            return Ok(());
        }
        let bytes = fs::read(&self.path).map_err(FileError::of("reading", &self.path))?;
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let kept = usize::try_from(self.history).unwrap_or(usize::MAX);
        if lines.len() <= kept {
            return Ok(());
        }
        atomic_fs::write(&self.path, &lines[lines.len() - kept..].concat())?;
        self.log = AppendLog::open::<TraceRow>(self.path.clone(), u64::MAX)?.log;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::reasoning;

    fn row(step: u64) -> TraceRow {
        TraceRow {
            kind: reasoning::TYPE.to_owned(),
            epoch: 0,
            step,
            mode: "chain_of_thought".to_owned(),
            trace_mode: "weights".to_owned(),
            top_tokens: vec![1, 2],
            top_probability: 0.5,
            embedding_norm: 1.0 / step as f64,
            tool_decision: None,
        }
    }

    /// Writes a trace in every third step, of which there are `steps`, as if the run had been killed at some of them and resumed from
    /// the checkpoint of an earlier one.
    fn written(steps: u64, kills: &[(u64, u64)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("traces.ndjson");
        let mut store = TraceStore::open(path.clone(), 0, 4).unwrap().0;
        let (mut step, mut kills) = (0, kills.iter());
        let mut next = kills.next();
        while step < steps {
            step += 1;
            if step.is_multiple_of(3) {
                store.append(&row(step), step / 3).unwrap();
            }
            if let Some((_, from)) = next.filter(|(at, _)| *at == step) {
                step = *from;
                store = TraceStore::open(path.clone(), step, 4).unwrap().0;
                next = kills.next();
            }
        }
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_latest_traces_are_kept_and_a_resumed_run_leaves_the_same_bytes() {
        for steps in [2, 12, 13, 30, 36, 37, 48, 60] {
            let expected = written(steps, &[]);
            let traces = steps / 3;
            let lines = expected.lines().count() as u64;
            assert_eq!(
                lines,
                if traces < 8 { traces.min(4) + if traces > 4 { traces % 4 } else { 0 } } else { 4 + traces % 4 }
            );
            assert!(
                traces == 0 || expected.ends_with(&format!("{}\n", serde_json::to_string(&row(3 * traces)).unwrap()))
            );
            for kills in [&[(7, 2)][..], &[(13, 0)], &[(25, 9), (24, 24)], &[(29, 28)], &[(30, 1), (36, 11), (37, 36)]]
            {
                if kills.iter().all(|(at, _)| *at <= steps) {
                    assert_eq!(written(steps, kills), expected, "{steps} {kills:?}");
                }
            }
        }
    }

    #[test]
    fn keys_have_one_order() {
        let text = serde_json::to_string(&row(1)).unwrap();
        let order = [
            "type",
            "epoch",
            "step",
            "mode",
            "trace_mode",
            "top_tokens",
            "top_probability",
            "embedding_norm",
            "tool_decision",
        ];
        let places: Vec<usize> = order.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted() && places[0] == 1, "{text}");
    }
}
