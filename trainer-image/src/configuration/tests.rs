//! Tests of `codex config` and `codex sweep`.

use std::{fs, path::PathBuf};

use clap::Parser;
use codex_configs::{Data, Environment, TEMPLATES, compose_training, lines};
use codex_validate::Validator;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Kind, check, diff, render,
    source::{Composition, View},
    sweep::{self, Run},
    tree,
};

#[derive(Parser)]
struct Composed {
    #[command(flatten)]
    composition: Composition,
}

#[derive(Parser)]
struct Checked {
    #[command(flatten)]
    validate: check::Validate,
}

#[derive(Parser)]
struct Diffed {
    #[command(flatten)]
    diff: diff::Diff,
}

#[derive(Parser)]
struct Swept {
    #[command(flatten)]
    sweep: sweep::Sweep,
}

fn line<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["codex"][..], words].concat()
}

fn view(words: &[&str]) -> Result<View, String> {
    let composition = Composed::try_parse_from(line(words)).map_err(|error| error.to_string())?.composition;
    composition.view(Environment::ABSENT).map_err(|error| error.to_string())
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn shown(view: &View) -> String {
    render::settings(&view.leaves, |leaf| Some(view.place(leaf)))
}

#[test]
fn settings_are_shown_with_their_origins() {
    let folder = tempfile::tempdir().unwrap();
    let config = file(&folder, "mine.yaml", "# mine\ntraining:\n  learning_rate: 0.001\n");
    let view = view(&["--template", "cot-starter", "--config", &config, "--set", "training.batch_size=8"]).unwrap();
    let text = shown(&view);
    let row = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap().trim().to_owned();
    let rate = row("learning_rate:");
    assert!(rate.starts_with("learning_rate: 0.001 ") && rate.ends_with(&format!("# {config}:3")), "{rate}");
    assert!(row("batch_size:").ends_with("# --set training.batch_size=8"), "{text}");
    assert!(row("warmup_steps:").contains("# templates/cot-starter.yaml:"), "{text}");
    assert!(row("rope_theta:").contains("# training/base.yaml:"), "{text}");
    assert_eq!(view.kind, Kind::Training);
    let tree = tree::text(&view);
    for part in [
        "training\n",
        "├─ training/base.yaml: sets ",
        "mine.yaml: sets 1 key, 1 in effect",
        "└─ --set training.batch_size=8",
    ] {
        assert!(tree.contains(part), "{tree}");
    }
    let listed = self::view(&["--template", "cot-plus", "--set", "+reasoning=chain_of_thought"]).unwrap();
    let tree = tree::text(&listed);
    let branches = tree.lines().map(|line| line.split(": sets").next().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        branches[..9],
        [
            "training",
            "├─ training/base.yaml",
            "├─ templates/cot-plus.yaml",
            "│  ├─ templates/cot-starter.yaml",
            "│  └─ _self_",
            "├─ training/reasoning/chain_of_thought.yaml",
            "│  ├─ training/reasoning/baseline.yaml",
            "│  └─ _self_",
            "└─ curriculum/first_principles.yaml",
        ]
    );
    let evaluation = self::view(&["--preset", "cot-lite", "--set", "evaluation.limit=5"]).unwrap();
    assert_eq!(evaluation.kind, Kind::Evaluation);
    assert!(shown(&evaluation).contains("limit: 5"));
    assert_eq!(self::view(&["--set", "preset=cot-lite"]).unwrap().kind, Kind::Evaluation);
    assert_eq!(
        self::view(&["--set", "template=lora"]).unwrap().leaves,
        self::view(&["--template", "lora"]).unwrap().leaves
    );
}

/// What is shown can be given as settings, and gives the same.
#[test]
fn shown_settings_are_settings() {
    let folder = tempfile::tempdir().unwrap();
    for template in TEMPLATES.iter().copied() {
        let set = ["--set", "data.weights={mine: 2, other-one: 0.5}", "--set", "metadata.owner='yes: #1'"];
        let first = view(&[&["--template", template][..], &set].concat()).unwrap();
        let path = file(&folder, "shown.yaml", &shown(&first));
        let second = view(&["--config", &path]).unwrap();
        let values = |view: &View| -> Vec<(String, Value)> {
            view.leaves.iter().map(|leaf| (leaf.key.clone(), leaf.value.clone())).collect()
        };
        assert_eq!(values(&first), values(&second), "{template}");
        let nested = render::nest(&first.leaves);
        assert_eq!(serde_yaml::from_str::<Value>(&shown(&first)).unwrap(), nested);
        assert_eq!(serde_yaml::from_str::<Value>(&render::yaml(&nested)).unwrap(), nested);
        assert!(lines(&shown(&first)).contains_key("data.weights.other-one"));
    }
}

#[test]
fn two_configurations_are_compared() {
    let text = |words: &[&str]| {
        let diff = Diffed::try_parse_from(line(words)).unwrap().diff;
        diff.text().map_err(|error| error.to_string())
    };
    let told = text(&["answers-only", "cot-starter"]).unwrap();
    assert!(told.contains("response.format: answer (templates/answers-only.yaml:"), "{told}");
    assert!(told.contains(") -> steps (templates/cot-starter.yaml:") && told.ends_with("2 differences"), "{told}");
    assert_eq!(text(&["cot-starter", "cot-starter"]).unwrap(), "no difference");
    assert!(text(&["base", "lora"]).unwrap().contains("training.lora.rank: 8 (training/base.yaml:"));
    let json: Value =
        serde_json::from_str(&text(&["answers-only", "cot-starter", "--format", "json"]).unwrap()).unwrap();
    assert_eq!((json[0]["key"].as_str(), json[0]["a"]["value"].as_str()), (Some("response.format"), Some("answer")));
    assert_eq!(json[0]["b"]["origin"]["file"], "templates/cot-starter.yaml");

    let folder = tempfile::tempdir().unwrap();
    let data = || {
        vec![Data {
            name: "mine".to_owned(),
            sha256: Some(codex_provenance::DataDigest(codex_provenance::Sha256::of("mine"))),
            synthetic: None,
        }]
    };
    let resolved = |seed| compose_training("cot-starter", &[], None, seed, data()).unwrap().to_yaml().unwrap();
    let (first, second) = (file(&folder, "a.yaml", &resolved(1)), file(&folder, "b.yaml", &resolved(2)));
    let told = text(&[&first, &second]).unwrap();
    assert!(told.starts_with(&format!("spec.seed: 1 ({first}:")) && told.ends_with("1 difference"), "{told}");
    assert_eq!(text(&["cot-starter", &first]).unwrap(), "no difference", "a template has no seed");
    let run = folder.path().join("run/artifacts");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("config.yaml"), resolved(1)).unwrap();
    let run = folder.path().join("run");
    assert_eq!(text(&[&first, run.to_str().unwrap()]).unwrap(), "no difference");
    let told = text(&["cot-lite", "cot-starter"]).unwrap_err();
    assert!(told.ends_with("name two of a kind"), "{told}");
    let told = text(&["cot-stater", "cot-starter"]).unwrap_err();
    assert!(told.contains("did you mean cot-starter?") && told.contains("one of the presets base"), "{told}");
}

