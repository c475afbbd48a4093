//! A task: what of lm-evaluation-harness's YAML is supported, as typed values. Reads the file and its data.

use std::path::{Path, PathBuf};

use codex_engine::{Sampler, Sampling};
use codex_provenance::Sha256;
use serde_json::Value;
use serde_yaml::Value as Yaml;

use super::{
    HarnessError,
    documents::{DataFiles, Documents, Place},
    filter::Filter,
    include,
    metric::{Metric, OutputType},
    read::{Section, Source},
    template::{Document, Template},
};
use crate::atomic_fs;

/// The keys of a task.
const KEYS: &[&str] = &[
    "task",
    "task_alias",
    "tag",
    "dataset_path",
    "dataset_kwargs",
    "test_split",
    "fewshot_split",
    "fewshot_config",
    "num_fewshot",
    "description",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "target_delimiter",
    "fewshot_delimiter",
    "output_type",
    "repeats",
    "generation_kwargs",
    "filter_list",
    "metric_list",
    "metadata",
];
/// The most tokens of a response of a task that names no number.
const TOKENS: u64 = 256;

/// A task with its documents.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) version: Value,
    pub(super) output: OutputType,
    pub(super) shots: usize,
    pub(super) repeats: usize,
    pub(super) generation: Generation,
    pub(super) filters: Vec<Filter>,
    pub(super) metrics: Vec<Metric>,
    /// The file as it is, for the results.
    pub(super) config: Value,
    /// Digest of the file.
    pub(super) digest: Sha256,
    /// The documents of the test split.
    pub(super) documents: Documents,
    file: PathBuf,
    examples: Documents,
    description: Template,
    text: Template,
    target: Template,
    choices: Option<Choices>,
    delimiters: [String; 2],
}

/// How the model writes.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub(super) until: Vec<String>,
    pub(super) tokens: usize,
    pub(super) sampling: Sampling,
    /// As the samples have it.
    pub(super) arguments: Value,
}

/// Where the choices of a document come from.
#[derive(Clone, Debug)]
enum Choices {
    Fixed(Vec<String>),
    Of(Template),
}

/// What is asked about a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// The text before the response, with examples.
    pub(super) prompt: String,
    /// The target, as the samples have it: a text, or the index of the right choice.
    pub(super) target: Value,
    /// What is scored after the prompt: the target, or each choice. Empty if the model writes.
    pub(super) continuations: Vec<String>,
    /// The choices; empty if there are none.
    pub(super) choices: Vec<String>,
    /// The index of the right choice.
    pub(super) right: usize,
}

impl Task {
    /// Opens an included task or a file.
    ///
    /// # Errors
    /// The file or its data cannot be read, or has something that is not supported.
    pub(super) fn open(name: &str) -> Result<Self, HarnessError> {
        if let Some((name, text, files)) = include::included(name) {
            let source = Source { file: format!("{name}.yaml"), text: text.to_owned() };
            return Self::parse(&source, Place::Included(files), PathBuf::new());
        }
        let path = Path::new(name);
        if path.extension().is_none() && !path.exists() {
            let known = include::names().join(" and ");
            return Err(HarnessError::Arguments(format!(
                "--task {name}: name a YAML file, or an included task: {known}"
            )));
        }
        let bytes = atomic_fs::read_named::<HarnessError>("--task", path)?;
        let source = Source { file: path.display().to_string(), text: String::from_utf8_lossy(&bytes).into_owned() };
        Self::parse(&source, Place::Beside(path), path.to_owned())
    }

