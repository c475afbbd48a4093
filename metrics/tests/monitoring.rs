//! The generated files are up to date, every query fits the contract, and every alert fires and is silent as promised.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use codex_metrics::{
    Contract, Type, Unit, alerts, all,
    dashboard::{Dashboard, TAG},
    dashboards, files,
    label::target,
    pages, scrape,
};
use promql_parser::{
    label::Matchers,
    parser::{self, Expr, LabelModifier, VectorSelector},
    util::{ExprVisitor, walk_expr},
};

const REGENERATE: &str = "UPDATE=1 cargo test --release --locked --workspace --test monitoring";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a file with its generated text, or writes it.
fn compare(path: &Path, expected: &str) {
    if env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, expected).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not what metrics/ generates: regenerate it with\n    {REGENERATE}\n",
        path.display()
    );
}

fn below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            below(&path, found);
        } else {
            found.insert(path);
        }
    }
}

#[test]
fn manifests_are_up_to_date() {
    let folder = repository().join("manifests/monitoring");
    let mut expected = BTreeSet::new();
    for (name, text) in files::all().unwrap() {
        compare(&folder.join(&name), &text);
        expected.insert(folder.join(name));
    }
    let mut found = BTreeSet::new();
    below(&folder, &mut found);
    assert_eq!(found, expected, "manifests/monitoring/ must hold exactly the generated files");
}

#[test]
fn tables_of_the_documents_are_up_to_date() {
    for (name, tables) in [("metrics.md", pages::metrics()), ("runbooks.md", pages::runbooks())] {
        let path = repository().join("docs").join(name);
        let page = fs::read_to_string(&path).unwrap();
        compare(&path, &pages::filled(&page, &tables).unwrap());
    }
}

#[test]
fn names_tell_program_type_and_unit() {
    let mut names = BTreeSet::new();
    for metric in all() {
        let Contract { name, kind, unit, help, .. } = *metric;
        assert!(names.insert(name), "{name} exists twice");
        assert!(name.starts_with("codex_controller_") || name.starts_with("codex_ml_"), "{name}");
        assert_eq!(kind == Type::Counter, name.ends_with("_total"), "{name}");
        assert_eq!(unit == Unit::UnixTime, name.ends_with("_timestamp_seconds"), "{name}");
        if unit == Unit::Seconds {
            assert!(name.ends_with("_seconds"), "{name}");
        }
        assert!(help.ends_with('.') && help.len() > 20, "{name}: {help}");
        assert_eq!(kind == Type::Histogram, !metric.buckets.is_empty(), "{name}");
        assert!(metric.buckets.is_sorted(), "{name}");
        let labels: BTreeSet<_> = metric.labels.iter().map(|label| label.name).collect();
        assert_eq!(labels.len(), metric.labels.len(), "{name}");
        // Names of objects would make a series for each object.
        for forbidden in ["name", "namespace", "pod", "uid"] {
            assert!(!labels.contains(forbidden), "{name} has the label {forbidden}");
        }
    }
}

/// The labels that the series of a metric may have, by the name of the series.
fn series() -> BTreeMap<String, BTreeSet<&'static str>> {
    let targets: BTreeSet<_> = target::ALL.iter().map(|label| label.name).filter(|name| *name != "le").collect();
    let mut series = BTreeMap::from([("up".to_owned(), targets.clone())]);
    for metric in all() {
        let labels: BTreeSet<_> = metric.labels.iter().map(|label| label.name).chain(targets.iter().copied()).collect();
        let suffixes: &[&str] = if metric.kind == Type::Histogram { &["_bucket", "_count", "_sum"] } else { &[""] };
        for suffix in suffixes {
            let mut labels = labels.clone();
            labels.extend(Some("le").filter(|_| *suffix == "_bucket"));
            series.insert(format!("{}{suffix}", metric.name), labels);
        }
    }
    series
}

/// Collects what a query names.
struct Names {
    selectors: Vec<(String, Vec<String>)>,
    grouped: Vec<String>,
}

impl Names {
    fn selector(&mut self, selector: &VectorSelector) {
        let Matchers { matchers, .. } = &selector.matchers;
        let name = selector.name.clone().unwrap();
        self.selectors.push((name, matchers.iter().map(|matcher| matcher.name.clone()).collect()));
    }
}

