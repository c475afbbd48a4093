//! Checks manifests of the kinds of codex-ml.dev without a cluster: the schema and the rules of the CRDs as the API server
//! applies them to a new object, unknown fields as `kubectl --validate=strict` refuses them, and then the configuration that
//! the controller would compose. No I/O.
//!
//! What only the cluster knows is not checked: whether other objects exist, quotas, admission policies, and the rules that
//! compare an object with its former version.

mod configuration;
mod document;
mod rules;
mod schema;

use std::fmt;

use serde_json::Value;

pub use document::Position;
use document::{Document, Path};

/// The CRDs that `manifests/crd` installs.
const CRDS: [&str; 6] = [
    include_str!("../../../manifests/crd/trainingruns.yaml"),
    include_str!("../../../manifests/crd/evaluations.yaml"),
    include_str!("../../../manifests/crd/reasoningpods.yaml"),
    include_str!("../../../manifests/crd/clusterpromotionpolicies.yaml"),
    include_str!("../../../manifests/crd/promotionpolicies.yaml"),
    include_str!("../../../manifests/crd/signoffs.yaml"),
];
/// The group of the kinds.
pub const GROUP: &str = "codex-ml.dev";

/// The kinds that can be checked, with their schemas and rules.
#[derive(Debug)]
pub struct Validator {
    kinds: Vec<Kind>,
    rules: rules::Engine,
}

#[derive(Debug)]
struct Kind {
    name: String,
    version: String,
    schema: Value,
}

/// Something that the API server or the controller would refuse, or that is only pointed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where it stands.
    pub position: Position,
    /// Kind and name of the object, if they are known.
    pub object: Option<String>,
    /// The field, such as `spec.gates[0].min`; empty for the whole document.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
    /// Whether it would be accepted, and is only pointed out.
    pub is_notice: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.position.line, self.position.column)?;
        if self.is_notice {
            f.write_str(": notice")?;
        }
        for part in self.object.iter().chain(Some(&self.field).filter(|field| !field.is_empty())) {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Number of objects of codex-ml.dev.
    pub objects: usize,
    /// Number of other objects, which are not checked.
    pub others: usize,
    /// What is wrong, in the order of the file.
    pub findings: Vec<Finding>,
}

/// The shipped CRDs cannot be read. The tests of this crate show that they can.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the CRDs of this program cannot be used: {}", self.0)
    }
}

impl std::error::Error for Unreadable {}