#[test]
fn a_template_of_ones_own_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = "defaults:\n  - cot-starter\n  - /replay: base\n  - _self_\ntraining:\n  max_steps: 7\n";
    let ours = file(&folder, "ours.yaml", text);
    let config = file(&folder, "more.yaml", "defaults:\n  - /reasoning: baseline\ntraining: {batch_size: 8}\n");
    for words in [["--template", ours.as_str()], ["--set", &format!("template={ours}")]] {
        let view = view(&[&words[..], &["--config", &config]].concat()).unwrap();
        let text = shown(&view);
        let steps = text.lines().find(|line| line.trim_start().starts_with("max_steps:")).unwrap();
        assert!(steps.contains("max_steps: 1000 ") && steps.contains("training/reasoning/baseline.yaml:"), "{steps}");
        assert!(text.lines().any(|line| line.contains("batch_size: 8 ") && line.ends_with(&format!("# {config}:3"))));
        let tree = tree::text(&view);
        let branches: Vec<_> = tree.lines().map(|line| line.split(": sets").next().unwrap()).collect();
        let wanted = [
            "training".to_owned(),
            "├─ training/base.yaml".to_owned(),
            format!("├─ {ours}"),
            "│  ├─ templates/cot-starter.yaml".to_owned(),
            "│  ├─ replay/base.yaml".to_owned(),
            "│  └─ _self_".to_owned(),
            format!("├─ {config}"),
            "│  ├─ training/reasoning/baseline.yaml".to_owned(),
            "│  └─ _self_".to_owned(),
        ];
        assert_eq!(branches[..wanted.len()], wanted);
    }
    fs::write(&ours, "defaults: [cot-starter]\ntraining:\n  batchsize: 8\n").unwrap();
    let told = view(&["--template", &ours]).unwrap_err();
    assert!(told.starts_with(&format!("{ours}:3: template names the key training.batchsize, which")), "{told}");
}