impl ExprVisitor for Names {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs),
            Expr::Aggregate(aggregate) => {
                if let Some(LabelModifier::Include(labels)) = &aggregate.modifier {
                    self.grouped.extend(labels.labels.iter().cloned());
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Parses a query.
fn parsed(place: &str, query: &str) -> Expr {
    let text = query.replace("$__rate_interval", "5m");
    parser::parse(&text).unwrap_or_else(|why| panic!("{place}: {query}: {why}"))
}

/// Returns what a query names.
fn names(expr: &Expr) -> Names {
    let mut names = Names { selectors: Vec::new(), grouped: Vec::new() };
    walk_expr(&mut names, expr).unwrap();
    names
}

/// Checks that a query parses, and that its metrics and labels are in the contract.
fn check(place: &str, query: &str, series: &BTreeMap<String, BTreeSet<&'static str>>) {
    let names = names(&parsed(place, query));
    assert!(!names.selectors.is_empty(), "{place}: {query} names no metric");
    for (name, labels) in &names.selectors {
        let known = series.get(name).unwrap_or_else(|| panic!("{place}: {name} is not in the contract"));
        for label in labels.iter().filter(|label| *label != "__name__") {
            assert!(known.contains(&**label), "{place}: {name} has no label {label}");
        }
        for label in &names.grouped {
            assert!(known.contains(&**label), "{place}: {name} has no label {label}");
        }
    }
}

#[test]
fn every_query_names_metrics_and_labels_of_the_contract() {
    let series = series();
    for dashboard in dashboards::all() {
        for panel in dashboard.panels() {
            for (query, legend) in &panel.queries {
                let place = format!("{}: {}", dashboard.title, panel.title);
                check(&place, &query.to_string(), &series);
                for part in legend.split("{{").skip(1) {
                    let label = part.split("}}").next().unwrap();
                    assert!(
                        query.to_string().contains(label) || target::ALL.iter().any(|it| it.name == label),
                        "{place}: {legend}"
                    );
                }
            }
        }
        if let Some(query) = &dashboard.namespaces {
            check(dashboard.title, &query.to_string(), &series);
        }
    }
    for alert in alerts::ALL.iter() {
        check(alert.name, &alert.query.to_string(), &series);
        for (input, _) in alert.fires.iter().flatten().chain(&alert.quiet) {
            check(alert.name, input, &series);
        }
    }
}

#[test]
fn autoscalers_query_metrics_and_labels_of_the_contract() {
    let read = |name: &str| -> serde_json::Value {
        let text = fs::read_to_string(repository().join("manifests/autoscaling").join(name)).unwrap();
        serde_yaml::from_str(&text).unwrap()
    };
    let (keda, adapter) = (read("keda-scaledobject.yaml"), read("prometheus-adapter.yaml"));
    let triggers = keda["spec"]["triggers"].as_array().unwrap().iter().map(|trigger| &trigger["metadata"]["query"]);
    let rules = adapter["rules"]["custom"].as_array().unwrap().iter().map(|rule| &rule["seriesQuery"]);
    let (queries, series): (Vec<_>, _) = (triggers.chain(rules).collect(), series());
    assert_eq!(queries.len(), 4);
    for query in queries {
        check("manifests/autoscaling", query.as_str().unwrap(), &series);
    }
}

#[test]
#[should_panic(expected = "is not in the contract")]
fn an_unknown_metric_is_found() {
    check("test", "rate(codex_ml_training_stepz_total[5m])", &series());
}

#[test]
#[should_panic(expected = "has no label colour")]
fn an_unknown_label_is_found() {
    check("test", "sum by (colour) (rate(codex_ml_training_steps_total[5m]))", &series());
}

#[test]
fn every_metric_is_on_a_dashboard() {
    // Build information has no panel: its label is read in the table of targets.
    const NONE: [&str; 1] = ["codex_controller_build_info"];
    let boards = dashboards::all();
    let panels = boards.iter().flat_map(Dashboard::panels);
    let shown: BTreeSet<_> = panels
        .flat_map(|panel| panel.queries.iter().flat_map(|(query, _)| metrics_of(panel.title, &query.to_string())))
        .collect();
    let missing: Vec<_> = all().map(|it| it.name).filter(|name| !shown.contains(name)).collect();
    assert_eq!(missing, NONE);
}

/// Returns the names of the metrics whose series a query selects.
fn metrics_of(place: &str, query: &str) -> BTreeSet<&'static str> {
    let measured = measured();
    names(&parsed(place, query)).selectors.iter().map(|(series, _)| measured[series].0).collect()
}

#[test]
fn a_metric_whose_name_begins_another_one_is_not_taken_for_it() {
    let steps = metrics_of("test", "rate(codex_ml_training_steps_total[5m]) / codex_ml_training_step");
    assert_eq!(steps.into_iter().collect::<Vec<_>>(), ["codex_ml_training_step", "codex_ml_training_steps_total"]);
    let only = metrics_of("test", "sum(rate(codex_ml_inference_latency_seconds_bucket[5m]))");
    assert_eq!(only.into_iter().collect::<Vec<_>>(), ["codex_ml_inference_latency_seconds"]);
    let only = metrics_of("test", "codex_controller_gates");
    assert_eq!(only.into_iter().collect::<Vec<_>>(), ["codex_controller_gates"]);
}

/// Returns the metric and the unit of each series, by the name of the series.
fn measured() -> BTreeMap<String, (&'static str, Unit)> {
    let mut measured = BTreeMap::new();
    for metric in all() {
        let mut add = |suffix: &str, unit| measured.insert(format!("{}{suffix}", metric.name), (metric.name, unit));
        if metric.kind == Type::Histogram {
            add("_bucket", Unit::Count);
            add("_count", Unit::Count);
            add("_sum", metric.unit);
        } else {
            add("", metric.unit);
        }
    }
    measured
}

/// What the values of a query are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quantity {
    /// A number of the query itself, which has the unit of what it is combined with.
    Constant,
    /// Values in this unit.
    Of(Unit),
    /// Values in this unit per second.
    PerSecond(Unit),
}

