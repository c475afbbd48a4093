//! Tasks from their files to their results, with a small model.

use std::{fs, sync::atomic::AtomicBool};

use codex_engine::{Layout, ModelConfig, Shape, initial};
use codex_provenance::manifest::Manifest;
use serde_json::Value;

use super::*;
use crate::{atomic_fs, gating::samples_of, model::describe, text::Tokenizer};

/// Writes a model that has learned nothing.
fn model(directory: &Path) -> PathBuf {
    let shape = Shape {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 256,
        rope_theta: 10_000.0,
    };
    let tokenizer = Tokenizer::characters().unwrap();
    let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
    let parameters = initial(&config, &Layout::of(&config), 5);
    let path = directory.join("model");
    atomic_fs::write_directory(&path, &describe(&config, &parameters, &tokenizer).unwrap()).unwrap();
    path
}

fn evaluate(task: &str, model: Option<&Path>, rescore: Option<&Path>, output: &Path) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    let asked = Asked { task, rescore, model, expected: None, device: Device::Cpu, seed: 1, output, stop: &stop };
    asked.run().map(|code| assert_eq!(code, exit::FINISHED)).map_err(|error| {
        assert_eq!(error.exit, exit::BAD_INPUT);
        error.sentence()
    })
}

/// Returns the paths of results and samples in a directory.
fn written(output: &Path) -> [PathBuf; 2] {
    let mut paths: Vec<PathBuf> = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.try_into().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const CHOICE: &str = "task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: docs.jsonl, shots: shots.json}}
test_split: test
fewshot_split: shots
num_fewshot: 1
fewshot_config: {sampler: first_n}
description: 'Choose. '
output_type: multiple_choice
doc_to_text: q
doc_to_target: a
doc_to_choice: '{{ [\"x\", \"yy\", b] }}'
metadata: {version: 2}
";

#[test]
fn included_tasks_run_and_score_again_to_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let model = model(place.path());
    let digest = Manifest::of_dir(&model).unwrap().digest().to_string();
    for (task, documents, filters, metric) in [("toy_copy_task", 24, 2, "exact_match"), ("tiny_wikitext", 12, 1, "acc")]
    {
        let (output, again) = (place.path().join(task), place.path().join(format!("{task}-again")));
        evaluate(task, Some(&model), None, &output).unwrap();
        let [results, samples] = written(&output);
        let about = json(&results);
        let numbers = &about["results"][task];
        assert_eq!(
            (about["codex"]["model_digest"].as_str(), &about["n-shot"][task]),
            (Some(digest.as_str()), &0.into())
        );
        assert_eq!(about["n-samples"][task]["effective"], documents);
        assert!(numbers[format!("{metric},none")].is_number() && numbers[format!("{metric}_stderr,none")].is_number());
        let rows = lines(&samples);
        assert_eq!(rows.len(), documents * filters);
        assert_eq!(rows[0]["doc_hash"].as_str().unwrap().len(), 64);
        evaluate(task, None, Some(&samples), &again).unwrap();
        let [results_again, samples_again] = written(&again);
        assert_eq!(samples_again.file_name(), samples.file_name());
        assert!(fs::read(&samples_again).unwrap() == fs::read(&samples).unwrap());
        assert!(fs::read(&results_again).unwrap() == fs::read(&results).unwrap());
        // Gates read the samples.
        let filter = (filters > 1).then_some("stripped");
        let field = if metric == "acc" { "exact_match=acc" } else { "exact_match" };
        assert_eq!(samples_of(&fs::read(&samples).unwrap(), field, filter), Ok(documents));
    }
}

#[test]
fn samples_of_other_tasks_and_incomplete_ones_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("output");
    evaluate("toy_copy_task", Some(&model(place.path())), None, &output).unwrap();
    let [_, samples] = written(&output);
    let whole = fs::read_to_string(&samples).unwrap();
    let again = |text: &str| {
        fs::write(&samples, text).unwrap();
        evaluate("toy_copy_task", None, Some(&samples), &place.path().join("again")).unwrap_err()
    };
    let kept: String = whole.split_inclusive('\n').skip(2).collect();
    assert!(again(&kept).contains("lacks a document of the task"));
    assert!(
        again(&whole.replacen("doc_hash\":\"", "doc_hash\":\"0", 1))
            .contains("line 1 is about another document, prompt, choice or way to answer")
    );
    assert!(again(&whole.replacen("\"resps\":[[", "\"resps\":[[\"other\",", 1)).contains("has other resps"));
    assert!(again("{}\n").contains("has no doc_id"));
    let wrong = evaluate("tiny_wikitext", None, Some(&samples), &place.path().join("again")).unwrap_err();
    assert!(wrong.contains("name a samples_tiny_wikitext_<time>.jsonl"), "{wrong}");
}

