//! The page as HTML. Pure.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use codex_provenance::{DataDigest, promotion::Gate as PromotedGate, text::counted};
use codex_verdict::{Gate, GateResult, Measurement, Metric, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    content::{Content, Evaluated},
    draw,
    examples::{Example, Examples},
};
use crate::{
    artifacts::{ledger::Ledger, metadata::PrivacyReport},
    evaluation::Shown,
    run_folder::Part,
    verify::{
        describe,
        given::{Outcome, Valid},
    },
};

/// The most characters of a text from a file that are shown.
const MAX_TEXT: usize = 4000;
/// Loads nothing, whatever the page holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Returns the page.
pub(super) fn page(content: &Content) -> Markup {
    let kind = if content.is_run { "run" } else { "model" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width";
                title { "Report of the " (kind) " " (visible(&content.name)) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { "Report of the " (kind) " " (visible(&content.name)) }
                p.lack { "Written by codex " (env!("CARGO_PKG_VERSION")) " from files. A page proves nothing: see how to verify below." }
                (section("Chain", &chain(content)))
                (section("Gates and measurements", &evaluations(content)))
                (section("Examples", &all_examples(content)))
                (section("Loss", &loss(content)))
                (section("Data", &data(content)))
                (section("Base", &base(content)))
                @if let Some(privacy) = content.metadata.found().and_then(|metadata| metadata.privacy.as_ref()) {
                    (section("Privacy", &privacy_of(privacy)))
                }
                (section("Environment", &environment(content)))
                (section("Files of the model", &files(content)))
                (section("Signatures, and how to verify", &signatures(content)))
            }
        }
    }
}

fn section(title: &str, body: &Markup) -> Markup {
    html! {
        section {
            h2 { (title) }
            (body)
        }
    }
}

/// Says what is missing.
fn lack(text: impl AsRef<str>) -> Markup {
    html! { p.lack { (visible(text.as_ref())) } }
}

/// Says why a part is not shown; nothing if it is.
fn lack_of<T>(what: &str, part: &Part<T>) -> Markup {
    part.lack().map_or_else(Markup::default, |why| lack(format!("No {what} here: {why}.")))
}