impl Validator {
    /// Reads the CRDs of this version.
    ///
    /// # Errors
    /// If one is invalid.
    pub fn new() -> Result<Self, Unreadable> {
        let mut kinds = Vec::new();
        for text in CRDS {
            let crd: Value = serde_yaml::from_str(text).map_err(|error| Unreadable(error.to_string()))?;
            let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let kind = text("/spec/names/kind").ok_or_else(|| Unreadable("a kind is missing".to_owned()))?;
            for version in crd.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
                let (Some(name), Some(mut schema)) =
                    (version["name"].as_str(), version.pointer("/schema/openAPIV3Schema").cloned())
                else {
                    return Err(Unreadable(format!("{kind} has a version without name or schema")));
                };
                // Every object has these, so schemas leave them out.
                for (field, own) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
                    schema["properties"][field] = serde_json::json!({ "type": own });
                }
                kinds.push(Kind { name: kind.clone(), version: format!("{GROUP}/{name}"), schema });
            }
        }
        let rules = rules::Engine::new(kinds.iter().map(|kind| &kind.schema)).map_err(Unreadable)?;
        Ok(Self { kinds, rules })
    }

    /// Checks all objects of a YAML or JSON file. Objects of other groups are counted and not checked, but the templates in ConfigMaps are
    /// read; the items of a List are checked each.
    #[must_use]
    pub fn check(&self, text: &str) -> Checked {
        let mut checked = Checked::default();
        match document::read(text) {
            Ok(documents) => {
                let config_maps = config_maps(&documents);
                for document in &documents {
                    self.document(document, &config_maps, &mut checked);
                }
            }
            Err(finding) => checked.findings.push(finding),
        }
        checked.findings.sort_by_key(|finding| finding.position);
        checked
    }

    /// Returns the objects of codex-ml.dev in a YAML or JSON file, each as one document or as an item of a List.
    ///
    /// # Errors
    /// What [`Validator::check`] finds.
    pub fn objects(&self, text: &str) -> Result<Vec<Value>, Vec<Finding>> {
        let refused: Vec<Finding> = self.check(text).findings.into_iter().filter(|it| !it.is_notice).collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        let documents = document::read(text).map_err(|finding| vec![finding])?;
        let ours = |object: &Value| {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            version.split('/').next() == Some(GROUP)
        };
        let objects =
            documents.iter().flat_map(|document| roots(document).into_iter().map(|root| document.at(&root).clone()));
        Ok(objects.filter(ours).collect())
    }

    fn document(&self, document: &Document, config_maps: &[Value], checked: &mut Checked) {
        for root in roots(document) {
            self.object(document, &root, config_maps, checked);
        }
    }

    fn object(&self, document: &Document, root: &Path, config_maps: &[Value], checked: &mut Checked) {
        let mut object = document.at(root).clone();
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        let name = text("/metadata/name").or_else(|| text("/metadata/generateName").map(|name| format!("{name}…")));
        let label = kind.as_ref().map(|kind| name.map_or_else(|| kind.clone(), |name| format!("{kind} {name}")));
        let mut found = Vec::new();
        let mut report = |found: Vec<(Path, String)>, is_notice: bool| {
            checked.findings.extend(found.into_iter().map(|(path, message)| Finding {
                is_notice,
                position: document.position(&root.join(&path)),
                object: label.clone(),
                field: path.to_string(),
                message,
            }));
        };
        let (Some(version), Some(kind)) = (version, kind) else {
            found.push((Path::default(), "an object needs the fields apiVersion and kind, both strings".to_owned()));
            report(found, false);
            return;
        };
        if version.split('/').next() != Some(GROUP) {
            checked.others += 1;
            return;
        }
        checked.objects += 1;
        let Some(known) = self.kinds.iter().find(|known| known.name == kind && known.version == version) else {
            let known: Vec<_> = self.kinds.iter().map(|kind| format!("{} {}", kind.version, kind.name)).collect();
            let message = format!("there is no kind {kind} in {version}: use one of {}", known.join(", "));
            report(vec![(Path::default().field("kind"), message)], false);
            return;
        };
        schema::metadata(&object, &mut found);
        schema::check(&known.schema, &mut object, &Path::default(), &mut found);
        if found.is_empty() {
            self.rules.check(&known.schema, &object, &Path::default(), &mut found);
        }
        let mut notices = Vec::new();
        if found.is_empty() {
            configuration::check(&kind, &object, config_maps, &mut found, &mut notices);
        }
        report(found, false);
        report(notices, true);
    }
}

/// Returns the ConfigMaps among documents.
fn config_maps(documents: &[Document]) -> Vec<Value> {
    let objects = documents.iter().flat_map(|document| roots(document).into_iter().map(|root| document.at(&root)));
    objects.filter(|object| object["apiVersion"] == "v1" && object["kind"] == "ConfigMap").cloned().collect()
}

/// Returns the documents of a YAML or JSON file as kubectl reads them, without checking them. Empty ones are left out.
///
/// # Errors
/// The file cannot be parsed.
pub fn documents(text: &str) -> Result<Vec<Value>, Finding> {
    Ok(document::read(text)?.into_iter().map(|document| document.value).collect())
}

/// Returns the paths of the objects of a document: the items of a List, else the document itself.
fn roots(document: &Document) -> Vec<Path> {
    match document.value.get("items") {
        Some(Value::Array(items)) if document.value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => {
            (0..items.len()).map(|index| Path::default().field("items").index(index)).collect()
        }
        _ => vec![Path::default()],
    }
}

#[cfg(test)]
mod tests;