#[test]
fn choices_and_examples_are_those_of_the_file() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("choose.yaml");
    fs::write(&file, CHOICE).unwrap();
    fs::write(
        place.path().join("docs.jsonl"),
        "{\"q\":\"1?\",\"a\":2,\"b\":\"z\"}\n\n{\"q\":\"2?\",\"a\":\"yy\",\"b\":\"z\"}\n",
    )
    .unwrap();
    fs::write(
        place.path().join("shots.json"),
        "[{\"q\":\"0?\",\"a\":\"x\",\"b\":\"z\"},{\"q\":\"n\",\"a\":0,\"b\":\"z\"}]",
    )
    .unwrap();
    let task = Task::open(file.to_str().unwrap()).unwrap();
    let questions = task.questions().unwrap();
    assert_eq!(questions[0].prompt, "Choose. 0? x\n\n1?");
    assert_eq!(questions[0].continuations, [" x", " yy", " z"]);
    assert_eq!((questions[0].right, questions[1].right), (2, 1));
    let output = place.path().join("output");
    evaluate(file.to_str().unwrap(), Some(&model(place.path())), None, &output).unwrap();
    let [results, samples] = written(&output);
    let (about, rows) = (json(&results), lines(&samples));
    assert_eq!((&about["versions"]["choose"], &about["n-shot"]["choose"]), (&2.into(), &1.into()));
    let best = |row: &Value, divide: &[f64]| {
        let all: Vec<f64> =
            row["filtered_resps"].as_array().unwrap().iter().map(|it| it[0].as_f64().unwrap()).collect();
        (0..3).max_by(|a, b| (all[*a] / divide[*a]).total_cmp(&(all[*b] / divide[*b]))).unwrap()
    };
    for (row, right) in rows.iter().zip([2_usize, 1]) {
        assert_eq!(row["target"], right);
        assert_eq!(row["acc"], f64::from(u8::from(best(row, &[1.0; 3]) == right)));
        assert_eq!(row["acc_norm"], f64::from(u8::from(best(row, &[1.0, 2.0, 1.0]) == right)));
    }
    let again = place.path().join("again");
    evaluate(file.to_str().unwrap(), None, Some(&samples), &again).unwrap();
    assert!(fs::read(&written(&again)[0]).unwrap() == fs::read(&results).unwrap());
    // The likelihoods are those of other choices.
    fs::write(&file, CHOICE.replace("[\"x\", \"yy\", b]", "[\"yy\", \"x\", b]")).unwrap();
    let refused = evaluate(file.to_str().unwrap(), None, Some(&samples), &again).unwrap_err();
    assert!(refused.contains("line 1 is about another document, prompt, choice or way to answer"), "{refused}");
    fs::write(&file, CHOICE.replace("'Choose. '", "'{{ q }} '")).unwrap();
    let described = Task::open(file.to_str().unwrap()).unwrap().questions().unwrap();
    assert_eq!(described[0].prompt, "1? 0? x\n\n1?", "a description is a template of the document that is asked");
}

/// Returns what is asked by `PLAIN` with more lines, of these documents.
fn questions(more: &str, documents: &str) -> Result<Vec<task::Question>, String> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plain.yaml");
    fs::write(&file, format!("{PLAIN}{more}")).unwrap();
    fs::write(place.path().join("docs.jsonl"), documents).unwrap();
    let task = Task::open(file.to_str().unwrap()).unwrap();
    task.questions().map_err(|error| error.to_string())
}

