//! `codex report` on files.

use std::{fs, path::Path, process::Command};

use clap::Parser;
use codex_signing::{bundle, key::PublicKey};
use serde_json::json;

use super::*;
use crate::{
    artifacts::ledger::tests::{row, text},
    run_folder::tests::{evaluation, run},
    verify::tests::{fingerprint, signed},
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    report: Report,
}

fn command(directory: &Path, more: &[&str]) -> Report {
    let line = ["report", directory.to_str().unwrap()].into_iter().chain(more.iter().copied());
    Arguments::try_parse_from(line).unwrap().report
}

fn page(directory: &Path, more: &[&str]) -> String {
    command(directory, more).page().unwrap()
}

fn refused(directory: &Path, more: &[&str]) -> String {
    let error = command(directory, more).page().unwrap_err();
    assert_eq!(error.exit, exit::BAD_INPUT, "{}", error.sentence());
    error.sentence()
}

/// A run with an evaluation, its records, a ledger and gates.
fn whole() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = run(root.path());
    let report = evaluation(root.path(), "lite", model, 1);
    let record = |line: usize, correct: bool, prompt: &str| {
        json!({
            "line": line, "prompt": prompt, "category": "c", "reference": "r", "prediction": "1 & 2", "expected": "3",
            "answer": null, "correct": correct, "steps": 0, "steps_found": 0,
        })
    };
    let attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";
    let records: Vec<String> = (1..=1000).map(|line| record(line, line == 7, attack).to_string()).collect();
    fs::write(report.with_file_name("records.ndjson"), records.join("\n")).unwrap();
    let rows: Vec<_> = (1..100_u64).map(|step| row(step, "loss", 3.0 / step as f64)).collect();
    fs::write(root.path().join("artifacts/metrics.ndjson"), text(&rows)).unwrap();
    let gates =
        "- { metric: exact_match, min: \"0.5\", confidence: \"0.95\" }\n- { metric: trace_coverage, min: \"0.8\" }\n";
    fs::write(root.path().join("gates.yaml"), gates).unwrap();
    root
}

#[test]
fn a_page_shows_every_part_of_a_run() {
    let root = whole();
    let gates = root.path().join("gates.yaml");
    let page = page(root.path(), &["--gates", gates.to_str().unwrap(), "--examples", "2"]);
    let folder = RunFolder::locate("DIR", root.path()).unwrap();
    let digest = folder.manifest(&std::collections::BTreeSet::new()).found().unwrap().digest().to_string();
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">") && page.ends_with("</html>"));
    for expected in [
        digest.as_str(),
        "measured exactly these files",
        "1 of 2 gates passed",
        "<strong class=\"bad\">Failed</strong>",
        "<strong class=\"good\">Passed</strong>",
        "class=\"interval\"",
        "class=\"limit\"",
        "limit 0.5",
        "<polyline class=\"curve train\"",
        "Wrong: 2 of 999",
        "Right: 1 of 1",
        "<code>arithmetic</code>",
        "None: training started from initialized weights.",
        "No environment here: ",
        "No signature here: none was given.",
        "<code>model.safetensors</code>",
        "codex verify ",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(
        page,
        self::page(root.path(), &["--gates", gates.to_str().unwrap(), "--examples", "2"]),
        "deterministic"
    );
}

#[test]
fn nothing_from_a_file_becomes_markup_and_nothing_is_loaded() {
    let root = whole();
    let page = page(root.path(), &[]);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("1 &amp; 2"));
    for forbidden in ["<script", "<img", "<link", "src=", "href=", "url(", "@import", "http://", "https://"] {
        assert!(!page.replace("src=x onerror", "").contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("default-src 'none'"));
    let metadata = root.path().join("artifacts/run_metadata.json");
    let named = fs::read_to_string(&metadata).unwrap().replace("\"cot-starter\"", "\"</style><b>x</b>\"");
    fs::write(&metadata, named).unwrap();
    let page = self::page(root.path(), &[]);
    assert!(page.contains("&lt;/style&gt;&lt;b&gt;x&lt;/b&gt;") && !page.contains("<b>"));
    assert!(page.contains("The data drifted: "), "the version covers the template");
}