/// Returns text from a file without characters that reorder, hide or end what surrounds them; line feeds and tabs stay. Long texts
/// are cut.
fn visible(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(MAX_TEXT) {
        let directs = matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if (letter.is_control() && letter != '\n' && letter != '\t') || directs {
            shown.extend(letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    let rest = text.chars().count().saturating_sub(MAX_TEXT);
    if rest > 0 {
        let _ = write!(shown, "… ({rest} more characters)");
    }
    shown
}

fn code(value: impl Display) -> Markup {
    html! { code { (visible(&value.to_string())) } }
}

/// Rows of names and values.
fn table(rows: &[(&str, Markup)]) -> Markup {
    html! {
        table {
            @for (name, value) in rows {
                tr { th { (name) } td { (value) } }
            }
        }
    }
}

fn chain(content: &Content) -> Markup {
    let step = |name: &str, body: &Markup| html! { li { strong { (name) } " " (body) } };
    let Content { metadata, config, manifest, .. } = content;
    let configuration = match metadata.found() {
        None => lack_of("run", metadata),
        Some(metadata) => {
            let agrees = config.found().map(|config| config.digest() == metadata.config_digest);
            html! {
                (code(metadata.config_digest)) ", template " (code(&metadata.metadata.template))
                @match agrees {
                    Some(true) => {}
                    Some(false) => p.bad { "config.yaml has another digest than run_metadata.json names." }
                    None => (lack_of("configuration", config)),
                }
            }
        }
    };
    let data = metadata.found().map_or_else(|| lack("No data here."), |metadata| code(metadata.dataset_version));
    let base = match metadata.found().map(|metadata| &metadata.base) {
        Some(Some(base)) => code(base.digest),
        Some(None) => html! { "none: training started from initialized weights" },
        None => lack("No base here."),
    };
    let model = content.digest().map_or_else(|| lack_of("model", manifest), code);
    html! {
        ol.chain {
            (step("Configuration", &configuration))
            (step("Base", &base))
            (step("Data", &data))
            (step("Model", &model))
            @if content.evaluations.is_empty() { (step("Evaluation", &lack("No evaluation here."))) }
            @for evaluated in &content.evaluations { (step("Evaluation", &judged(content, evaluated))) }
            (step("Promotion", &promotion(content)))
        }
    }
}

/// An evaluation as a step of the chain.
fn judged(content: &Content, evaluated: &Evaluated) -> Markup {
    let report = &evaluated.report;
    html! {
        (code(report.preset())) ", report " (code(report.digest()))
        @match content.digest() {
            Some(model) if model == report.model() => p.good { "measured exactly these files" }
            Some(_) => p.bad { "measured another model: " (code(report.model())) }
            None => p { "measured the model " (code(report.model())) }
        }
        @if let Some(Ok(gates)) = &evaluated.gates {
            @let passed = gates.iter().filter(|(_, result)| result.verdict == Verdict::Passed).count();
            p { (passed) " of " (gates.len()) " gates passed" }
        }
    }
}

fn promotion(content: &Content) -> Markup {
    match &content.signatures {
        Outcome::Valid(valid) => match &valid.promoted {
            Some(promoted) => html! {
                "into " (code(&promoted.promotion.reasons.ring)) " by the statement " (code(promoted.digest))
            },
            None => lack("No promotion here."),
        },
        Outcome::Refused(_) => html! { span.bad { "refused: see the signatures below" } },
        Outcome::NotGiven => lack("No promotion here."),
    }
}

fn evaluations(content: &Content) -> Markup {
    html! {
        @if content.evaluations.is_empty() { (lack("No evaluation here.")) }
        @for why in &content.damaged { (lack(format!("An evaluation cannot be used: {why}"))) }
        @for evaluated in &content.evaluations { (measurements(evaluated)) }
    }
}

fn measurements(evaluated: &Evaluated) -> Markup {
    html! {
        h3 { (visible(&title(evaluated))) }
        @match &evaluated.gates {
            None => (lack("No gates here: give --gates.")),
            Some(Err(why)) => (lack(format!("The gates cannot be judged: {why}"))),
            Some(Ok(gates)) => { @for (gate, result) in gates { (one_gate(gate, result)) } }
        }
        table {
            tr { th { "Metric" } th { "Value" } th { "Items" } th { "Bounds, each with confidence 0.95" } }
            @for (name, measurement) in evaluated.report.metrics() { (measured(name, measurement)) }
        }
    }
}

fn title(evaluated: &Evaluated) -> String {
    format!("{} ({})", evaluated.report.preset(), evaluated.path.display())
}

fn measured(name: &str, measurement: &Measurement) -> Markup {
    html! {
        tr {
            td { (code(name)) }
            @match Shown::of(name, measurement) {
                Some(shown) => {
                    td { (shown.value) }
                    td {
                        @match shown.items {
                            Some(items) => { (items) " in " (counted(shown.n, "cluster")) }
                            None => (shown.n),
                        }
                    }
                    td { (shown.lower) " to " (shown.upper) @if shown.approximate { " (approximate)" } }
                }
                None => td colspan="3" { (lack("The measurement is impossible.")) }
            }
        }
    }
}

fn one_gate(gate: &Gate, result: &GateResult) -> Markup {
    let class = match result.verdict {
        Verdict::Passed => "good",
        Verdict::Failed => "bad",
        Verdict::Inconclusive => "open",
    };
    html! {
        p { strong class=(class) { (result.verdict) } " " (code(gate.metric)) ": " (visible(&result.message)) }
        @match draw::gate(gate, result) {
            Some(picture) => (picture),
            None => (lack("Nothing was measured that could be drawn.")),
        }
    }
}

fn all_examples(content: &Content) -> Markup {
    html! {
        @if content.evaluations.is_empty() { (lack("No examples here: no evaluation.")) }
        @for evaluated in &content.evaluations {
            h3 { (visible(&title(evaluated))) }
            (lack_of("examples", &evaluated.examples))
            @if let Some(examples) = evaluated.examples.found() { (examples_of(evaluated, examples)) }
        }
    }
}

fn examples_of(evaluated: &Evaluated, examples: &Examples) -> Markup {
    let Examples { right, wrong, rights, wrongs, bad } = examples;
    let stated = match evaluated.report.metrics().get(Metric::ExactMatch.name()) {
        // The share of clusters does not say how many problems are right.
        Some(Measurement::ClusterMean { items, .. }) => Some((*rights, *items)),
        Some(Measurement::Share { successes, n }) => Some((*successes, *n)),
        _ => None,
    };
    html! {
        @if stated.is_some_and(|stated| stated != (*rights, rights + wrongs)) {
            p.bad { "records.ndjson counts other answers than the report: it is of another evaluation, or was changed." }
        }
        @if *bad > 0 { (lack(format!("{} of records.ndjson cannot be read.", counted(*bad, "line")))) }
        @for (name, shown, all) in [("Wrong", wrong, wrongs), ("Right", right, rights)] {
            h3 { (name) ": " (shown.len()) " of " (all) }
            @if shown.is_empty() { (lack("None to show.")) }
            @for example in shown { (one_example(example)) }
        }
    }
}

fn one_example(example: &Example) -> Markup {
    let Example { line, prompt, prediction, expected, answer, .. } = example;
    // Within a paragraph, where a second one would end it.
    let none = || html! { span.lack { "none" } };
    let or_none = |text: &Option<String>| text.as_deref().map_or_else(none, code);
    html! {
        div.example {
            p.lack { "line " (line) }
            pre { (visible(prompt)) }
            pre { (visible(prediction)) }
            p { "answer " (or_none(answer)) ", expected " (or_none(expected)) }
        }
    }
}

fn loss(content: &Content) -> Markup {
    let Some(ledger) = content.ledger.found() else { return lack_of("loss curve", &content.ledger) };
    let series = losses(ledger);
    html! {
        @if series.is_empty() { (lack("No loss curve here: metrics.ndjson has no loss.")) } @else { (draw::curves(&series)) }
        @if !ledger.bad.is_empty() { (lack(format!("{} of metrics.ndjson cannot be read.", counted(ledger.bad.len(), "line")))) }
    }
}

/// The losses by split; the last value of a step counts.
fn losses(ledger: &Ledger) -> BTreeMap<String, Vec<(f64, f64)>> {
    let mut series: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
    for row in ledger.rows.iter().filter(|row| row.metric == "loss") {
        series.entry(visible(&row.split)).or_default().insert(row.step, row.value);
    }
    let points = |steps: BTreeMap<u64, f64>| steps.into_iter().map(|(step, value)| (step as f64, value)).collect();
    series.into_iter().map(|(split, steps)| (split, points(steps))).collect()
}

fn digests<'a>(rows: impl Iterator<Item = (&'a str, DataDigest)>) -> Markup {
    html! {
        table {
            tr { th { "File" } th { "SHA-256" } }
            @for (name, digest) in rows { tr { td { (code(name)) } td { (code(digest)) } } }
        }
    }
}

fn data(content: &Content) -> Markup {
    html! {
        h3 { "Training" }
        (lack_of("checksums", &content.checksums))
        @if let Some(checksums) = content.checksums.found() {
            (digests(checksums.0.iter().map(|(name, digest)| (name.as_str(), *digest))))
            @if let Some(metadata) = content.metadata.found() {
                @if checksums.version(&metadata.metadata.template).ok() != Some(metadata.dataset_version) {
                    p.bad { "The data drifted: dataset_checksums.json gives another version than run_metadata.json names." }
                }
            }
        }
        @for evaluated in &content.evaluations {
            h3 { (visible(&title(evaluated))) }
            (digests(evaluated.report.data()))
        }
    }
}

fn base(content: &Content) -> Markup {
    let Some(metadata) = content.metadata.found() else { return lack_of("base", &content.metadata) };
    let Some(base) = &metadata.base else {
        return html! { p { "None: training started from initialized weights." } };
    };
    let mut rows = vec![("Digest", code(base.digest)), ("Source", code(base.source.display()))];
    rows.extend(base.repository.as_ref().map(|repository| ("Repository", code(repository))));
    rows.extend(base.commit.as_ref().map(|commit| ("Commit", code(commit))));
    rows.extend(base.signer.map(|signer| ("Signed by the key", code(signer))));
    rows.extend(metadata.adapter.map(|adapter| ("Adapter beside it", code(adapter))));
    table(&rows)
}

fn privacy_of(privacy: &PrivacyReport) -> Markup {
    let PrivacyReport { epsilon, delta, steps, noise_multiplier, max_grad_norm, sampling_rate, secret, .. } = privacy;
    html! {
        p {
            "The trained weights are differentially private for adding or removing one record, with ε = "
            (format!("{epsilon:.4}")) " and δ = " (delta) ", after " (steps) " steps with a noise multiplier of "
            (noise_multiplier) ", a sampling rate of " (sampling_rate) " and a clipping norm of " (max_grad_norm) ". "
            @if !secret { "The noise follows from the seed of the run: this holds only against those who do not know it. " }
            "Nothing else of the run is private."
        }
    }
}

fn environment(content: &Content) -> Markup {
    let Some(found) = content.environment.found() else { return lack_of("environment", &content.environment) };
    let maybe = |text: &Option<String>| text.as_ref().map_or_else(|| lack("not recorded"), code);
    let gpus = found.gpus.iter().map(|gpu| format!("{}, {} bytes, driver {}", gpu.name, gpu.memory_bytes, gpu.driver));
    let gpus: Vec<String> = gpus.collect();
    table(&[
        ("Platform", code(&found.platform)),
        ("Program", code(&found.codex_version)),
        ("Commit", maybe(&found.git_commit)),
        ("Image", maybe(&found.image_digest)),
        ("Toolchain", code(&found.toolchain)),
        ("Cargo.lock", code(found.lock_file_sha256)),
        ("Node", code(&found.node)),
        ("Processor", maybe(&found.cpu.model)),
        ("Threads", code(found.cpu.threads)),
        (
            "GPUs",
            if gpus.is_empty() {
                html! { "none" }
            } else {
                code(gpus.join("; "))
            },
        ),
        ("CUDA", found.cuda.as_ref().map_or_else(|| html! { "none" }, code)),
        ("Engine", code(&found.engine)),
        ("Seed", code(found.seed)),
        ("Command", code(found.command.join(" "))),
        ("Hardware", code(found.hardware_fingerprint)),
    ])
}

fn files(content: &Content) -> Markup {
    let Some(manifest) = content.manifest.found() else { return lack_of("model", &content.manifest) };
    html! {
        p { "Model digest " (code(manifest.digest())) ", " (manifest.size_bytes()) " bytes" }
        table {
            tr { th { "File" } th { "Bytes" } th { "SHA-256" } }
            @for file in &manifest.files {
                tr { td { (code(&file.path)) } td { (file.size) } td { (code(file.sha256)) } }
            }
        }
    }
}

fn signatures(content: &Content) -> Markup {
    html! {
        @match &content.signatures {
            Outcome::NotGiven => (lack(
                "No signature here: none was given. The operator keeps bundles in ConfigMaps, which status.manifest.bundle and \
                 status.promotion.bundle of a ReasoningPod name.",
            )),
            Outcome::Refused(why) => p.bad { "Refused when this page was written: " (visible(why)) }
            Outcome::Valid(valid) => (valid_bundles(valid)),
        }
        h3 { "Verify it yourself" }
        p { "Take the fingerprint, or the trusted root, from a source that you trust, not from this page." }
        pre { (visible(&content.command)) }
        @if let Some(command) = &content.openssf_command {
            p { "The OpenSSF's own tool verifies the signature of the model alone:" }
            pre { (visible(command)) }
        }
    }
}

fn valid_bundles(valid: &Valid) -> Markup {
    let Valid { signed, is_pinned, promoted } = valid;
    html! {
        p.good { "Valid when this page was written: the files are exactly what was signed." }
        p {
            @if let Some(identity) = &signed.identity {
                "Signed by the identity " (code(&identity.subject)) " of the issuer " (code(&identity.issuer))
            } @else {
                "Signed by the key " (code(signed.signer))
                @if *is_pinned { ", the one of --fingerprint" } @else { ", which was NOT compared with a fingerprint" }
            }
        }
        @if !signed.skipped.is_empty() { p.bad { "Not signed: " (code(signed.skipped.join(", "))) } }
        @if let Some(promoted) = promoted {
            @for evaluation in &promoted.promotion.reasons.evaluations {
                h3 { "Promoted on the evaluation " (visible(&evaluation.name)) }
                ul { @for gate in &evaluation.gates { li { (promoted_gate(gate)) } } }
            }
            @for signed in &promoted.promotion.reasons.sign_offs {
                p {
                    "Signed off by " (code(&signed.by)) @if !signed.authenticated { ", not authenticated" } ": "
                    (visible(&signed.reason))
                }
            }
        } @else {
            (lack("No promotion here: none was given."))
        }
    }
}

fn promoted_gate(gate: &PromotedGate) -> Markup {
    code(describe(gate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_its_lines_and_cannot_direct_the_page() {
        assert_eq!(visible("a\n\tb é 日本"), "a\n\tb é 日本");
        assert_eq!(visible("\u{0}\u{1b}[2J\u{202e}x\u{200b}"), "\\u{0}\\u{1b}[2J\\u{202e}x\\u{200b}");
        let long = "x".repeat(MAX_TEXT + 3);
        assert!(visible(&long).ends_with("x… (3 more characters)"));
    }
}