    fn parse(source: &Source, place: Place<'_>, file: PathBuf) -> Result<Self, HarnessError> {
        let yaml: Yaml = serde_yaml::from_str(&source.text).map_err(|error| HarnessError::Task {
            file: source.file.clone(),
            line: error.location().map_or(1, |place| place.line()),
            what: "the task".to_owned(),
            why: "is not valid YAML".to_owned(),
        })?;
        let task = Section::of(source, "", &yaml, KEYS)?;
        let needed = |key: &'static str| -> Result<_, HarnessError> {
            task.text(key)?.ok_or_else(|| task.refuse(key, "is missing: write it"))
        };
        let name = needed("task")?.to_owned();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
            return Err(task.refuse("task", "names the files of the results: use letters, digits, -, _ and ."));
        }
        let output = match task.text("output_type")? {
            None | Some("generate_until") => OutputType::GenerateUntil,
            Some("loglikelihood") => OutputType::Loglikelihood,
            Some("multiple_choice") => OutputType::MultipleChoice,
            Some(other) => {
                let why = format!("{other:?} is not supported: use generate_until, loglikelihood or multiple_choice");
                return Err(task.refuse("output_type", why));
            }
        };
        let template = |key: &'static str| -> Result<_, HarnessError> {
            Template::new(needed(key)?)
                .map_err(|why| task.refuse(key, format!("is no template that can be used: {why}")))
        };
        let description = Template::new(task.text("description")?.unwrap_or_default())
            .map_err(|why| task.refuse("description", format!("is no template that can be used: {why}")))?;
        let choices = match (output, task.value("doc_to_choice")) {
            (OutputType::MultipleChoice, None) => {
                return Err(task.refuse("doc_to_choice", "is missing: list the choices"));
            }
            (OutputType::MultipleChoice, Some(Yaml::String(text))) => {
                Some(Choices::Of(Template::new(text).map_err(|why| task.refuse("doc_to_choice", why))?))
            }
            (OutputType::MultipleChoice, Some(_)) => task.texts("doc_to_choice")?.map(Choices::Fixed),
            (_, Some(_)) => {
                return Err(task.refuse("doc_to_choice", "belongs to output_type multiple_choice: remove it"));
            }
            (_, None) => None,
        };
        let files = DataFiles::read(task)?;
        let documents = files.documents(task, ("test_split", needed("test_split")?), place)?;
        let shots = task.whole("num_fewshot", 0, 100)?.unwrap_or(0) as usize;
        let examples = Self::examples(task, &files, shots, place)?;
        let delimiter =
            |key: &'static str, usual: &str| Ok::<_, HarnessError>(task.text(key)?.unwrap_or(usual).to_owned());
        let delimiters = [delimiter("target_delimiter", " ")?, delimiter("fewshot_delimiter", "\n\n")?];
        let known = ["name", "filter"];
        let filters = match (task.sections("filter_list", &known)?, output) {
            (Some(_), OutputType::Loglikelihood | OutputType::MultipleChoice) => {
                return Err(task.refuse("filter_list", "filters what a model writes: remove it, or use generate_until"));
            }
            (Some(all), _) if !all.is_empty() => all.into_iter().map(Filter::read).collect::<Result<_, _>>()?,
            _ => vec![Filter::none()],
        };
        let known = [
            "metric",
            "aggregation",
            "higher_is_better",
            "ignore_case",
            "ignore_punctuation",
            "ignore_numbers",
            "regexes_to_ignore",
        ];
        let metrics = match task.sections("metric_list", &known)? {
            Some(all) if !all.is_empty() => {
                all.into_iter().map(|section| Metric::read(section, output)).collect::<Result<_, _>>()?
            }
            _ => Metric::of(output),
        };
        let generation = Generation::read(task, output, &delimiters[1])?;
        let version = match task.value("metadata") {
            Some(Yaml::Mapping(metadata)) => {
                metadata.get("version").and_then(|version| serde_json::to_value(version).ok())
            }
            Some(_) => return Err(task.refuse("metadata", "write a mapping, such as {version: 1.0}")),
            None => None,
        };
        Ok(Self {
            name,
            version: version.unwrap_or(Value::Null),
            output,
            shots,
            repeats: task.whole("repeats", 1, 1024)?.unwrap_or(1) as usize,
            generation,
            filters,
            metrics,
            config: serde_json::to_value(&yaml).unwrap_or_default(),
            digest: Sha256::of(&source.text),
            documents,
            file,
            examples,
            description,
            text: template("doc_to_text")?,
            target: template("doc_to_target")?,
            choices,
            delimiters,
        })
    }

    /// Reads the examples that stand before every document.
    fn examples(
        task: Section<'_>,
        files: &DataFiles,
        shots: usize,
        place: Place<'_>,
    ) -> Result<Documents, HarnessError> {
        let sampler =
            task.section("fewshot_config", &["sampler"])?.map(|section| section.text("sampler")).transpose()?;
        if shots == 0 {
            return Ok(Documents::default());
        }
        if sampler.flatten() != Some("first_n") {
            let right = "of examples must be first_n, because the others draw from Python's random numbers: write {sampler: first_n}";
            return Err(task.refuse("fewshot_config", format!("the sampler {right}")));
        }
        let Some(split) = task.text("fewshot_split")? else {
            return Err(task.refuse("fewshot_split", "is missing: name the split of the examples"));
        };
        if task.text("test_split")? == Some(split) {
            return Err(
                task.refuse("fewshot_split", "is also the test_split, whose answers examples would show: name another")
            );
        }
        let mut examples = files.documents(task, ("fewshot_split", split), place)?;
        if examples.all.len() < shots {
            let why = format!("is {shots}, but the split has {} documents: write at most that", examples.all.len());
            return Err(task.refuse("num_fewshot", why));
        }
        examples.all.truncate(shots);
        Ok(examples)
    }

    /// Yields the files that the task consists of.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let data = self.documents.files.iter().chain(&self.examples.files).map(PathBuf::as_path);
        [self.file.as_path()].into_iter().filter(|file| !file.as_os_str().is_empty()).chain(data)
    }

    /// Returns the digests of the data by the name of its file.
    pub(super) fn data(&self) -> Value {
        let digests = self.documents.digests.iter().chain(&self.examples.digests);
        digests
            .map(|(name, digest)| (name.clone(), Value::from(digest.to_string())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Returns what is asked about each document, in their order.
    ///
    /// # Errors
    /// A template cannot be rendered for a document, or a document has no right choice.
    pub(super) fn questions(&self) -> Result<Vec<Question>, HarnessError> {
        let [delimiter, between] = &self.delimiters;
        let wrong = |document: usize, why: String| HarnessError::Document { file: self.name.clone(), document, why };
        for template in [&self.text, &self.target] {
            let all = self.documents.all.iter().map(|document| template.field(document).is_some()).collect::<Vec<_>>();
            let without = all.iter().position(|has| !has).filter(|_| all.contains(&true));
            if let Some(number) = without {
                return Err(wrong(number, "lacks a field that doc_to_text or doc_to_target names".to_owned()));
            }
        }
        let mut before = String::new();
        for (number, example) in self.examples.all.iter().enumerate() {
            let Question { prompt, target, choices, right, .. } =
                self.question("", example).map_err(|why| wrong(number, format!("of the examples: {why}")))?;
            let target = choices.get(right).cloned().or_else(|| target.as_str().map(str::to_owned)).unwrap_or_default();
            before.push_str(&[prompt.as_str(), delimiter, &target, between].concat());
        }
        let documents = self.documents.all.iter().enumerate();
        let question = |document: &Document| {
            let described = self.description.render(document)?;
            self.question(&format!("{described}{before}"), document)
        };
        documents.map(|(number, document)| question(document).map_err(|why| wrong(number, why))).collect()
    }

    fn question(&self, before: &str, document: &Document) -> Result<Question, String> {
        let prompt = format!("{before}{}", self.text.render(document)?);
        if matches!(self.target.value(document)?, Some(Value::Array(_))) {
            return Err("doc_to_target gives a list, which is not supported: give one text".to_owned());
        }
        let target = self.target.render(document)?;
        let delimiter = &self.delimiters[0];
        let Some(choices) = &self.choices else {
            let continuations = match self.output {
                OutputType::Loglikelihood => vec![target.clone()],
                _ => Vec::new(),
            };
            return Ok(Question { prompt, target: target.into(), continuations, choices: Vec::new(), right: 0 });
        };
        let choices = choices.of(document)?;
        let named = choices.iter().position(|choice| *choice == target);
        // A field that is a text names its choice, even if it looks like an index.
        let is_text = self.target.field(document).is_some_and(Value::is_string);
        let index = target.trim().parse::<usize>().ok().filter(|at| !is_text && *at < choices.len());
        let right = index.or(named);
        let right = right.ok_or("doc_to_target is neither the index of a choice nor one of the choices")?;
        let continuations = choices.iter().map(|choice| format!("{delimiter}{choice}")).collect();
        Ok(Question { prompt, target: right.into(), continuations, choices, right })
    }
}

impl Choices {
    fn of(&self, document: &Document) -> Result<Vec<String>, String> {
        let found = match self {
            Self::Fixed(all) => Some(all.clone()),
            Self::Of(template) => {
                let value = match template.field(document) {
                    Some(value) => Some(value.clone()),
                    None => template.value(document)?,
                };
                let texts = value.as_ref().and_then(Value::as_array);
                texts.and_then(|all| all.iter().map(|choice| choice.as_str().map(str::to_owned)).collect())
            }
        };
        found.filter(|all| all.len() > 1).ok_or_else(|| "doc_to_choice gives no list of at least two texts".to_owned())
    }
}

impl Generation {
    fn read(task: Section<'_>, output: OutputType, delimiter: &str) -> Result<Self, HarnessError> {
        let known = ["until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"];
        let section = task.section("generation_kwargs", &known)?;
        if section.is_some() && output != OutputType::GenerateUntil {
            return Err(task.refuse("generation_kwargs", "says how a model writes: remove it, or use generate_until"));
        }
        let mut until: Vec<String> = Some(delimiter.to_owned()).filter(|text| !text.is_empty()).into_iter().collect();
        let (mut tokens, mut sampling) = (TOKENS, Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 });
        if let Some(section) = section {
            until = section.texts("until")?.unwrap_or(until);
            if until.iter().any(String::is_empty) {
                return Err(section.refuse("until", "has an empty text, at which every response ends: remove it"));
            }
            tokens = section.whole("max_gen_toks", 1, 131_072)?.unwrap_or(tokens);
            let temperature = section.number("temperature")?;
            let samples = section.flag("do_sample")?;
            if !samples && temperature.is_some_and(|temperature| temperature > 0.0) {
                return Err(section.refuse("temperature", "needs do_sample: true; write that, or 0"));
            }
            if samples {
                sampling.temperature = temperature.unwrap_or(1.0);
                sampling.top_p = section.number("top_p")?.unwrap_or(1.0);
                sampling.top_k = section.whole("top_k", 0, 1_000_000)?.unwrap_or(0) as usize;
            }
            Sampler::new(sampling).map_err(|error| section.refuse(error.field, error.right))?;
        }
        let arguments = serde_json::json!({
            "until": until, "max_gen_toks": tokens, "do_sample": sampling.temperature > 0.0, "temperature": sampling.temperature,
        });
        Ok(Self { until, tokens: usize::try_from(tokens).unwrap_or(usize::MAX), sampling, arguments })
    }
}
