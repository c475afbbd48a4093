//! Failures of a server in a bounded file: `--errors FILE`. Does I/O.
//!
//! A failure is the server's own: it ends or never becomes ready, its engine fails or stalls, a request is answered with 500, or a file
//! that may change cannot be used. A refused request, an overloaded server and a response that takes too long do not count. Messages name files
//! and causes. They hold no text of a request or an answer, and no key.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use codex_reports::Failure;
use jiff::Timestamp;

use super::{ServeError, batcher::RequestError, bounded_file::BoundedFile, metrics::Endpoint};
use crate::{
    artifacts::{
        environment::variable,
        errors::{SERVER_SCHEMA, ServerErrorRow, ServerErrorSource as Source, causes},
    },
    atomic_fs::FileError,
    error::chain,
    model::GenerateError,
};

/// The most bytes of the file.
const SIZE: u64 = 4 << 20;

/// The file of failures. Without one, nothing is written.
#[derive(Debug, Default)]
pub(super) struct Errors {
    run_id: String,
    file: Option<Mutex<File>>,
    /// Failures that last, by what they are about.
    lasting: Mutex<BTreeMap<Source, String>>,
}

#[derive(Debug)]
struct File {
    lines: BoundedFile,
    /// Whether the latest line could not be written.
    is_failing: bool,
}

impl Errors {
    /// Opens the file of the server called `name`; `None` writes nothing.
    ///
    /// # Errors
    /// A file operation fails.
    pub(super) fn open(path: Option<&PathBuf>, name: Option<&str>) -> Result<Arc<Self>, ServeError> {
        Self::of_size(path.map(PathBuf::as_path), name, SIZE)
    }

    fn of_size(path: Option<&Path>, name: Option<&str>, size: u64) -> Result<Arc<Self>, ServeError> {
        let open = |path: &Path| -> Result<Mutex<File>, FileError> {
            Ok(Mutex::new(File { lines: BoundedFile::open(path, size)?, is_failing: false }))
        };
        let file = path.map(open).transpose().map_err(ServeError::Errors)?;
        let run_id = variable("CODEX_OBJECT_UID").or_else(|| name.map(str::to_owned)).unwrap_or_default();
        Ok(Arc::new(Self { run_id, file, lasting: Mutex::default() }))
    }

    /// Records why the server ends.
    pub(super) fn server(&self, error: &ServeError) {
        let Failure { reason, .. } = error.failure();
        self.write(&ServerErrorRow {
            exit_code: Some(error.exit()),
            ..self.row(Source::Server, &reason, causes(error))
        });
    }

    /// Records that the decoder failed, which ended a response. A refused prompt is not a failure.
    pub(super) fn generation(&self, error: &GenerateError) {
        if let GenerateError::Decoder(_) = error {
            self.write(&self.row(Source::Engine, "DecoderFailed", causes(error)));
        }
    }

    /// Records that a request was answered with status 500.
    pub(super) fn request(&self, endpoint: Endpoint) {
        let row =
            self.row(Source::Request, "InternalError", vec!["the request was answered with status 500".to_owned()]);
        self.write(&ServerErrorRow { endpoint: Some(endpoint.path().to_owned()), ..row });
    }

    /// Records whether the engine makes steps. One that has ended ends the server, which is recorded then.
    pub(super) fn engine(&self, checked: &Result<(), RequestError>) {
        let stalled = matches!(checked, Err(RequestError::Stalled { .. }));
        // The message counts seconds, and would differ each time.
        let told = if stalled { Err("the engine makes no step although requests wait".to_owned()) } else { Ok(()) };
        self.observe(Source::Engine, "EngineStalled", told);
    }

    /// Records whether a file could be read again.
    pub(super) fn reread(&self, source: Source, read: Result<(), String>) {
        self.observe(source, "ReloadFailed", read);
    }

    /// Records whether events of safety rules can be written.
    pub(super) fn safety_events(&self, written: Result<(), String>) {
        self.observe(Source::SafetyEvents, "WriteFailed", written);
    }

