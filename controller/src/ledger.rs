//! The ledger of reads: how often verdicts have read each set of held-out problems.
//!
//! Each set has a ConfigMap `codex-reads-<digest>` in the controller's own namespace, with a seal. It belongs to no object, so
//! deleting Evaluations does not lower a count. A verdict is published after its read was recorded here, and a read is recorded once,
//! whatever fails: it has a key, and what is recorded under a key keeps its number.
//!
//! Numbers are given before they are recorded, because plans state them. Only the holder of the Lease writes, and every write names the
//! version that it changes: a write of a former holder makes the next one read the ConfigMap again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use codex_crds::{Evaluation, Reason};
use codex_plan::Read;
use codex_provenance::DataDigest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{
    api::post_params,
    context::Context,
    error::{answered, client_category, refused, said},
    observe::Observe,
    seal::Seal,
    secrets::metadata,
};

/// The keys of the ConfigMap.
const READS: &str = "reads.json";
const SEAL: &str = "seal";
/// The digits of the digest in the name of the ConfigMap.
const DIGITS: usize = 32;
/// How many reads the ledger lists, the newest. Older ones are only counted.
const LISTED: usize = 512;

/// Why a read cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A request to the API server failed.
    #[error("the ConfigMap {name} in {namespace}, which counts reads, cannot be {verb}: {}", said(source))]
    Client {
        /// The name of the ConfigMap.
        name: String,
        /// The controller's namespace.
        namespace: String,
        /// The operation, as a past participle.
        verb: &'static str,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else wrote the ConfigMap, or the seal key was replaced.
    #[error(
        "the ConfigMap {name} in {namespace}, which counts reads, carries no valid seal of this controller, so another client wrote it \
         or the Secret codex-seal was replaced: restore it from a backup, or delete it to count on from what the existing Evaluations \
         record"
    )]
    Broken {
        /// The name of the ConfigMap.
        name: String,
        /// The controller's namespace.
        namespace: String,
    },
    /// The number was given to another read.
    #[error("read {number} of the problems {} was recorded for another verdict; this one gets another number", problems.short())]
    Moved {
        /// The problems.
        problems: DataDigest,
        /// The number.
        number: i64,
    },
    /// The ledger cannot be serialized.
    #[error("the ledger of reads cannot be serialized to JSON: {0}")]
    Json(#[source] serde_json::Error),
}

impl LedgerError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Broken { .. } => "broken_ledger",
            Self::Moved { .. } => "conflict",
            Self::Json(_) => "encoding",
        }
    }

    /// Returns the reason of the `Stalled` condition if the failure needs attention.
    pub fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Client { source, .. } => refused(source).then_some(Reason::Refused),
            Self::Broken { .. } => Some(Reason::ReadUncounted),
            Self::Moved { .. } | Self::Json(_) => None,
        }
    }
}

/// The ledger, as this process knows it.
#[derive(Default)]
pub struct Ledger(Mutex<BTreeMap<DataDigest, Arc<tokio::sync::Mutex<Option<Set>>>>>);

/// The reads of a set of problems.
struct Set {
    sheet: Sheet,
    /// The version of the ConfigMap; `None` until it exists.
    version: Option<String>,
    /// Numbers that were given to reads and are not recorded yet, by key.
    given: BTreeMap<String, i64>,
}

/// What the ConfigMap holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sheet {
    problems: DataDigest,
    /// The highest number.
    total: i64,
    /// The newest reads, the newest last.
    newest: Vec<Entry>,
}

/// A recorded read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    key: String,
    number: i64,
    evaluation: String,
}

impl Sheet {
    fn new(problems: DataDigest) -> Self {
        Self { problems, total: 0, newest: Vec::new() }
    }

    /// Returns the number under which a read is recorded.
    fn number(&self, key: &str) -> Option<i64> {
        self.newest.iter().rev().find(|entry| entry.key == key).map(|entry| entry.number)
    }

    /// Returns the sheet with one more read.
    fn with(&self, read: &Read) -> Self {
        let Read { key, number, evaluation, .. } = read.clone();
        let mut newest = self.newest.clone();
        newest.push(Entry { key, number, evaluation });
        newest.drain(..newest.len().saturating_sub(LISTED));
        Self { total: self.total.max(number), newest, ..self.clone() }
    }