impl Quantity {
    /// Returns the names of the units in Grafana in which these values may be shown. A Unix time has none: a panel shows its age.
    fn shown_as(self) -> &'static [&'static str] {
        match self {
            Self::Of(Unit::Count | Unit::Boolean | Unit::Number | Unit::Nats | Unit::Flop) => &["short"],
            Self::Of(Unit::Seconds) => &["s"],
            Self::Of(Unit::Ratio) | Self::PerSecond(Unit::Seconds) => &["percentunit"],
            Self::Of(Unit::Bytes) => &["bytes", "decbytes"],
            Self::Of(Unit::Celsius) => &["celsius"],
            Self::Of(Unit::Watts) => &["watt"],
            Self::Of(Unit::FlopPerSecond) => &["flops"],
            Self::PerSecond(Unit::Count) => &["ops", "reqps"],
            Self::PerSecond(Unit::Bytes) => &["Bps", "binBps"],
            Self::Constant | Self::Of(Unit::UnixTime) | Self::PerSecond(_) => &[],
        }
    }
}

/// Returns what the values of a query are, or `None` if a rule for its functions and operators is missing here.
fn quantity(expr: &Expr) -> Option<Quantity> {
    use Quantity::{Constant, Of, PerSecond};
    let unit = |selector: &VectorSelector| measured().get(selector.name.as_deref()?).map(|(_, unit)| Of(*unit));
    match expr {
        Expr::Paren(paren) => quantity(&paren.expr),
        Expr::NumberLiteral(_) => Some(Constant),
        Expr::VectorSelector(selector) => unit(selector),
        Expr::MatrixSelector(matrix) => unit(&matrix.vs),
        Expr::Aggregate(aggregate) => match &*aggregate.op.to_string() {
            "sum" | "max" | "min" | "avg" => quantity(&aggregate.expr),
            _ => None,
        },
        Expr::Call(call) => {
            let argument = |index: usize| call.args.args.get(index).and_then(|argument| quantity(argument));
            match (call.func.name, argument(0)) {
                ("time", _) => Some(Of(Unit::UnixTime)),
                ("vector" | "increase", of) => of,
                ("rate", Some(Of(Unit::Flop))) => Some(Of(Unit::FlopPerSecond)),
                ("rate", Some(Of(unit))) => Some(PerSecond(unit)),
                ("histogram_quantile", _) => {
                    let metrics = metrics_of("histogram_quantile", &call.args.args.get(1)?.to_string());
                    let mut units = all().filter(|metric| metrics.contains(metric.name)).map(|metric| Of(metric.unit));
                    units.next().filter(|_| metrics.len() == 1)
                }
                _ => None,
            }
        }
        Expr::Binary(binary) => {
            let (left, right) = (quantity(&binary.lhs)?, quantity(&binary.rhs)?);
            // A filter keeps the values of its left side.
            let filters =
                binary.op.is_comparison_operator() && !binary.modifier.as_ref().is_some_and(|it| it.return_bool);
            match (&*binary.op.to_string(), left, right) {
                _ if filters => Some(left),
                ("and" | "unless", ..) => Some(left),
                ("-", Of(Unit::UnixTime), Of(Unit::UnixTime)) => Some(Of(Unit::Seconds)),
                ("+" | "-" | "or", it, Constant) | ("+" | "-", Constant, it) => Some(it),
                ("+" | "-" | "or", left, right) if left == right => Some(left),
                // A share over a constant share is a multiple of it.
                ("/", Of(Unit::Ratio), Constant) => Some(Of(Unit::Number)),
                ("/", it, Constant) => Some(it),
                ("/", left, right) if left == right => Some(Of(Unit::Ratio)),
                _ => None,
            }
        }
        _ => None,
    }
}