#[test]
fn a_private_run_says_what_is_guaranteed() {
    let root = whole();
    assert!(!page(root.path(), &[]).contains("<h2>Privacy</h2>"));
    let path = root.path().join("artifacts/run_metadata.json");
    let mut metadata: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    metadata["privacy"] = serde_json::json!({
        "epsilon": 1.73456, "delta": 1e-5, "steps": 900, "noise_multiplier": 1.1, "max_grad_norm": 0.5, "sampling_rate": 0.01,
        "unit": "record", "sampling": "poisson", "accountant": "rdp", "secret": false,
    });
    fs::write(&path, metadata.to_string()).unwrap();
    let page = page(root.path(), &[]);
    for expected in
        ["<h2>Privacy</h2>", "ε = 1.7346 and δ = 0.00001, after 900 steps", "follows from the seed of the run"]
    {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let root = tempfile::tempdir().unwrap();
    run(root.path());
    let page = page(&root.path().join("model"), &[]);
    for expected in [
        "Report of the model model",
        "No evaluation here.",
        "No examples here: no evaluation.",
        "No loss curve here: ",
        "No checksums here: ",
        "No base here: ",
        "No environment here: ",
        "No promotion here.",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    fs::remove_dir_all(root.path().join("model")).unwrap();
    let page = self::page(root.path(), &[]);
    assert!(page.contains("No model here: ") && page.contains("model does not exist."));
}

#[test]
fn what_does_not_fit_together_is_said() {
    let root = whole();
    fs::write(root.path().join("model/config.json"), "{ }").unwrap();
    let records = root.path().join("evaluations/lite/records.ndjson");
    let fewer: Vec<String> = fs::read_to_string(&records).unwrap().lines().skip(10).map(str::to_owned).collect();
    fs::write(&records, format!("{}\nno JSON\n", fewer.join("\n"))).unwrap();
    fs::create_dir(root.path().join("evaluations/other")).unwrap();
    fs::write(root.path().join("evaluations/other/evaluation.json"), "{}").unwrap();
    let page = page(root.path(), &[]);
    for expected in [
        "measured another model: ",
        "records.ndjson counts other answers than the report",
        "1 line of records.ndjson cannot be read.",
        "An evaluation cannot be used: evaluation: ",
        "None to show.",
        "No gates here: give --gates.",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn signatures_are_verified_for_the_page() {
    let root = signed();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (bundle, key, promotion) = (path("model/model.sig"), path("key.pem"), path("promotion.json"));
    let pin = fingerprint(root.path());
    let model = root.path().join("model");
    let signed = ["--bundle", &bundle, "--key", &key, "--fingerprint", &pin];
    let with = |ring: &str| page(&model, &[&signed[..], &["--promotion", &promotion, "--ring", ring]].concat());
    let page = with("main");
    for expected in [
        "Valid when this page was written",
        "the one of --fingerprint",
        "Promoted on the evaluation cot-lite",
        "exact_match &gt;= 0.95 at confidence 0.95",
        &format!("--fingerprint {pin}"),
        "--ring main",
        "model_signing verify key ",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    assert!(
        with("0D_base_").contains("Refused when this page was written: the promotion bundle was made for the ring")
    );
    let told = refused(&model, &[&signed[..], &["--promotion", &promotion]].concat());
    assert_eq!(told, "--promotion needs --ring: the ring that the promotion must be for");
}

#[test]
fn a_page_changes_no_input() {
    let root = whole();
    for (out, why) in [
        ("model/report.html", "is inside the model"),
        ("artifacts/report.html", "is inside the artifacts"),
        ("evaluations/lite/evaluation.json", "is the same as an evaluation"),
        ("model", "is a directory: name a file"),
    ] {
        let told = refused(root.path(), &["--out", root.path().join(out).to_str().unwrap()]);
        assert!(told.starts_with("--out: ") && told.contains(why), "{told}");
    }
    let told = refused(root.path(), &["--evaluation", "nowhere.json"]);
    assert!(told.contains("--evaluation: nowhere.json cannot be read"), "{told}");
    assert!(refused(&root.path().join("nowhere"), &[]).starts_with("DIR: "));
    let out = root.path().join("page.html");
    let report = command(root.path(), &["--out", out.to_str().unwrap()]);
    assert_eq!(report.run().unwrap(), exit::FINISHED);
    assert!(fs::read_to_string(out).unwrap().starts_with("<!DOCTYPE html>"));
}

#[test]
fn an_ml_bom_has_the_data_and_the_interval_of_the_verdict() {
    let root = whole();
    let gates = root.path().join("gates.yaml");
    let (out, bom) = (root.path().join("report.html"), root.path().join("bom.json"));
    let line = ["--gates", gates.to_str().unwrap(), "--ml-bom", bom.to_str().unwrap(), "--out", out.to_str().unwrap()];
    assert_eq!(command(root.path(), &line).run().unwrap(), exit::FINISHED);
    let first = fs::read(&bom).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&first).unwrap();
    assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let serial = document["serialNumber"].as_str().unwrap();
    assert!(serial.starts_with("urn:uuid:") && serial.len() == 45 && serial.as_bytes()[23] == b'8', "{serial}");
    let model = &document["metadata"]["component"];
    assert_eq!(model["type"], "machine-learning-model");
    assert_eq!(model["components"].as_array().unwrap().len(), 2, "the files of the model");
    let card = &model["modelCard"];
    assert_eq!(card["modelParameters"]["datasets"], json!([{ "ref": "training-data/arithmetic" }]));
    assert_eq!(card["modelParameters"]["approach"]["type"], "supervised");
    let metrics = card["quantitativeAnalysis"]["performanceMetrics"].as_array().unwrap();
    let exact = metrics.iter().find(|metric| metric["type"] == "exact_match").unwrap();
    assert_eq!(exact["value"], "0.001");
    assert!(exact["slice"].as_str().unwrap().starts_with("cot-lite, problems "));
    let bound = |name: &str| exact["confidenceInterval"][name].as_str().unwrap().parse::<f64>().unwrap();
    assert!(bound("lowerBound") < 0.001 && bound("upperBound") > 0.001, "{exact}");
    let known = ["type", "value", "slice", "confidenceInterval"];
    for metric in metrics {
        assert!(metric.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{metric}");
    }
    let told: Vec<_> = model["properties"].as_array().unwrap().iter().map(|it| it["value"].as_str().unwrap()).collect();
    assert!(told.iter().any(|value| value.starts_with("exact_match ") && value.ends_with(": Failed")), "{told:?}");
    // Every reference exists, once.
    let mut refs: Vec<_> =
        document["components"].as_array().unwrap().iter().map(|it| it["bom-ref"].as_str().unwrap()).collect();
    let needed = document["dependencies"][0]["dependsOn"].as_array().unwrap();
    assert_eq!(needed.iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>(), refs);
    refs.sort_unstable();
    refs.dedup();
    assert_eq!(refs.len(), needed.len());
    assert_eq!(command(root.path(), &line).run().unwrap(), exit::FINISHED);
    assert_eq!(fs::read(&bom).unwrap(), first, "the same files give the same bytes");
    // The model itself is not overwritten, and is needed.
    let told = refused(root.path(), &["--ml-bom", root.path().join("model/bom.json").to_str().unwrap()]);
    assert!(told.starts_with("--ml-bom: ") && told.contains("is inside the model"), "{told}");
    fs::remove_dir_all(root.path().join("model")).unwrap();
    assert!(refused(root.path(), &line).contains("no ML-BOM can be written without the files of the model"));
}

#[test]
fn an_ml_bom_names_the_promotion() {
    let root = signed();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (bundle, key, promotion) = (path("model/model.sig"), path("key.pem"), path("promotion.json"));
    let (bom, out) = (path("bom.json"), path("report.html"));
    let line = ["--bundle", &bundle, "--key", &key, "--promotion", &promotion, "--ring", "main"];
    let line = [&line[..], &["--ml-bom", &bom, "--out", &out]].concat();
    assert_eq!(command(&root.path().join("model"), &line).run().unwrap(), exit::FINISHED);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&bom).unwrap()).unwrap();
    let model = &document["metadata"]["component"];
    let metric = &model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0];
    assert_eq!((&metric["type"], &metric["value"]), (&"exact_match".into(), &"0.99".into()));
    assert!(metric["confidenceInterval"]["lowerBound"].as_str().unwrap().starts_with("0.97"), "{metric}");
    assert!(metric["slice"].as_str().unwrap().ends_with(", as promoted"));
    let names: Vec<_> = model["properties"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["codex:signedBy", "codex:ring", "codex:promotionDigest", "codex:promotedGate"]);
}

/// `make test-clients` installs the package.
#[test]
#[ignore = "needs CLIENTS_PYTHON, a Python with the package cyclonedx-python-lib: make test-clients"]
fn ml_boms_are_valid_by_the_schema_of_cyclonedx() {
    let python = std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with cyclonedx-python-lib");
    let (run, promoted) = (whole(), signed());
    // What is optional in one is there in the other: a base, a comparison, a promotion.
    let metadata = run.path().join("artifacts/run_metadata.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
    value["base"] =
        json!({ "digest": "ab".repeat(32), "source": "/base", "repository": "org/base", "commit": "c".repeat(40) });
    fs::write(&metadata, value.to_string()).unwrap();
    let path = |root: &tempfile::TempDir, name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let [gates, of_run, of_model] = [path(&run, "gates.yaml"), path(&run, "bom.json"), path(&promoted, "bom.json")];
    let out = path(&run, "report.html");
    let line = ["--gates", &gates, "--ml-bom", &of_run, "--out", &out];
    assert_eq!(command(run.path(), &line).run().unwrap(), exit::FINISHED);
    assert!(fs::read_to_string(&of_run).unwrap().contains("\"pedigree\""), "the base");
    let [bundle, key, promotion] = ["model/model.sig", "key.pem", "promotion.json"].map(|name| path(&promoted, name));
    let line = ["--bundle", &bundle, "--key", &key, "--promotion", &promotion, "--ring", "main", "--ml-bom", &of_model];
    let line = [&line[..], &["--out", &out]].concat();
    assert_eq!(command(&promoted.path().join("model"), &line).run().unwrap(), exit::FINISHED);
    // And the one that the controller signs.
    let key = PublicKey::from_pem(&fs::read_to_string(&key).unwrap()).unwrap();
    let statement = bundle::open(&fs::read(path(&promoted, "ml-bom.json")).unwrap(), &key).unwrap();
    let statement: serde_json::Value = serde_json::from_slice(&statement).unwrap();
    let beside = path(&promoted, "beside.json");
    fs::write(&beside, statement["predicate"].to_string()).unwrap();
    ran(Command::new(python).arg(script("clients/bom.py")).args([of_run, of_model, beside]));
}

/// `make test-page` installs the browser. Where `PAGES` names a folder, pages and screenshots stay there.
#[test]
#[ignore = "needs CHROMIUM, the program of the browser: make test-page"]
fn a_browser_shows_every_part_of_the_pages() {
    let chromium = std::env::var("CHROMIUM").expect("CHROMIUM names the program of the browser");
    let kept = tempfile::tempdir().unwrap();
    let pages = std::env::var_os("PAGES").map_or_else(|| kept.path().to_owned(), PathBuf::from);
    let look = |name: &str, html: &str, pictures: usize, texts: &[&str]| {
        let page = pages.join(format!("{name}.html"));
        fs::write(&page, html).unwrap();
        let mut look = Command::new("python3");
        look.arg(script("page/look.py")).arg(&chromium).arg(&page).arg(pages.join(format!("{name}-seen")));
        ran(look.arg(pictures.to_string()).args(texts));
        let seen = fs::read_to_string(pages.join(format!("{name}-seen.html"))).unwrap();
        assert!(seen.contains("</svg>") == (pictures > 0) && !seen.contains("<script"), "{name}");
    };
    let run = whole();
    let digest = RunFolder::locate("DIR", run.path()).unwrap().manifest(&std::collections::BTreeSet::new());
    let digest = digest.found().unwrap().digest().to_string();
    let gates = run.path().join("gates.yaml");
    let html = page(run.path(), &["--gates", gates.to_str().unwrap()]);
    let texts = [
        "Chain",
        &digest,
        "measured exactly these files",
        "1 of 2 gates passed",
        "Gates and measurements",
        "Failed exact_match: ",
        "limit 0.5",
        "answer none, expected 3",
        // What a file holds is text.
        "<script>alert(1)</script>",
        "Signatures, and how to verify",
        "No signature here: none was given.",
    ];
    look("run", &html, 3, &texts);

    let root = signed();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (bundle, key, promotion, pin) =
        (path("model/model.sig"), path("key.pem"), path("promotion.json"), fingerprint(root.path()));
    let line = ["--bundle", &bundle, "--key", &key, "--fingerprint", &pin, "--promotion", &promotion, "--ring", "main"];
    let html = page(&root.path().join("model"), &line);
    let texts = [
        "Promotion into main by the statement ",
        "Valid when this page was written: the files are exactly what was signed.",
        &format!("Signed by the key {pin}, the one of --fingerprint"),
        "Promoted on the evaluation cot-lite",
        "exact_match >= 0.95 at confidence 0.95",
        "Verify it yourself",
    ];
    look("signed", &html, 0, &texts);
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name)
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
}