    fn read(config_map: &ConfigMap, problems: DataDigest, seal: &Seal) -> Option<Self> {
        let data = config_map.data.as_ref()?;
        let (text, carried) = (data.get(READS)?, data.get(SEAL)?);
        let sheet: Self = serde_json::from_str(text).ok()?;
        (Seal::is_equal(carried, &seal.of_reads(text)) && sheet.problems == problems).then_some(sheet)
    }

    fn written(&self, version: Option<String>, seal: &Seal) -> Result<ConfigMap, LedgerError> {
        let text = serde_json::to_string(self).map_err(LedgerError::Json)?;
        let sealed = seal.of_reads(&text);
        let mut metadata = metadata(&name(self.problems), "reads");
        metadata.resource_version = version;
        let data = BTreeMap::from([(READS.to_owned(), text), (SEAL.to_owned(), sealed)]);
        Ok(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })
    }
}

impl Set {
    /// Returns the number of a read: the one under which it is recorded, or the next one.
    fn number(&mut self, key: &str) -> i64 {
        if let Some(known) = self.sheet.number(key).or_else(|| self.given.get(key).copied()) {
            return known;
        }
        let next = self.given.values().copied().fold(self.sheet.total, i64::max).saturating_add(1);
        self.given.insert(key.to_owned(), next);
        next
    }
}

fn name(problems: DataDigest) -> String {
    let digest = problems.to_string();
    format!("codex-reads-{}", digest.get(..DIGITS).unwrap_or_default())
}

impl Ledger {
    fn set(&self, problems: DataDigest) -> Arc<tokio::sync::Mutex<Option<Set>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(problems).or_default().clone()
    }

    /// Returns the number of a read, which is recorded under it or will be.
    ///
    /// # Errors
    /// When the ConfigMap cannot be read, or carries no valid seal.
    pub async fn number(&self, context: &Context, problems: DataDigest, key: &str) -> Result<i64, LedgerError> {
        let set = self.set(problems);
        let mut set = set.lock().await;
        Ok(loaded(context, problems, &mut set).await?.number(key))
    }

    /// Records a read. One that is recorded already is left alone.
    ///
    /// # Errors
    /// When a request fails, the seal is invalid, or the number now belongs to another read.
    pub async fn record(&self, context: &Context, read: &Read) -> Result<(), LedgerError> {
        let set = self.set(read.problems);
        let mut held = set.lock().await;
        let set = loaded(context, read.problems, &mut held).await?;
        let moved = || LedgerError::Moved { problems: read.problems, number: read.number };
        match set.sheet.number(&read.key) {
            Some(number) if number == read.number => return Ok(()),
            None if set.given.get(&read.key) == Some(&read.number) => {}
            Some(_) | None => return Err(moved()),
        }
        let sheet = set.sheet.with(read);
        let api = api(context);
        let wanted = sheet.written(set.version.clone(), &context.seal)?;
        let (verb, written) = match &set.version {
            None => ("create", api.create(&post_params(), &wanted).await),
            Some(_) => ("update", api.replace(&wanted.name_any(), &post_params(), &wanted).await),
        };
        match written {
            Ok(written) => {
                set.version = written.resource_version();
                set.sheet = sheet;
                set.given.remove(&read.key);
                context.metrics.wrote("ConfigMap", verb);
                info!("recorded read {} of the problems {} by {}", read.number, read.problems.short(), read.evaluation);
                Ok(())
            }
            Err(source) => {
                // Whether it was written is not known, or another process wrote first: it is read again.
                *held = None;
                if answered(&source, 409) {
                    Err(moved())
                } else {
                    Err(client(context, read.problems, "written", source))
                }
            }
        }
    }
}

fn api(context: &Context) -> Api<ConfigMap> {
    Api::namespaced(context.client.clone(), &context.settings.controller_namespace)
}

fn client(context: &Context, problems: DataDigest, verb: &'static str, source: kube::Error) -> LedgerError {
    let namespace = context.settings.controller_namespace.clone();
    LedgerError::Client { name: name(problems), namespace, verb, source: Box::new(source) }
}