/// A file whose defaults list names a template is a template, and any other one settings: both are composed with their lists.
#[test]
fn templates_and_settings_are_checked_and_compared_alike() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &str, more: &[&str]| {
        let validate = Checked::try_parse_from(line(&[&[path][..], more].concat())).unwrap().validate;
        validate.check(&PathBuf::from(path)).map_err(|error| error.to_string())
    };
    let diff = |first: &str, second: &str| {
        let diff = Diffed::try_parse_from(line(&[first, second])).unwrap().diff;
        diff.text().map_err(|error| error.to_string())
    };
    let values = |view: View| view.leaves.into_iter().map(|leaf| (leaf.key, leaf.value)).collect::<Vec<_>>();
    let text = "defaults:\n  - cot-plus\n  - /reasoning: baseline\n  - _self_\ntraining:\n  max_steps: 1500\n";
    // Its name need not have an ending.
    for name in ["ours.yaml", "ours"] {
        let ours = file(&folder, name, text);
        let wanted = view(&["--template", &ours]).unwrap();
        assert_eq!(values(check(&ours, &[]).unwrap()), values(wanted), "{name}");
    }
    let ours = file(&folder, "ours.yaml", text);
    let told = diff("cot-plus", &ours).unwrap();
    assert!(told.contains(&format!(" -> 1500 ({ours}:6)")) && told.contains("curriculum.preset: none ("), "{told}");
    let settings = file(&folder, "more.yaml", "defaults: [{reasoning: baseline}]\ntraining: {max_steps: 1500}\n");
    let found = values(check(&settings, &["--template", "cot-starter"]).unwrap());
    assert!(found.contains(&("curriculum.preset".to_owned(), "starter".into())), "{found:?}");
    assert!(diff("base", &settings).unwrap().contains("curriculum.preset: none ("));
    assert_eq!(diff(&ours, &ours).unwrap(), "no difference");

    let told = check(&ours, &["--template", "lora"]).unwrap_err();
    assert_eq!(told, format!("{ours} is a template, because its defaults list names one: leave --template out"));
    let wrong = file(&folder, "wrong.yaml", "defaults:\n  - cot-startr\n");
    for told in [check(&wrong, &[]).unwrap_err(), diff(&wrong, "base").unwrap_err()] {
        assert!(told.starts_with(&format!("{wrong}:2: template has `cot-startr` in its defaults list")), "{told}");
        assert!(told.contains("did you mean cot-starter?"), "{told}");
    }
    let batch = file(&folder, "batch.yaml", "defaults: [cot-starter]\ntraining:\n  batch_size: 0\n");
    let told = check(&batch, &[]).unwrap_err();
    assert!(told.starts_with(&format!("{batch}:3: template sets training.batch_size to 0: ")), "{told}");
    let included = file(&folder, "lora.yaml", text);
    assert!(check(&included, &[]).unwrap_err().contains("an included template has this name"));
}

