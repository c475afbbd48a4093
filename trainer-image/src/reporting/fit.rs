//! Shortens a report to a number of bytes, dropping the least important parts first. Pure.

use codex_reports::{Failure, MAX_BYTES, MAX_TERMINATION_BYTES, Report, State};

/// Bytes to which a failure's message is shortened.
const SENTENCE: usize = 1024;

/// A report cannot be encoded in the allowed size.
#[derive(Debug, thiserror::Error)]
pub(super) enum FitError {
    /// Encoding failed.
    #[error("the report cannot be encoded as JSON")]
    Json(#[from] serde_json::Error),
    /// The report is too large.
    #[error("the report has {size} bytes even without optional parts; {most} are allowed")]
    TooLarge {
        /// Bytes without the optional parts.
        size: usize,
        /// Allowed bytes.
        most: usize,
    },
}

/// Encodes the report as JSON of at most `most` bytes. Drops, in this order until it fits: notices; the list of phases of a curriculum;
/// the device of an evaluator or a server; golden tokens; the files of the model's manifest (the digest stays, and the receiver waits for the complete report); the tail of the failure's message; the list of
/// data files. Numbers that decide a verdict are never dropped.
pub(super) fn fit(mut report: Report, most: usize) -> Result<Vec<u8>, FitError> {
    let mut bytes = serde_json::to_vec(&report)?;
    for leave_out in [notices, phases, device, golden, manifest, sentence, data] {
        if bytes.len() <= most {
            return Ok(bytes);
        }
        leave_out(&mut report.state);
        bytes = serde_json::to_vec(&report)?;
    }
    if bytes.len() <= most { Ok(bytes) } else { Err(FitError::TooLarge { size: bytes.len(), most }) }
}

/// Encodes the termination message of a final report: as much of it as fits, and the digest of the report as it is sent, which
/// the controller compares.
pub(super) fn termination_message(report: Report) -> Result<Vec<u8>, FitError> {
    // The digest is of the report that the controller reads: shortened, and without numbers that JSON cannot hold.
    let sent: Report = serde_json::from_slice(&fit(report.clone(), MAX_BYTES)?)?;
    fit(Report { digest: Some(sent.digest()), ..report }, MAX_TERMINATION_BYTES)
}

fn notices(state: &mut State) {
    if let State::Training(state) = state {
        state.notices.clear();
    }
}

/// The active phase stays. The controller has the others from earlier reports.
fn phases(state: &mut State) {
    if let State::Training(state) = state
        && let Some(curriculum) = &mut state.curriculum
    {
        curriculum.phases.clear();
    }
}

/// The controller has it from earlier reports.
fn device(state: &mut State) {
    match state {
        State::Training(_) => {}
        State::Evaluation(state) => state.device = None,
        State::Serving(state) => state.device = None,
    }
}

/// The complete report has them; a verdict on a message alone records none.
fn golden(state: &mut State) {
    if let State::Evaluation(state) = state {
        state.golden_tokens = None;
    }
}

fn manifest(state: &mut State) {
    if let State::Training(state) = state
        && let Some(model) = &mut state.model
    {
        model.manifest.files.clear();
    }
}

fn sentence(state: &mut State) {
    let failure = match state {
        State::Training(state) => &mut state.failure,
        State::Evaluation(state) => &mut state.failure,
        State::Serving(state) => &mut state.failure,
    };
    if let Some(Failure { message, .. }) = failure
        && message.len() > SENTENCE
    {
        message.truncate(message.floor_char_boundary(SENTENCE));
        message.push('…');
    }
}

fn data(state: &mut State) {
    match state {
        State::Training(state) => state.data.clear(),
        State::Evaluation(state) => state.data.clear(),
        State::Serving(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use codex_provenance::{
        DataDigest, ModelDigest, OmsRoot, Sha256,
        golden::{Golden, GoldenPrompt, Tokens},
        manifest::{File, Manifest},
    };
    use codex_reports::{DataFile, EvaluationState, Kind, Model, SCHEMA_VERSION, Stage, TrainingState};

    use super::*;

    fn report(state: State) -> Report {
        Report {
            schema_version: SCHEMA_VERSION,
            kind: Kind::TrainingRun,
            namespace: "n".repeat(63),
            name: "m".repeat(52),
            object_uid: "u".repeat(36),
            pod_uid: "p".repeat(36),
            attempt: 1,
            seq: u64::MAX >> 12,
            config_digest: None,
            digest: None,
            state,
        }
    }

    fn training(notices: usize, files: usize, data: usize, message: usize) -> TrainingState {
        let digest = Sha256::of("x");
        let file = |i: usize| File { path: format!("model-{i:05}.safetensors"), size: 1 << 30, sha256: digest };
        TrainingState {
            stage: Stage::Finished,
            notices: vec!["a notice of forty characters, more or less".to_owned(); notices],
            model: Some(Model {
                digest: ModelDigest(digest),
                oms_root: OmsRoot(digest),
                manifest: Manifest { schema: 1, files: (0..files).map(file).collect() },
                parameters: 220_000,
                adapter: None,
            }),
            data: (0..data)
                .map(|i| DataFile { name: format!("{i:0>40}"), sha256: DataDigest(digest), size: 1, records: Some(1) })
                .collect(),
            failure: Some(Failure { is_final: true, reason: "BadInput".to_owned(), message: "ä".repeat(message) }),
            ..TrainingState::default()
        }
    }

    fn fitted(state: TrainingState) -> TrainingState {
        let bytes = fit(report(State::Training(state)), MAX_TERMINATION_BYTES).unwrap();
        assert!(bytes.len() <= MAX_TERMINATION_BYTES);
        match serde_json::from_slice::<Report>(&bytes).unwrap().state {
            State::Training(state) => state,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_report_that_fits_is_complete() {
        let state = training(2, 5, 2, 20);
        assert_eq!(fitted(state.clone()), state);
    }

    #[test]
    fn notices_go_first_then_the_manifest_then_the_tail_of_the_message_then_data() {
        let without_notices = fitted(training(100, 5, 2, 20));
        assert_eq!((without_notices.notices.len(), without_notices.model.unwrap().manifest.files.len()), (0, 5));

        let without_files = fitted(training(1, 100, 2, 20));
        assert_eq!((without_files.notices.len(), without_files.data.len()), (0, 2));
        let model = without_files.model.unwrap();
        assert_eq!((model.manifest.files.len(), model.digest), (0, ModelDigest(Sha256::of("x"))));

        let short = fitted(training(0, 0, 2, 5000));
        assert_eq!(short.data.len(), 2);
        let message = short.failure.unwrap().message;
        assert!(message.len() < 1100 && message.ends_with("ä…"), "{} bytes", message.len());

        assert_eq!(fitted(training(0, 0, 40, 5000)).data.len(), 0);
    }

    #[test]
    fn a_termination_message_confirms_the_report_that_is_sent() {
        for (notices, files) in [(0, 2), (5_000, 5), (1, 100)] {
            let report = report(State::Training(training(notices, files, 2, 20)));
            let sent: Report = serde_json::from_slice(&fit(report.clone(), MAX_BYTES).unwrap()).unwrap();
            let message = termination_message(report).unwrap();
            assert!(message.len() <= MAX_TERMINATION_BYTES);
            let message: Report = serde_json::from_slice(&message).unwrap();
            assert_eq!(sent.contradicts_termination(&message), None, "{notices} notices, {files} files");
            let mut other = sent;
            other.attempt += 1;
            assert!(other.contradicts_termination(&message).is_some());
        }
    }

    #[test]
    fn golden_tokens_leave_a_termination_message_that_confirms_the_report() {
        let tokens =
            Tokens { prompt: vec![123_456; 128], tokens: vec![7; 32], log_probabilities: vec![-0.123_456; 32] };
        let golden = Golden {
            path: "cpu-f32".to_owned(),
            instruction_set: "avx2".to_owned(),
            kernels: 1,
            tolerance: "0.01".to_owned(),
            prompts: vec![GoldenPrompt::new(&tokens); 4],
        };
        let metrics = [("exact_match".to_owned(), codex_verdict::Measurement::Share { successes: 1, n: 2 })].into();
        let state = EvaluationState { metrics, golden_tokens: Some(golden), ..EvaluationState::default() };
        let report = report(State::Evaluation(state));
        let sent: Report = serde_json::from_slice(&fit(report.clone(), MAX_BYTES).unwrap()).unwrap();
        assert_eq!(sent, report, "the report itself has them");
        let message: Report = serde_json::from_slice(&termination_message(report).unwrap()).unwrap();
        let State::Evaluation(left) = &message.state else { panic!("{message:?}") };
        assert_eq!((left.golden_tokens.as_ref(), left.metrics.len()), (None, 1));
        assert_eq!(sent.contradicts_termination(&message), None);
    }

    #[test]
    fn numbers_are_never_dropped() {
        let metrics = (0..200)
            .map(|i| (format!("metric-{i}"), codex_verdict::Measurement::Share { successes: 1, n: 2 }))
            .collect();
        let state = EvaluationState { metrics, ..EvaluationState::default() };
        let error = fit(report(State::Evaluation(state)), MAX_TERMINATION_BYTES).unwrap_err();
        assert!(matches!(error, FitError::TooLarge { most: MAX_TERMINATION_BYTES, .. }), "{error}");
    }
}