#[test]
fn the_unit_of_a_panel_fits_its_queries() {
    for dashboard in dashboards::all() {
        for panel in dashboard.json()["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            let place = format!("{}: {}", dashboard.title, panel["title"]);
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
            for query in panel["targets"].as_array().unwrap() {
                let query = query["expr"].as_str().unwrap();
                let of = quantity(&parsed(&place, query));
                let of = of.unwrap_or_else(|| panic!("{place}: {query} has no known unit: add a rule to quantity()"));
                let fitting = of.shown_as();
                assert!(fitting.contains(&unit), "{place} shows {unit}, but {query} is {of:?}: {fitting:?}");
            }
        }
    }
}

/// Without this, a rule that takes every unit for another one would pass, too.
#[test]
fn units_of_queries_follow_from_the_contract() {
    for (query, fitting) in [
        ("codex_ml_gpu_temperature_celsius", Some(&["celsius"][..])),
        ("max by (pod) (codex_ml_gpu_power_watts)", Some(&["watt"])),
        ("codex_ml_gpu_memory_used_bytes", Some(&["bytes", "decbytes"])),
        ("codex_ml_gpu_memory_used_bytes / (codex_ml_gpu_memory_size_bytes > 0)", Some(&["percentunit"])),
        ("codex_ml_gpu_utilization_ratio", Some(&["percentunit"])),
        ("codex_controller_queue_oldest_seconds", Some(&["s"])),
        ("codex_controller_report_certificate_expiry_timestamp_seconds", Some(&[])),
        ("time() - min(codex_controller_progress_oldest_timestamp_seconds)", Some(&["s"])),
        ("histogram_quantile(0.9, sum by (le) (rate(codex_ml_inference_latency_seconds_bucket[5m])))", Some(&["s"])),
        ("histogram_quantile(0.9, rate(codex_ml_inference_batched_tokens_bucket[5m]))", Some(&["short"])),
        ("rate(codex_ml_inference_latency_seconds_count[5m])", Some(&["ops", "reqps"])),
        ("rate(codex_ml_inference_latency_seconds_sum[5m])", Some(&["percentunit"])),
        (
            "1 - (rate(codex_ml_training_steps_total[5m]) / rate(codex_ml_training_spikes_total[5m]))",
            Some(&["percentunit"]),
        ),
        ("codex_ml_gpu_utilization_ratio / 0.05", Some(&["short"])),
        ("(sum(increase(codex_ml_training_spikes_total[1h]))) or vector(0)", Some(&["short"])),
        ("rate(codex_ml_training_flops_total[5m])", Some(&["flops"])),
        ("rate(codex_ml_training_flops_total[5m]) / codex_ml_training_peak_flops", Some(&["percentunit"])),
        // What does not fit together has no unit.
        ("codex_ml_gpu_power_watts / codex_ml_gpu_temperature_celsius", None),
        ("codex_ml_gpu_power_watts - codex_ml_gpu_temperature_celsius", None),
        ("stddev(codex_ml_gpu_power_watts)", None),
    ] {
        assert_eq!(quantity(&parsed("test", query)).map(Quantity::shown_as), fitting, "{query}");
    }
}