#[test]
fn files_are_checked_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &str, more: &[&str]| {
        let validate = Checked::try_parse_from(line(&[&[path][..], more].concat())).unwrap().validate;
        validate.check(&PathBuf::from(path)).map(|view| view.kind).map_err(|error| error.to_string())
    };
    let good = file(&folder, "good.yaml", "training:\n  max_steps: 900\n");
    assert_eq!(check(&good, &[]), Ok(Kind::Training));
    assert_eq!(check(&good, &["--template", "cot-starter"]), Ok(Kind::Training));
    let evaluation = file(&folder, "evaluation.yaml", "evaluation: {limit: 5}\n");
    assert_eq!(check(&evaluation, &["--preset", "cot-lite"]), Ok(Kind::Evaluation));
    assert!(check(&evaluation, &[]).unwrap_err().starts_with("--preset: name the preset"));
    for (text, line, told) in [
        (
            "training:\n  batch_size: 0\n",
            2,
            "config sets training.batch_size to 0: write a whole number from 1 to 65536",
        ),
        (
            "training:\n\n  batchsize: 8\n",
            3,
            "config names the key training.batchsize, which does not exist: did you mean training.batch_size?",
        ),
        ("training: {seed: 7}\n", 1, "config names training.seed, which is not a setting: set spec.seed instead"),
        ("training:\n\tbatch_size: 8\n", 2, "config: line 2 is indented with a tab: indent with spaces"),
    ] {
        let path = file(&folder, "bad.yaml", text);
        assert_eq!(check(&path, &[]).unwrap_err(), format!("{path}:{line}: {told}"));
    }
    let path = file(&folder, "list.yaml", "defaults:\n  - /replay: base\n  - override /reasoning: baselin\n");
    let told = check(&path, &[]).unwrap_err();
    let right = "no defaults list chooses an option of reasoning; write `reasoning: NAME`, without override, to choose an option";
    assert_eq!(told, format!("{path}:3: config has `override /reasoning: baselin` in its defaults list: {right}"));
    let path = file(&folder, "variable.yaml", "metadata:\n  owner: ${oc.env:USER}\n");
    assert!(check(&path, &[]).unwrap_err().contains("variables are read on the command line only"));
    let path = file(&folder, "token", "c2VjcmV0\n");
    let told = check(&path, &[]).unwrap_err();
    assert!(told.contains("has none of the keys model, training") && !told.contains("c2VjcmV0"), "{told}");
    let path = file(&folder, "run.yaml", RUN);
    assert!(check(&path, &[]).unwrap_err().contains("is a manifest: check it with codex validate"));
    assert!(check(&folder.path().join("nowhere").display().to_string(), &[]).unwrap_err().ends_with("does not exist"));
    // The exit code counts all files.
    let line = ["codex", good.as_str(), folder.path().join("token").to_str().unwrap()].map(str::to_owned);
    assert_eq!(Checked::try_parse_from(line).unwrap().validate.run().unwrap(), codex_reports::exit::BAD_INPUT);
}

const RUN: &str = r#"
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata: { name: cot, labels: { team: ours } }
spec:
  rolloutRing: 0A_base_
  template: cot-starter
  overrides: [training.max_steps=900]
  data:
    - name: arithmetic
      source: { synthetic: { task: arithmetic, seed: 1, count: 1000 } }
  output:
    persistentVolumeClaim: { claimName: models, subPath: runs }
  pod:
    env: [{ name: SWITCH, value: "yes" }]
"#;

fn runs(words: &[&str]) -> Result<(String, Vec<Run>), String> {
    let sweep = Swept::try_parse_from(line(words)).map_err(|error| error.to_string())?.sweep;
    sweep.runs().map_err(|error| error.to_string())
}

#[test]
fn a_sweep_is_one_run_for_each_point() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "run.yaml", RUN);
    let sweep = ["--sweep", "seed=range(1,3)", "--sweep", "training.learning_rate=choice(0.001,0.003)"];
    let words = [&["-f", path.as_str()][..], &sweep].concat();
    let (label, runs) = self::runs(&words).unwrap();
    assert_eq!(label, "cot");
    let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "cot-seed-1-learning-rate-0-001",
            "cot-seed-1-learning-rate-0-003",
            "cot-seed-2-learning-rate-0-001",
            "cot-seed-2-learning-rate-0-003"
        ]
    );
    let mut head = runs[1].text.lines();
    assert_eq!(head.next(), Some("# Run 2 of 4: seed=1 training.learning_rate=0.003"));
    assert_eq!(
        head.next().unwrap(),
        format!(
            "# Written by: codex sweep -f {path} --sweep 'seed=range(1,3)' --sweep \
             'training.learning_rate=choice(0.001,0.003)'"
        )
    );
    let object: Value = serde_yaml::from_str(&runs[1].text).unwrap();
    assert_eq!(object["metadata"]["labels"]["codex-ml.dev/sweep"], "cot");
    assert_eq!(object["metadata"]["labels"]["team"], "ours");
    assert_eq!(object["spec"]["seed"], 1);
    assert_eq!(object["spec"]["overrides"][1], "training.learning_rate=0.003");
    assert_eq!(object["spec"]["pod"]["env"][0]["value"], "yes");
    let validator = Validator::new().unwrap();
    for run in &runs {
        let checked = validator.check(&run.text);
        assert!(checked.objects == 1 && checked.findings.is_empty(), "{:?}", checked.findings);
    }
    assert_eq!(self::runs(&words).unwrap().1, runs, "the same command gives the same bytes");

    let output = folder.path().join("out");
    assert_eq!(sweep::write(&output, &runs).unwrap(), 4);
    assert_eq!(sweep::write(&output, &runs).unwrap(), 0, "the same files stay");
    fs::remove_file(output.join("cot-seed-1-learning-rate-0-001.yaml")).unwrap();
    let last = output.join("cot-seed-2-learning-rate-0-003.yaml");
    fs::write(&last, "mine").unwrap();
    let told = sweep::write(&output, &runs).unwrap_err().to_string();
    assert!(told.ends_with("exists with other contents: remove it, or name another directory with --output"), "{told}");
    assert_eq!(fs::read_to_string(&last).unwrap(), "mine");
    assert!(!output.join("cot-seed-1-learning-rate-0-001.yaml").exists(), "nothing is written");
}