    /// Records a failure that lasts when it begins or changes.
    fn observe(&self, source: Source, reason: &str, result: Result<(), String>) {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => drop(lasting.remove(&source)),
            Err(why) if lasting.get(&source) == Some(&why) => {}
            Err(why) => {
                lasting.insert(source, why.clone());
                self.write(&self.row(source, reason, vec![why]));
            }
        }
    }

    fn row(&self, source: Source, reason: &str, chain: Vec<String>) -> ServerErrorRow {
        ServerErrorRow {
            schema: SERVER_SCHEMA.to_owned(),
            timestamp: Timestamp::now(),
            run_id: self.run_id.clone(),
            source,
            reason: reason.to_owned(),
            endpoint: None,
            exit_code: None,
            chain,
        }
    }

    /// Appends a line. A file that cannot be written changes nothing else; the log says so once.
    fn write(&self, row: &ServerErrorRow) {
        let Some(file) = &self.file else { return };
        let mut line = serde_json::to_vec(row).unwrap_or_default();
        line.push(b'\n');
        let File { lines, is_failing } = &mut *file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = lines.append(&line);
        let was_failing = std::mem::replace(is_failing, written.is_err());
        if let Err(error) = written
            && !was_failing
        {
            tracing::warn!(error = chain(&error), "--errors cannot be written; the log has the failures");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use codex_engine::EngineError;

    use super::*;

    fn rows(path: &Path) -> Vec<ServerErrorRow> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_failure_that_lasts_is_one_line_until_it_is_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/errors.ndjson");
        let errors = Errors::open(Some(&path), Some("cot")).unwrap();
        let keys = |result: Result<(), &str>| errors.reread(Source::ApiKeys, result.map_err(str::to_owned));
        for result in [Err("a"), Err("a"), Err("b"), Ok(()), Ok(()), Err("b")] {
            keys(result);
        }
        errors.reread(Source::Certificate, Err("b".to_owned()));
        let found: Vec<(Source, String)> = rows(&path).iter().map(|row| (row.source, row.chain.concat())).collect();
        let expected =
            [(Source::ApiKeys, "a"), (Source::ApiKeys, "b"), (Source::ApiKeys, "b"), (Source::Certificate, "b")];
        assert_eq!(found, expected.map(|(source, why)| (source, why.to_owned())));
        assert!(
            rows(&path)
                .iter()
                .all(|row| row.reason == "ReloadFailed" && row.run_id == "cot" && row.exit_code.is_none())
        );
    }

    #[test]
    fn a_stalled_engine_and_a_failed_decoder_are_failures_and_a_refused_prompt_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("errors.ndjson");
        let errors = Errors::open(Some(&path), None).unwrap();
        for seconds in [120, 121] {
            errors.engine(&Err(RequestError::Stalled { since: std::time::Duration::from_secs(seconds) }));
        }
        errors.engine(&Err(RequestError::Ended));
        errors.generation(&GenerateError::Response { tokens: 3, context: 2 });
        errors.generation(&GenerateError::Decoder(Arc::new(EngineError::TooLong { tokens: 3, context: 2 })));
        errors.request(Endpoint::Infer);
        let found: Vec<(String, Option<String>)> =
            rows(&path).into_iter().map(|row| (row.reason, row.endpoint)).collect();
        let expected = [("EngineStalled", None), ("DecoderFailed", None), ("InternalError", Some("/infer"))];
        assert_eq!(found, expected.map(|(reason, at)| (reason.to_owned(), at.map(str::to_owned))));
    }

    #[test]
    fn the_file_is_bounded_and_one_that_cannot_be_written_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("errors.ndjson");
        let errors = Errors::of_size(Some(&path), None, 1000).unwrap();
        for _ in 0..40 {
            errors.request(Endpoint::Infer);
        }
        let sizes = [path.clone(), path.with_added_extension("1")].map(|path| fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| (1..=1000).contains(size)), "{sizes:?}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
        let refused = Errors::open(Some(&PathBuf::from("/proc/errors.ndjson")), None).unwrap_err();
        assert!(refused.to_string().starts_with("--errors: "), "{refused}");
        Errors::default().request(Endpoint::Infer);
    }
}