#[test]
fn targets_are_what_the_harness_makes_of_them() {
    let two = "{\"q\":\"1?\",\"a\":\"2\"}\n";
    let likelihood = questions("output_type: loglikelihood\n", two).unwrap();
    assert_eq!(likelihood[0].continuations, ["2"], "no delimiter stands before the target of a loglikelihood");
    let choice = "output_type: multiple_choice\ndoc_to_choice: ['1', '2', '3']\n";
    assert_eq!(questions(choice, two).unwrap()[0].right, 1, "a text names its choice");
    assert_eq!(questions(choice, "{\"q\":\"1?\",\"a\":2}\n").unwrap()[0].right, 2, "a number is an index");
    let lacks = questions("", "{\"q\":\"1?\",\"a\":\"2\"}\n{\"q\":\"2?\"}\n").unwrap_err();
    assert!(lacks.contains("document 1: lacks a field"), "{lacks}");
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plain.yaml");
    fs::write(place.path().join("docs.jsonl"), two).unwrap();
    fs::write(&file, PLAIN.replace("doc_to_target: a", "doc_to_target: '{{ [a, a] }}'")).unwrap();
    let list = Task::open(file.to_str().unwrap()).unwrap().questions().unwrap_err().to_string();
    assert!(list.contains("doc_to_target gives a list"), "{list}");
    fs::write(&file, format!("{PLAIN}fewshot_delimiter: ''\n")).unwrap();
    assert!(Task::open(file.to_str().unwrap()).unwrap().generation.until.is_empty(), "not every response ends at once");
}

/// The task whose file is refused below, with a line put in.
const PLAIN: &str = "task: plain
dataset_path: json
dataset_kwargs:
  data_files: {test: docs.jsonl}
test_split: test
doc_to_text: q
doc_to_target: a
";

#[test]
fn what_is_not_supported_is_refused_by_its_name_and_line() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plain.yaml");
    fs::write(place.path().join("docs.jsonl"), "{\"q\":\"1?\",\"a\":\"2\"}\n").unwrap();
    let told = |text: &str| {
        fs::write(&file, text).unwrap();
        let told = Task::open(file.to_str().unwrap()).map(|task| task.questions()).unwrap_err().to_string();
        told.strip_prefix(&format!("{}:", file.display())).unwrap_or(&told).to_owned()
    };
    let more = |line: &str| told(&format!("{PLAIN}{line}\n"));
    for (line, why) in [
        ("process_docs: !function utils.process", "8: process_docs: is not supported: remove it, or use one of task, "),
        ("group: mine", "8: group: is not supported"),
        ("output_type: loglikelihood_rolling", "8: output_type: \"loglikelihood_rolling\" is not supported: use gen"),
        ("description: !function utils.text", "8: description: the tag !function is not supported: write a text"),
        ("repeats: 0", "8: repeats: write a whole number from 1 to 1024"),
        ("num_fewshot: 2", "1: fewshot_config: the sampler of examples must be first_n"),
        ("generation_kwargs: {num_beams: 4}", "8: generation_kwargs.num_beams: is not supported"),
        ("generation_kwargs:\n  temperature: 0.5", "9: generation_kwargs.temperature: needs do_sample: true"),
        ("generation_kwargs: {until: ['']}", "8: generation_kwargs.until: has an empty text"),
        (
            "metric_list: [{metric: bleu}]",
            "8: metric_list.metric: \"bleu\" is no supported metric of output_type generate_until: use exact",
        ),
        (
            "metric_list:\n  - metric: exact_match\n    aggregation: median",
            "10: metric_list.aggregation: of exact_match is mean",
        ),
        (
            "metric_list:\n  - {metric: exact_match, regexes_to_ignore: ['(?=a)']}",
            "9: metric_list.regexes_to_ignore: write a regular",
        ),
        (
            "filter_list:\n  - name: a\n    filter: [{function: lowercase}]",
            "10: filter_list.filter: must end with {function: take_first}",
        ),
        (
            "filter_list:\n  - name: a\n    filter:\n      - function: custom",
            "11: filter.function: \"custom\" is not supported: use regex",
        ),
        (
            "filter_list:\n  - name: a\n    filter:\n      - {function: lowercase, k: 2}\n      - function: take_first",
            "11: filter.k: has no effect on this function",
        ),
        ("doc_to_choice: [a, b]", "8: doc_to_choice: belongs to output_type multiple_choice"),
    ] {
        let found = more(line);
        assert!(found.starts_with(why), "{line}: {found}");
    }
    let without = |line: &str| told(&PLAIN.replacen(line, "", 1));
    assert!(without("task: plain\n").contains("task: is missing"));
    assert!(without("doc_to_target: a\n").contains("doc_to_target: is missing"));
    let replaced = |line: &str, by: &str| told(&PLAIN.replacen(line, by, 1));
    assert!(replaced("task: plain", "task: ../x").starts_with("1: task: names the files of the results"));
    assert!(
        replaced("dataset_path: json", "dataset_path: gsm8k")
            .starts_with("2: dataset_path: \"gsm8k\" is not supported")
    );
    assert!(
        replaced("docs.jsonl", "https://x/y.jsonl")
            .starts_with("4: dataset_kwargs.data_files: \"https://x/y.jsonl\" is no local")
    );
    assert!(replaced("test_split: test", "test_split: dev").starts_with("5: test_split: \"dev\" has no files"));
    assert!(replaced("doc_to_text: q", "doc_to_text: '{% if %}'").starts_with("6: doc_to_text: is no template"));
    assert!(told("[1]").contains("the task: is no mapping"));
    assert!(told("a: [").contains("is not valid YAML"));
    fs::write(&file, PLAIN.replacen("doc_to_text: q", "doc_to_text: '{{ missing }}'", 1)).unwrap();
    let told = Task::open(file.to_str().unwrap()).unwrap().questions().unwrap_err().to_string();
    assert!(told.starts_with("plain: document 0: ") && told.contains("undefined"), "{told}");
    let unknown = Task::open("toy_copy").unwrap_err().to_string();
    assert!(unknown.contains("an included task: tiny_wikitext and toy_copy_task"), "{unknown}");
}

