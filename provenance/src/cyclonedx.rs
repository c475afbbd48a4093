//! `CycloneDX` 1.6 documents about models: ML-BOMs. Pure.
//!
//! Source: <https://cyclonedx.org/docs/1.6/json/>. The same content gives the same bytes: a document has no time, and its serial
//! number follows from its content.

use serde_json::{Map, Value, json};

use crate::{
    canonical::canonical,
    digest::{DataDigest, ModelDigest, Sha256},
    manifest::File,
    promotion::Evaluation,
};

/// The format of documents.
pub const FORMAT: &str = "CycloneDX";
/// The version of the format.
pub const VERSION: &str = "1.6";
/// The `bom-ref` of the model.
const MODEL: &str = "model";
/// The property of a file that has its size in bytes.
const SIZE: &str = "codex:size";

/// What an ML-BOM says.
#[derive(Debug)]
pub struct Bom<'a> {
    /// The component of the program that wrote it.
    pub tool: Value,
    /// Name of the model.
    pub name: &'a str,
    /// Digest of the model.
    pub digest: ModelDigest,
    /// Files of the model.
    pub files: &'a [File],
    /// Name and digest of the model that it was trained from.
    pub base: Option<(String, ModelDigest)>,
    /// Files that it was trained on, by name.
    pub trained_on: Vec<(&'a str, Sha256)>,
    /// Files that it was measured on, by name. A file that is there twice is written once.
    pub measured_on: Vec<(&'a str, Sha256)>,
    /// Approach of the training, such as `supervised`, if it is known.
    pub approach: Option<&'a str>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// What `CycloneDX` has no field for, by name without `codex:`.
    pub properties: Vec<(&'a str, String)>,
}

impl Bom<'_> {
    /// Returns the document.
    pub fn document(&self) -> Value {
        let trained_on: Vec<Value> =
            self.trained_on.iter().map(|(name, digest)| data(name, *digest, "training-data")).collect();
        let mut measured_on = self.measured_on.clone();
        measured_on.sort_unstable();
        measured_on.dedup();
        // Names are not unique among evaluations, and a bom-ref has to be.
        let measured_on = measured_on
            .into_iter()
            .map(|(name, digest)| data(name, digest, &format!("evaluation-data/{}", digest.short())));
        let model = self.model(&trained_on);
        let data: Vec<Value> = trained_on.into_iter().chain(measured_on).collect();
        let needs: Vec<&Value> = data.iter().map(|data| &data["bom-ref"]).collect();
        let mut document = json!({
            "$schema": format!("http://cyclonedx.org/schema/bom-{VERSION}.schema.json"),
            "bomFormat": FORMAT,
            "specVersion": VERSION,
            "version": 1,
            "metadata": { "tools": { "components": [self.tool] }, "component": model },
            "dependencies": [{ "ref": MODEL, "dependsOn": needs }],
            "components": data,
        });
        document["serialNumber"] = json!(serial(&Sha256::of(canonical(&document))));
        document
    }

    fn model(&self, trained_on: &[Value]) -> Value {
        let mut parameters = json!({
            "task": "text-generation",
            "architectureFamily": "transformer",
            "inputs": [{ "format": "text/plain" }],
            "outputs": [{ "format": "text/plain" }],
        });
        if !trained_on.is_empty() {
            let datasets: Vec<Value> = trained_on.iter().map(|data| json!({ "ref": data["bom-ref"] })).collect();
            parameters["datasets"] = json!(datasets);
        }
        if let Some(approach) = self.approach {
            parameters["approach"] = json!({ "type": approach });
        }
        let metrics: Vec<Value> = self.metrics.iter().map(Metric::written).collect();
        let properties: Vec<Value> = self
            .properties
            .iter()
            .map(|(name, value)| json!({ "name": format!("codex:{name}"), "value": value }))
            .collect();
        let mut model = json!({
            "type": "machine-learning-model",
            "bom-ref": MODEL,
            "name": self.name,
            "version": self.digest,
            "components": self.files.iter().map(file).collect::<Vec<_>>(),
            "modelCard": {
                "modelParameters": parameters,
                "quantitativeAnalysis": { "performanceMetrics": metrics },
            },
            "properties": properties,
        });
        if let Some((name, digest)) = &self.base {
            let ancestor = json!({ "type": "machine-learning-model", "name": name, "version": digest });
            model["pedigree"] = json!({ "ancestors": [ancestor] });
        }
        model
    }
}

/// A number that was measured of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric {
    /// Name of the metric.
    pub name: String,
    /// What it was measured on.
    pub on: String,
    /// The number.
    pub value: Option<String>,
    /// Lower and upper bound.
    pub bounds: Option<(String, String)>,
}

impl Metric {
    /// Returns the numbers of an evaluation in a promotion statement: those of each gate, with the bounds that its verdict compared.
    pub fn of_gates(evaluation: &Evaluation) -> impl Iterator<Item = Self> {
        let on = slice(&evaluation.preset, evaluation.data.get("problems").copied());
        evaluation.gates.iter().map(move |gate| Self {
            name: match gate.better_than.as_ref().or(gate.not_worse_than.as_ref()) {
                Some(_) => difference(&gate.metric),
                None => gate.metric.clone(),
            },
            on: on.clone(),
            value: gate.value.clone(),
            bounds: gate.lower.clone().zip(gate.upper.clone()),
        })
    }

    fn written(&self) -> Value {
        let mut metric = Map::from_iter([("type".to_owned(), json!(self.name)), ("slice".to_owned(), json!(self.on))]);
        metric.extend(self.value.as_ref().map(|value| ("value".to_owned(), json!(value))));
        let interval = self.bounds.as_ref().map(|(lower, upper)| json!({ "lowerBound": lower, "upperBound": upper }));
        metric.extend(interval.map(|interval| ("confidenceInterval".to_owned(), interval)));
        metric.into()
    }
}

/// Returns the name of the difference of a metric from that of another evaluation.
pub fn difference(metric: &str) -> String {
    format!("difference of {metric}")
}

/// Returns what a metric was measured on.
pub fn slice(preset: &str, problems: Option<DataDigest>) -> String {
    problems.map_or_else(|| preset.to_owned(), |digest| format!("{preset}, problems {digest}"))
}

/// Returns the file that a component of a document is; `None` if it is no file with a SHA-256 and a size.
pub(crate) fn read_file(component: &Value) -> Option<File> {
    let size = component["properties"].as_array()?.iter().find(|property| property["name"] == SIZE)?;
    Some(File {
        path: component["name"].as_str()?.to_owned(),
        size: size["value"].as_str()?.parse().ok()?,
        sha256: component.pointer("/hashes/0/content")?.as_str()?.parse().ok()?,
    })
}

fn file(file: &File) -> Value {
    json!({
        "type": "file",
        "name": file.path,
        "hashes": [hash(file.sha256)],
        "properties": [{ "name": SIZE, "value": file.size.to_string() }],
    })
}

fn data(name: &str, digest: Sha256, role: &str) -> Value {
    json!({ "type": "data", "bom-ref": format!("{role}/{name}"), "name": name, "hashes": [hash(digest)] })
}

fn hash(digest: Sha256) -> Value {
    json!({ "alg": "SHA-256", "content": digest })
}

/// Returns a serial number in the form of a UUID of version 8, whose bits the digest of the content gives.
fn serial(digest: &Sha256) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}
