//! Evaluations of problems that name clusters.

use super::*;

/// Writes 24 problems in clusters of four.
fn clustered(directory: &Path) -> (String, PathBuf) {
    let path = directory.join("problems.jsonl");
    let plain = String::from_utf8(materialise(Task::Arithmetic, Split::HeldOut, 7, 24).unwrap()).unwrap();
    let line = |(index, line): (usize, &str)| {
        let mut problem: Value = serde_json::from_str(line).unwrap();
        problem["cluster"] = format!("story-{}", index / 4).into();
        problem.to_string()
    };
    fs::write(&path, plain.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    ("problems".to_owned(), path)
}

#[test]
fn clusters_travel_from_the_problems_to_the_verdict() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let set = ["evaluation.metrics=[lowest_trace_coverage, token_f1, perplexity]", "evaluation.max_new_tokens=16"];
    let (before, after) = (directory.path().join("before"), directory.path().join("after"));
    let problems = clustered(directory.path());
    Case { set: &set, ..Case::with_files(&model, vec![problems.clone()]) }.results(&before);
    let reference = ("reference-before".to_owned(), before.join("outcomes.json"));
    let case = Case { set: &set, ..Case::with_files(&model, vec![problems, reference]) };
    let (results, state) = case.results(&after);
    let wrong = Measurement::ClusterMean { n: 6, items: 24, sum: Some(0.0), sum_of_squares: Some(0.0) };
    assert_eq!(results.metrics["exact_match"], wrong, "an untaught model");
    let kinds = ["token_f1", "trace_coverage", "perplexity", "exact_match@before", "perplexity@before"]
        .map(|name| results.metrics[name].kind().name());
    assert_eq!(kinds, ["clusterMean", "clusterMean", "clusterEstimate", "clusterDifference", "clusterEstimate"]);
    let lowest =
        ["lowest_trace_coverage", "lowest_trace_coverage@before"].map(|name| results.metrics[name].kind().name());
    assert_eq!(lowest, ["clusterEstimate"; 2]);
    let outcomes = Outcomes::parse(read(after.join("outcomes.json")).as_bytes()).unwrap();
    let mut again = outcomes.measure(None);
    let earlier = Outcomes::parse(read(before.join("outcomes.json")).as_bytes()).unwrap();
    again.extend(earlier.compare("before", &outcomes, None));
    assert_eq!(again, results.metrics, "the outcomes hold the clusters");
    assert_eq!((state.metrics, state.done), (results.metrics.clone(), 24));
    let gate: Gate = "exact_match>=0.9@0.95".parse().unwrap();
    let told = codex_verdict::judge_one(&gate, &results.metrics).message;
    assert!(told.starts_with("0 over 24 items in 6 clusters, so "), "{told}");
    let summary: Value = serde_json::from_str(&read(after.join("summary.json"))).unwrap();
    assert_eq!(
        (&summary["metrics"]["exact_match"]["n"], &summary["metrics"]["exact_match"]["items"]),
        (&6.into(), &24.into())
    );
    for name in ["evaluation", "summary", "outcomes"] {
        schema(name)(&serde_json::from_str(&read(after.join(format!("{name}.json")))).unwrap()).unwrap();
    }
    let first: Value = serde_json::from_str(read(after.join("records.ndjson")).lines().next().unwrap()).unwrap();
    assert_eq!(first["cluster"], "story-0");
}

#[test]
fn outcomes_in_which_only_some_problems_have_a_cluster_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let model = train(0, &directory.path().join("run"));
    let output = directory.path().join("output");
    Case::with_files(&model, vec![clustered(directory.path())]).results(&output);
    let mut outcomes: Value = serde_json::from_str(&read(output.join("outcomes.json"))).unwrap();
    outcomes["items"][5].as_object_mut().unwrap().remove("cluster");
    let told = Outcomes::parse(outcomes.to_string().as_bytes()).unwrap_err();
    assert!(told.starts_with("only some of its problems have a cluster, of those in lines 1 and 6 one"), "{told}");
}