/// Returns a set, and reads it from its ConfigMap if this process does not know it.
async fn loaded<'a>(
    context: &Context,
    problems: DataDigest,
    held: &'a mut Option<Set>,
) -> Result<&'a mut Set, LedgerError> {
    let set = match held.take() {
        Some(set) => set,
        None => load(context, problems).await?,
    };
    Ok(held.insert(set))
}

async fn load(context: &Context, problems: DataDigest) -> Result<Set, LedgerError> {
    let name = name(problems);
    let found = api(context).get_opt(&name).await.map_err(|source| client(context, problems, "read", source))?;
    let (mut sheet, version) = match found {
        None => (Sheet::new(problems), None),
        Some(found) => {
            let namespace = context.settings.controller_namespace.clone();
            let sheet = Sheet::read(&found, problems, &context.seal);
            (sheet.ok_or(LedgerError::Broken { name: name.clone(), namespace })?, found.resource_version())
        }
    };
    // A ledger that was deleted or restored from a backup counts on from what statuses record.
    let published = published(context, problems);
    if published > sheet.total {
        warn!(
            "the ConfigMap {name} counts {} reads, but a status records read {published}: it counts on from there",
            sheet.total
        );
        sheet.total = published;
    }
    Ok(Set { sheet, version, given: BTreeMap::new() })
}

/// Returns the highest number of a read of these problems that a sealed status records.
fn published(context: &Context, problems: DataDigest) -> i64 {
    let of_problems = context.stores.evaluations.all().filter(|evaluation| {
        let read = evaluation.status.as_ref().and_then(|status| status.reads);
        read.is_some_and(|read| read.data_digest == problems)
    });
    let believed = of_problems.map(|evaluation| Evaluation::clone(&evaluation).believed(context));
    believed.filter_map(|evaluation| Some(evaluation.status?.reads?.number)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use codex_plan::Read;
    use codex_provenance::{DataDigest, Sha256};

    use super::{LISTED, Set, Sheet, name};
    use crate::seal::Seal;

    fn problems() -> DataDigest {
        DataDigest(Sha256::of("problems"))
    }

    fn read(key: &str, number: i64) -> Read {
        Read { problems: problems(), key: key.to_owned(), number, evaluation: "team/lite".to_owned() }
    }

    #[test]
    fn numbers_are_given_once_and_in_order() {
        let mut set = Set { sheet: Sheet::new(problems()), version: None, given: std::collections::BTreeMap::new() };
        assert_eq!((set.number("a"), set.number("b"), set.number("a")), (1, 2, 1));
        // The second is recorded first, and the first is never recorded.
        set.sheet = set.sheet.with(&read("b", 2));
        set.given.clear();
        assert_eq!((set.number("b"), set.number("c")), (2, 3));
    }

    #[test]
    fn a_long_ledger_forgets_who_read_and_not_how_often() {
        let mut sheet = Sheet::new(problems());
        for number in 1..=1_000 {
            sheet = sheet.with(&read(&number.to_string(), number));
        }
        assert_eq!((sheet.total, sheet.newest.len()), (1_000, LISTED));
        assert_eq!((sheet.number("1000"), sheet.number("1")), (Some(1_000), None));
        let text = serde_json::to_string(&sheet).unwrap();
        assert!(text.len() < 100_000, "a ConfigMap holds it: {}", text.len());
    }

    #[test]
    fn a_ledger_is_read_with_its_seal_only() {
        let (seal, sheet) = (Seal::for_tests(), Sheet::new(problems()).with(&read("a", 1)));
        let written = sheet.written(None, &seal).unwrap();
        assert_eq!(written.metadata.name.as_deref(), Some(&*name(problems())));
        assert_eq!(Sheet::read(&written, problems(), &seal), Some(sheet));
        assert_eq!(Sheet::read(&written, DataDigest(Sha256::of("others")), &seal), None, "copied under another name");
        let mut forged = written;
        let text = forged.data.as_mut().unwrap().get_mut("reads.json").unwrap();
        *text = text.replace("\"total\":1", "\"total\":0");
        assert_eq!(Sheet::read(&forged, problems(), &seal), None);
    }
}