#[test]
fn responses_are_filtered_and_compared_as_the_task_says() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("plain.yaml");
    fs::write(place.path().join("docs.jsonl"), "{\"q\":\"1?\",\"a\":\"42\"}\n").unwrap();
    let score = |more: &str, responses: &[&str]| {
        fs::write(&file, format!("{PLAIN}{more}\n")).unwrap();
        let task = Task::open(file.to_str().unwrap()).unwrap();
        let responses: Vec<String> = responses.iter().map(|text| (*text).to_owned()).collect();
        let found = task.filters[0].apply(&responses);
        let value = task.metrics[0].value(&metric::Said::Text { response: &found, target: "42" });
        (found, value > 0.5)
    };
    let filter = |steps: &str| format!("filter_list: [{{name: a, filter: [{steps}, {{function: take_first}}]}}]");
    let regex = |more: &str| filter(&format!("{{function: regex, regex_pattern: '([0-9]+)|(none)'{more}}}"));
    for (more, responses, found, right) in [
        (String::new(), &["42"][..], "42", true),
        (String::new(), &[" 42"], " 42", false),
        (String::new(), &[""], "", false),
        (filter("{function: remove_whitespace}"), &[" 42"], "42", true),
        (regex(""), &["it is 42, not 43"], "42", true),
        (regex(", group_select: -1"), &["it is 41 or 42"], "42", true),
        (regex(", group_select: 5"), &["it is 42"], "[invalid]", false),
        (regex(""), &["none"], "none", false),
        (regex(", fallback: ''"), &["?"], "", false),
        (filter("{function: majority_vote}"), &["41", "42", "42"], "42", true),
        (filter("{function: take_first_k, k: 2}, {function: majority_vote}"), &["41", "42", "42"], "41", false),
        (filter("{function: map, mapping_dict: {forty-two: '42'}}"), &["forty-two"], "42", true),
        (filter("{function: map, mapping_dict: {forty-two: '42'}}"), &["42"], "", false),
        (filter("{function: regex, regex_pattern: '#([0-9]*)', fallback: '42'}"), &["#"], "", false),
        ("metric_list: [{metric: exact_match, ignore_punctuation: true}]".to_owned(), &["42."], "42.", true),
        (
            "metric_list: [{metric: exact_match, regexes_to_ignore: [',', '[a-z ]+']}]".to_owned(),
            &["about 42"],
            "about 42",
            true,
        ),
        ("metric_list: [{metric: exact_match, ignore_numbers: true}]".to_owned(), &["7"], "7", true),
        (filter("{function: uppercase}, {function: lowercase}"), &["Ab"], "ab", false),
    ] {
        assert_eq!(score(&more, responses), (found.to_owned(), right), "{more}");
    }
}

#[test]
fn means_have_a_standard_error_and_perplexities_none() {
    let mean = metric::Metric::of(metric::OutputType::GenerateUntil).remove(0);
    let (value, error) = mean.aggregate(&[1.0, 0.0, 1.0, 1.0]);
    // numpy.std([1, 0, 1, 1], ddof=1) / 2
    assert!((value - 0.75).abs() < 1e-12 && (error.unwrap() - 0.25).abs() < 1e-12);
    assert_eq!(mean.aggregate(&[1.0]).1, None);
    let perplexity = metric::Metric::of(metric::OutputType::Loglikelihood).remove(0);
    let (value, error) = perplexity.aggregate(&[-1.0, -3.0]);
    assert!((value - 2.0_f64.exp()).abs() < 1e-12 && error.is_none());
}