#[test]
fn a_sweep_can_stand_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let field = "sweep:\n  training.dtype: glob(*)\n  training.stop_after: [5, null]\n";
    let path = file(&folder, "run.yaml", &format!("{RUN}{field}"));
    let (label, runs) = self::runs(&["-f", &path, "--label", "try-2"]).unwrap();
    assert_eq!((label.as_str(), runs.len()), ("try-2", 6));
    assert!(runs.iter().all(|run| run.name.starts_with("try-2-dtype-") && !run.text.contains("\nsweep:")));
    assert!(runs[0].text.contains("--label try-2"));
    let (_, more) = self::runs(&["-f", &path, "--sweep", "template=glob(cot-*)"]).unwrap();
    assert_eq!(more.len(), 18);
    assert!(more.iter().any(|run| run.text.contains("\n  template: cot-plus\n")));
    let told = self::runs(&["-f", &path, "--sweep", "training.dtype=choice(fp32)"]).unwrap_err();
    assert_eq!(told, "training.dtype is swept twice: keep one of the two");
}

#[test]
fn wrong_sweeps_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "run.yaml", RUN);
    let told = |words: &[&str]| self::runs(&[&["-f", path.as_str()][..], words].concat()).unwrap_err();
    assert!(told(&[]).ends_with("nothing is swept: name a key with --sweep KEY=choice(A,B), or in its field sweep"));
    assert_eq!(
        told(&["--sweep", "training.batch_size=choice(8,0)"]),
        "the point cot-batch-size-0 (training.batch_size=0) is refused: spec.overrides: overrides[1] sets training.batch_size \
         to 0: write a whole number from 1 to 65536"
    );
    assert!(told(&["--sweep", "seed=range(257)"]).starts_with("the sweep has 257 points: write at most 256"));
    assert!(told(&["--sweep", "seed=range(3)", "--most", "2"]).starts_with("the sweep has 3 points: write at most 2"));
    assert!(told(&["--sweep", "seed=choice(a)"]).contains("seed is a: write a whole number"));
    assert!(
        told(&["--sweep", "traning.dtype=glob(*)"])
            .starts_with("--sweep: the key traning.dtype does not exist (did you mean")
    );
    assert!(told(&["--sweep", "seed=range(2)", "--label", "a b"]).contains("is no value of a label"));
    assert!(
        told(&["--sweep", "training.max_steps=choice(50)"]).contains("training.warmup_steps is 100"),
        "a contradiction"
    );
    for (text, why) in [
        ("kind: ConfigMap\n".to_owned(), "it holds 0 TrainingRuns: name a file with one"),
        (format!("{RUN}---{RUN}"), "it holds 2 TrainingRuns: name a file with one"),
        (format!("{RUN}sweep: 7\n"), "its field sweep has no keys"),
        (format!("{RUN}sweep: {{seed: 7}}\n"), "\"seed=7\" is no part of a sweep"),
        (format!("{RUN}sweep: {{seed: []}}\n"), "seed has an empty value"),
    ] {
        let path = file(&folder, "other.yaml", &text);
        let told = self::runs(&["-f", &path]).unwrap_err();
        assert!(told.starts_with(&path) && told.contains(why), "{told}");
    }
}