#[test]
fn dashboards_are_complete_and_linked() {
    let boards = dashboards::all();
    let uids: BTreeSet<_> = boards.iter().map(|dashboard| dashboard.uid).collect();
    assert_eq!(uids.into_iter().collect::<Vec<_>>(), ["codex-operator", "codex-rings", "codex-runs", "codex-serving"]);
    for dashboard in boards {
        let json = dashboard.json();
        assert_eq!(json["tags"][0], TAG);
        assert_eq!(json["links"][0]["tags"][0], TAG);
        assert_eq!(json["templating"]["list"][0]["type"], "datasource");
        let panels = json["panels"].as_array().unwrap();
        let mut titles = BTreeSet::new();
        let mut ids = BTreeSet::new();
        let mut places: Vec<[u64; 4]> = Vec::new();
        for panel in panels {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
            let place = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(place[0] + place[2] <= 24, "{title}");
            for [x, y, w, h] in &places {
                let apart =
                    place[0] >= x + w || place[0] + place[2] <= *x || place[1] >= y + h || place[1] + place[3] <= *y;
                assert!(apart, "{}: {title} covers another panel", dashboard.title);
            }
            places.push(place);
            if panel["type"] == "row" {
                continue;
            }
            titles.insert(title);
            assert!(panel["description"].as_str().is_some_and(|it| it.ends_with('.') && it.len() > 15), "{title}");
            assert!(panel["fieldConfig"]["defaults"]["noValue"].is_string(), "{title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            for query in panel["targets"].as_array().unwrap() {
                assert_eq!(query["datasource"]["uid"], "${datasource}");
                let query = query["expr"].as_str().unwrap();
                assert!(!query.contains("rate(") || query.contains("[$__rate_interval]"), "{title}: {query}");
            }
        }
        assert!(titles.len() >= 10, "{}", dashboard.title);
    }
}

#[test]
fn every_alert_has_a_section_that_says_what_to_do() {
    let page = fs::read_to_string(repository().join(alerts::RUNBOOKS)).unwrap();
    let sections: BTreeMap<_, _> =
        page.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let names: BTreeSet<_> = alerts::ALL.iter().map(|alert| alert.name).collect();
    assert_eq!(sections.keys().copied().collect::<BTreeSet<_>>(), names);
    for (name, text) in sections {
        for part in ["**Meaning.**", "**Look.**", "**Do.**"] {
            assert!(text.contains(part), "the section {name} has no {part}");
        }
    }
}

/// Returns `promtool`, or `None` if it is not installed and skipping is allowed.
fn promtool(arguments: &[&str], directory: &Path) -> Option<std::process::Output> {
    match Command::new("promtool").args(arguments).current_dir(directory).output() {
        Ok(output) => Some(output),
        Err(why) => {
            let forbidden = env::var("CODEX_TESTS_FORBID_SKIPS").is_ok_and(|value| !value.is_empty());
            assert!(!forbidden, "promtool cannot be started ({why}): install Debian's package prometheus");
            println!("SKIPPED: promtool cannot be started ({why}): install Debian's package prometheus");
            None
        }
    }
}

/// Writes the files of a plain Prometheus into a temporary folder.
fn plain() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files::all().unwrap() {
        if let Some(name) = name.strip_prefix("plain/").filter(|name| !name.contains('/')) {
            fs::write(folder.path().join(name), text).unwrap();
        }
    }
    folder
}

