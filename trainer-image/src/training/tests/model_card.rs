//! Runs whose model has a model card.

use std::{collections::BTreeSet, fs, path::Path};

use codex_provenance::manifest::{File, Manifest};
use serde_json::{Value, json};

use super::base::{model, run, train, write_base, write_data};
use crate::{
    model::Generator,
    training::{
        Base, Origin,
        records::VALIDATION_SPLIT,
        test_support::{attempt, finished, metrics, speck},
    },
};

const CARD: &str = "metadata.model_card=true";

/// Returns the model card of a run and its front matter.
fn card(output: &Path) -> (String, Value) {
    let text = fs::read_to_string(output.join("model/README.md")).unwrap();
    let (front, _) = text.strip_prefix("---\n").unwrap().split_once("---\n").unwrap();
    let front = serde_yaml::from_str(front).unwrap();
    (text, front)
}

#[test]
fn a_model_card_is_part_of_the_model_and_the_same_for_the_same_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let settings = |more: &[&str]| speck(&[&["training.eval_every=6", "training.eval_samples=0"], more].concat());
    let plain = finished(&attempt(&settings(&[]), &path("plain"), false));
    assert!(!path("plain/model/README.md").exists(), "nobody asked for one");

    let asked = settings(&[CARD]);
    let ended = attempt(&asked, &path("asked"), false);
    let with = finished(&ended);
    assert_ne!((with.digest, with.oms_root), (plain.digest, plain.oms_root));
    let (cards, others): (Vec<File>, Vec<File>) =
        with.manifest.files.iter().cloned().partition(|file| file.path == "README.md");
    assert_eq!((cards.len(), others), (1, plain.manifest.files));
    assert!(Generator::load_directory(&path("asked/model"), 1, codex_configs::Device::Cpu).is_ok());

    let (text, front) = card(&path("asked"));
    assert_eq!((&front["library_name"], &front["tags"]), (&json!("transformers"), &json!(["codex", "sft"])));
    assert!(front.get("base_model").is_none() && front.get("language").is_none(), "{front}");
    assert_eq!(front["model-index"][0]["name"], "cot-starter");
    let results = front["model-index"][0]["results"].as_array().unwrap();
    let measured: Vec<_> = results.iter().map(|it| (&it["metrics"][0]["type"], &it["dataset"]["name"])).collect();
    assert_eq!(measured, [(&json!("loss"), &json!("arithmetic")), (&json!("val_loss"), &json!("validation"))]);
    let recorded = metrics(&path("asked"));
    for (result, split) in results.iter().zip(["train", VALIDATION_SPLIT]) {
        let value = result["metrics"][0]["value"].as_f64().unwrap();
        assert_eq!(value.to_bits(), recorded[&(12, split.to_owned(), "loss".to_owned())], "{value}");
    }
    let data = ended.state.data.iter().map(|file| file.sha256.to_string());
    for part in data.chain([asked.digest().to_string(), "| Seed | 1 |".to_owned(), "| Base | none: ".to_owned()]) {
        assert!(text.contains(&part), "{part}: {text}");
    }

    assert_eq!(finished(&attempt(&asked, &path("again"), false)).digest, with.digest);
    attempt(&settings(&[CARD, "training.stop_after=6"]), &path("resumed"), false);
    let resumed = attempt(&asked, &path("resumed"), false);
    assert_eq!(resumed.state.resumed_from, Some(6));
    assert_eq!(finished(&resumed).digest, with.digest);
}

#[test]
fn a_model_card_names_the_base_and_replaces_its_card() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("base");
    write_base(&path);
    fs::write(path.join("README.md"), "of the base").unwrap();
    let origin = Origin { repository: "org/base".to_owned(), commit: "0123".to_owned() };
    let base = Base::open_from(&path, None, Some(origin), None).unwrap();
    let files = write_data(directory.path());
    let lora = ["training.method=lora", "training.lora.rank=2", "training.stop_after=2"];
    let (plain, asked) = (directory.path().join("plain"), directory.path().join("asked"));
    model(train(&run(&files, &lora), &base, &files, &plain));
    assert_eq!(fs::read_to_string(plain.join("model/README.md")).unwrap(), "of the base");

    let trained = model(train(&run(&files, &[&lora[..], &[CARD]].concat()), &base, &files, &asked));
    let (text, front) = card(&asked);
    assert_eq!((&front["base_model"], &front["tags"]), (&json!("org/base"), &json!(["codex", "lora"])));
    assert!(text.contains(&format!("the model with the digest `{}`", base.digest())), "{text}");
    let names = |output: &Path| -> BTreeSet<String> {
        fs::read_dir(output.join("model")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(&asked), names(&plain));
    // The adapter that is reported is the one beside the model.
    assert_eq!(trained.adapter, Some(Manifest::of_dir(&asked.join("artifacts/adapter")).unwrap().digest()));
}

#[test]
fn the_card_of_a_private_run_has_no_loss_of_its_records() {
    let directory = tempfile::tempdir().unwrap();
    let private = [
        CARD,
        "training.privacy.noise_multiplier=1",
        "training.privacy.randomness=seed",
        "training.spike_action=count",
    ];
    finished(&attempt(&speck(&private), directory.path(), false));
    let (text, front) = card(directory.path());
    assert!(front.get("model-index").is_none() && !text.contains("Measured while training"), "{text}");
}
