//! `codex validate`: checks manifests without a cluster, as the API server and the controller would. Reads files, folders and
//! standard input.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use codex_provenance::text::{Printable, counted};
use codex_reports::exit;
use codex_validate::{Finding, Validator};
use serde_json::json;

use crate::error::CommandError;

/// The largest file that is read: the API server refuses larger objects, and a file of many is well below it.
const MAX_FILE: u64 = 64 << 20;

/// Check manifests of codex-ml.dev without a cluster: fields, types, rules and the configuration that they give.
///
/// Prints what the API server or the controller would refuse, each with file, line and column, and notices about gates that
/// cannot pass. Exit code 0 if nothing would be refused, else 2.
#[derive(Debug, clap::Args)]
pub struct Validate {
    /// Files, and folders whose .yaml, .yml and .json files are read; `-` is standard input.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// How findings are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One line for each.
    Text,
    /// One JSON object for each.
    Json,
    /// Annotations of GitHub Actions.
    Github,
}

/// A file cannot be checked.
#[derive(Debug, thiserror::Error)]
enum ValidateError {
    #[error("{}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has more than {MAX_FILE} bytes: no manifest is that large", .0.display())]
    Large(PathBuf),
    #[error("{} is not UTF-8 text{}: save it as UTF-8", .0.display(), .1)]
    NotText(PathBuf, &'static str),
    #[error("writing to standard output")]
    Output(#[source] io::Error),
}

impl Validate {
    /// Checks the files.
    ///
    /// # Errors
    /// A file cannot be read or is no text.
    pub fn run(self) -> Result<i32, CommandError> {
        let validator = Validator::new().map_err(CommandError::failed)?;
        let mut files = Vec::new();
        for path in &self.paths {
            collect(path, true, &mut files).map_err(CommandError::bad_input)?;
        }
        let (mut objects, mut others, mut findings) = (0, 0, 0);
        let mut out = io::stdout().lock();
        for file in &files {
            let text = read(file).map_err(CommandError::bad_input)?;
            let checked = validator.check(&text);
            objects += checked.objects;
            others += checked.others;
            findings += checked.findings.iter().filter(|finding| !finding.is_notice).count();
            for finding in &checked.findings {
                writeln!(out, "{}", self.format.line(file, finding)).map_err(output)?;
            }
        }
        let summary = format!(
            "{} checked in {}: {}{}",
            counted(objects, "object"),
            counted(files.len(), "file"),
            if findings == 0 { "nothing is wrong".to_owned() } else { counted(findings, "finding") },
            if others == 0 { String::new() } else { format!("; {others} of other groups not checked") },
        );
        match self.format {
            Format::Text => writeln!(out, "{summary}").map_err(output)?,
            Format::Json | Format::Github => tracing::info!("{summary}"),
        }
        Ok(if findings == 0 { exit::FINISHED } else { exit::BAD_INPUT })
    }
}

fn output(error: io::Error) -> CommandError {
    CommandError::failed(ValidateError::Output(error))
}

/// Lists the files of a path in the order of their names.
fn collect(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<(), ValidateError> {
    let failed = |source| ValidateError::Read { path: path.to_owned(), source };
    if path == Path::new("-") || !fs::metadata(path).map_err(failed)?.is_dir() {
        let extension = path.extension().and_then(|it| it.to_str());
        if named || extension.is_some_and(|it| ["yaml", "yml", "json"].contains(&it)) {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    let mut entries: Vec<_> = fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()
        .map_err(failed)?;
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A link to a folder above would never end.
        let linked_folder = entry.is_symlink() && entry.is_dir();
        if !hidden && !linked_folder {
            collect(&entry, false, files)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ValidateError> {
    let failed = |source| ValidateError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let source: Box<dyn io::Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(fs::File::open(path).map_err(failed)?) };
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ValidateError::Large(path.to_owned()));
    }
    let marked = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    String::from_utf8(bytes)
        .map_err(|_| ValidateError::NotText(path.to_owned(), if marked { ", but UTF-16" } else { "" }))
}

impl Format {
    fn line(self, file: &Path, finding: &Finding) -> String {
        let file = file.display().to_string();
        let Finding { position, object, field, message, is_notice } = finding;
        let level = if *is_notice { "notice" } else { "error" };
        match self {
            Self::Text => format!("{}:{}", Printable(&file), Printable(&finding.to_string())),
            Self::Json => json!({
                "file": file, "line": position.line, "column": position.column, "object": object, "field": field,
                "message": message, "level": level,
            })
            .to_string(),
            Self::Github => {
                // A property also ends at a comma or colon.
                let text = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
                let property = |value: &str| text(value).replace(':', "%3A").replace(',', "%2C");
                let about: Vec<&str> =
                    object.iter().map(String::as_str).chain(Some(field.as_str()).filter(|it| !it.is_empty())).collect();
                format!(
                    "::{level} file={},line={},col={},title={}::{}",
                    property(&file),
                    position.line,
                    position.column,
                    property(&about.join(": ")),
                    text(message)
                )
            }
        }
    }
}