#[test]
fn every_alert_fires_and_is_silent_in_prometheus() {
    let folder = plain();
    let Some(output) = promtool(&["test", "rules", "alerts.test.yaml"], folder.path()) else { return };
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Without this, a test of alerts that checks nothing would pass, too.
#[test]
fn promtool_finds_an_alert_that_does_not_fire() {
    let folder = plain();
    for alert in alerts::ALL.iter() {
        let [fires, .., quiet] = &mut alert.tests()[..] else { panic!("{} has no tests", alert.name) };
        fires["input_series"] = quiet["input_series"].clone();
        let tests = serde_json::json!({ "rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": [fires] });
        fs::write(folder.path().join("test.yaml"), tests.to_string()).unwrap();
        let Some(output) = promtool(&["test", "rules", "test.yaml"], folder.path()) else { return };
        assert!(!output.status.success(), "{} fires on the series that should keep it silent", alert.name);
    }
}

/// Returns all series of the contract, each with these values: those of counters and of buckets, and those of gauges.
fn every_series(counters: &str, gauges: &str) -> Vec<serde_json::Value> {
    let values = |label: &str| -> &[&str] {
        match label {
            "kind" => &["TrainingRun", "Evaluation", "ReasoningPod"],
            "result" => &["ok", "error", "refused"],
            "state" => &["completed", "executed"],
            "condition" => &["Stalled", "GatesPassed", "Verified"],
            "status" => &["True", "False"],
            "reason" => &["Inconclusive", "GateFailed"],
            "code" => &["200", "500"],
            _ => &["a"],
        }
    };
    let mut found = Vec::new();
    for metric in all() {
        let mut labels = vec!["namespace=\"team\"".to_owned()];
        for label in metric.labels {
            let named = |labels: &String| {
                values(label.name).iter().map(|it| format!("{labels}, {}={it:?}", label.name)).collect::<Vec<_>>()
            };
            labels = labels.iter().flat_map(named).collect();
        }
        for labels in labels {
            let mut add = |suffix: &str, more: &str, values: &str| {
                found.push(serde_json::json!({ "series": format!("{}{suffix}{{{labels}{more}}}", metric.name), "values": values }));
            };
            match metric.kind {
                Type::Counter => add("", "", counters),
                Type::Gauge => add("", "", gauges),
                Type::Histogram => {
                    let edges = metric.buckets.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
                    edges.for_each(|edge| add("_bucket", &format!(", le={edge:?}"), counters));
                    add("_count", "", counters);
                    add("_sum", "", counters);
                }
            }
        }
    }
    found
}

/// Prometheus itself runs every query of the dashboards: on series of every metric it finds data, and on series that stand
/// still, which is no traffic, it finds no NaN.
#[test]
fn every_panel_shows_data_and_never_nan() {
    let folder = plain();
    let mut tests = Vec::new();
    for (counters, gauges, expected) in [("0+60x20", "1x20", true), ("0x20", "0x20", false)] {
        let mut expressions = Vec::new();
        for dashboard in dashboards::all() {
            for (query, _) in dashboard.panels().flat_map(|panel| &panel.queries) {
                let query = query.with_variables("5m", ".*");
                // Only NaN differs from itself.
                let (query, samples) = if expected {
                    (format!("count({query}) > bool 0"), serde_json::json!([{ "labels": "{}", "value": 1 }]))
                } else {
                    (format!("({query}) != ({query})"), serde_json::json!([]))
                };
                expressions.push(serde_json::json!({ "expr": query, "eval_time": "15m", "exp_samples": samples }));
            }
        }
        assert!(expressions.len() > 50);
        tests.push(serde_json::json!({
            "interval": "1m", "input_series": every_series(counters, gauges), "promql_expr_test": expressions,
        }));
    }
    let tests = serde_json::json!({ "rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests });
    fs::write(folder.path().join("panels.yaml"), tests.to_string()).unwrap();
    let Some(output) = promtool(&["test", "rules", "panels.yaml"], folder.path()) else { return };
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Debian's Prometheus is built without the discovery of Kubernetes, so a static one stands in for it. The API server's
/// part of the configuration is checked here by hand.
#[test]
fn prometheus_accepts_the_scrape_configuration() {
    let folder = plain();
    let mut configuration = scrape::configuration("alerts.yaml");
    for job in configuration["scrape_configs"].as_array_mut().unwrap() {
        let discovery = job.as_object_mut().unwrap().remove("kubernetes_sd_configs").unwrap();
        assert_eq!(discovery[0]["role"], "pod");
        job["static_configs"] = serde_json::json!([{ "targets": ["127.0.0.1:1"] }]);
    }
    fs::write(folder.path().join("prometheus.yaml"), serde_yaml::to_string(&configuration).unwrap()).unwrap();
    let Some(output) = promtool(&["check", "config", "prometheus.yaml"], folder.path()) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("{} rules found", alerts::ALL.len())), "{text}");
}

/// The manifests of the controller and the templates of pods must have the labels and ports that monitors select.
#[test]
fn monitors_select_what_exists() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let service = read("manifests/controller/service.yaml");
    for line in ["app.kubernetes.io/component: controller", "app.kubernetes.io/part-of: codex", "name: metrics"] {
        assert!(service.contains(line), "the Service of the controller has no {line}");
    }
    // The monitor selects both Services, by their labels, and must scrape no pod twice.
    assert_eq!(service.matches("name: metrics\n").count(), 1);
    assert!(read("manifests/controller/deployment.yaml").contains("name: health"));
    assert_eq!(scrape::PODS.map(|(component, ..)| component), ["trainer", "server", "activator"]);
    assert_eq!(scrape::PART_OF, ("app.kubernetes.io/part-of", "codex"));
}
