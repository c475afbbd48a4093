//! The documents of a task: JSON lines, or one JSON array, from files beside the task. Reads files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;
use serde_json::Value;
use serde_yaml::Value as Yaml;

use super::{HarnessError, beside, read::Section, template::Document};
use crate::atomic_fs;

/// Where the files of a task are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// Beside this file.
    Beside(&'a Path),
    /// In the program, by their names.
    Included(&'static [(&'static str, &'static str)]),
}

/// The files of each split.
#[derive(Clone, Debug, Default)]
pub(super) struct DataFiles {
    splits: BTreeMap<String, Vec<String>>,
}

/// The documents of a split, and what they were read from.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub(super) all: Vec<Document>,
    pub(super) files: Vec<PathBuf>,
    /// Digest of each file by its name in the task.
    pub(super) digests: BTreeMap<String, Sha256>,
}

impl DataFiles {
    /// Reads `dataset_path` and `dataset_kwargs.data_files` of a task.
    ///
    /// # Errors
    /// The data is not in local files.
    pub(super) fn read(task: Section<'_>) -> Result<Self, HarnessError> {
        let path = task.text("dataset_path")?.unwrap_or_default();
        if path != "json" {
            let why =
                format!("{path:?} is not supported: write json, and name local files in dataset_kwargs.data_files");
            return Err(task.refuse("dataset_path", why));
        }
        let right = "name the files of each split, such as {test: problems.jsonl}";
        let Some(arguments) = task.section("dataset_kwargs", &["data_files"])? else {
            return Err(task.refuse("dataset_kwargs", format!("is missing: write data_files, and {right}")));
        };
        let names = |value: &Yaml| -> Option<Vec<String>> {
            match value {
                Yaml::String(name) => Some(vec![name.clone()]),
                Yaml::Sequence(all) => all.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
                _ => None,
            }
        };
        let splits = match arguments.value("data_files") {
            // As in Hugging Face's datasets, files without a split are those of train.
            Some(value @ (Yaml::String(_) | Yaml::Sequence(_))) => {
                names(value).map(|names| BTreeMap::from([("train".to_owned(), names)]))
            }
            Some(Yaml::Mapping(splits)) => {
                splits.iter().map(|(split, value)| Some((split.as_str()?.to_owned(), names(value)?))).collect()
            }
            _ => None,
        };
        let splits = splits.ok_or_else(|| arguments.refuse("data_files", right))?;
        if let Some(name) = splits.values().flatten().find(|name| name.contains("://")) {
            return Err(
                arguments.refuse("data_files", format!("{name:?} is no local file: download it, and name the file"))
            );
        }
        Ok(Self { splits })
    }

    /// Reads the documents of a split. `key` is that of the task which names it.
    ///
    /// # Errors
    /// The split has no files, or a file cannot be read or holds something else than documents.
    pub(super) fn documents(
        &self,
        task: Section<'_>,
        (key, split): (&str, &str),
        place: Place<'_>,
    ) -> Result<Documents, HarnessError> {
        let Some(names) = self.splits.get(split) else {
            let known: Vec<_> = self.splits.keys().map(String::as_str).collect();
            let why = format!("{split:?} has no files in dataset_kwargs.data_files: use one of {}", known.join(", "));
            return Err(task.refuse(key, why));
        };
        let mut documents = Documents::default();
        for name in names {
            let bytes = match place {
                Place::Beside(file) => {
                    let path = beside(file, name);
                    let bytes = atomic_fs::read_named::<HarnessError>("dataset_kwargs.data_files", &path)?;
                    documents.files.push(path);
                    bytes
                }
                Place::Included(files) => {
                    let found = files.iter().find(|(known, _)| known == name);
                    found.map(|(_, text)| text.as_bytes().to_vec()).unwrap_or_default()
                }
            };
            documents.digests.insert(name.clone(), Sha256::of(&bytes));
            parse(name, &bytes, &mut documents.all)?;
        }
        if documents.all.is_empty() {
            return Err(task.refuse(key, format!("{split:?} has no documents: add some to {}", names.join(", "))));
        }
        Ok(documents)
    }
}

/// Adds the documents of a file. Errors do not quote it.
fn parse(file: &str, bytes: &[u8], into: &mut Vec<Document>) -> Result<(), HarnessError> {
    let wrong =
        |document: usize, why: &str| HarnessError::Document { file: file.to_owned(), document, why: why.to_owned() };
    if bytes.trim_ascii_start().starts_with(b"[") {
        let all: Vec<Value> =
            serde_json::from_slice(bytes).map_err(|_| wrong(into.len(), "the file is no array of JSON objects"))?;
        for value in all {
            let Value::Object(document) = value else { return Err(wrong(into.len(), "is no JSON object")) };
            into.push(document);
        }
        return Ok(());
    }
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        let Ok(document) = serde_json::from_slice::<Document>(line) else {
            return Err(wrong(into.len(), "is no JSON object: write one per line"));
        };
        into.push(document);
    }
    Ok(())
}
