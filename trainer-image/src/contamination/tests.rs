//! What is an overlap, and the reports about it.

use std::{fs, path::Path};

use super::{Check, Form, Report};

const LONG: &str = "A farmer has 17 sheep, and all but 9 of them run away; how many sheep does the farmer have left?";

fn check(directory: &Path, data: &[&str], problems: &[&str], ngram: usize, max_share: f64) -> Report {
    check_with(directory, data, problems, ngram, max_share, &[])
}

fn check_with(
    directory: &Path,
    data: &[&str],
    problems: &[&str],
    ngram: usize,
    max_share: f64,
    set: &[&str],
) -> Report {
    let write = |name: &str, lines: &[&str]| {
        let path = directory.join(name);
        fs::write(&path, lines.join("\n")).unwrap();
        path
    };
    let command = Check {
        data: vec![("mine".to_owned(), write("data.jsonl", data))],
        against: write("problems.jsonl", problems),
        ngram,
        max_share,
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        format: Form::Text,
    };
    command.report().unwrap()
}

#[test]
fn problems_are_found_in_pairs_conversations_and_texts() {
    let directory = tempfile::tempdir().unwrap();
    let problems = [
        r##"{"prompt": "347+86:", "response": "#433$"}"##.to_owned(),
        r##"{"prompt": "347-86:", "response": "#261$"}"##.to_owned(),
        serde_json::json!({ "question": LONG, "answer": "9" }).to_string(),
        r#"{"prompt": "A question of seven words and more", "response": "1"}"#.to_owned(),
    ];
    let problems: Vec<&str> = problems.iter().map(String::as_str).collect();
    // Other words before and after, other case and other punctuation.
    let inside = LONG.to_uppercase().replace(',', " -");
    let chat = serde_json::json!({"messages": [
        { "role": "user", "content": " 347+86: " },
        { "role": "assistant", "content": "433" },
    ]});
    let texts = [
        chat.to_string(),
        serde_json::json!({ "text": format!("Riddles. {inside} Nine.") }).to_string(),
        r#"{"prompt": "347+87:", "response": "434"}"#.to_owned(),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let report = check(directory.path(), &texts, &problems, 13, 0.0);
    let counts = &report.problems;
    assert_eq!((counts.total, counts.exact, counts.ngram, counts.either), (4, 1, 1, 2));
    assert!(!report.passed && report.short_problems == 3);
    let source = &report.data[0];
    assert_eq!((source.records, source.exact, source.ngram), (3, 1, 1));
    let [sum, riddle] = report.overlaps.as_slice() else { panic!("{report}") };
    assert_eq!((sum.line, sum.exact.as_ref().unwrap().line, &sum.ngram), (1, 1, &None));
    assert_eq!((riddle.line, riddle.ngram.as_ref().unwrap().line, &riddle.exact), (3, 2, &None));
    assert_eq!(riddle.ngram.as_ref().unwrap().text, "a farmer has 17 sheep and all but 9 of them run away");
    let text = report.to_string();
    assert!(text.starts_with("failed: 2 of 4 problems overlap, a share of 0.5000; at most 0 may\n"), "{text}");
    assert!(text.contains("\nproblem 1 is asked by mine:1: \"347+86:\"\n"), "{text}");
    assert!(check(directory.path(), &texts, &problems, 13, 0.5).passed);
    // The riddle has 21 words.
    let ngram = |words| check(directory.path(), &texts, &problems, words, 0.5).problems.ngram;
    assert_eq!([1, 21, 22].map(ngram), [4, 1, 0]);
}

#[test]
fn problems_are_found_in_preferences() {
    let directory = tempfile::tempdir().unwrap();
    let problems = [
        r##"{"prompt": "347+86:", "response": "#433$"}"##.to_owned(),
        serde_json::json!({ "question": "Name a number.", "answer": LONG }).to_string(),
        r##"{"prompt": "347-86:", "response": "#261$"}"##.to_owned(),
    ];
    let says = |role: &str, text: &str| serde_json::json!({ "role": role, "content": text });
    let preferences = [
        serde_json::json!({ "prompt": "347+86:", "chosen": "433", "rejected": "347-86:" }).to_string(),
        serde_json::json!({
            "prompt": [says("user", "A riddle?")],
            "chosen": [says("assistant", "No.")],
            "rejected": [says("assistant", LONG)],
        })
        .to_string(),
    ];
    let [problems, preferences] = [&problems[..], &preferences[..]].map(|it| it.iter().map(String::as_str).collect());
    let (problems, preferences): (Vec<&str>, Vec<&str>) = (problems, preferences);
    // Weights name the data of the run that the settings are of.
    let set = ["training.method=dpo", "data.weights.mine=2"];
    let report = check_with(directory.path(), &preferences, &problems, 13, 0.0, &set);
    let counts = &report.problems;
    assert_eq!((counts.total, counts.exact, counts.ngram, counts.either), (3, 1, 1, 2), "{report}");
    assert_eq!(report.overlaps.iter().map(|overlap| overlap.line).collect::<Vec<_>>(), [1, 2], "{report}");
}

#[test]
fn bad_files_and_settings_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.jsonl");
    fs::write(&path, "{}\n").unwrap();
    let refused = |against: &Path, set: &str| {
        let command = Check {
            data: vec![("mine".to_owned(), path.clone())],
            against: against.to_owned(),
            ngram: 13,
            max_share: 0.0,
            set: vec![set.to_owned()],
            format: Form::Json,
        };
        let error = command.run().unwrap_err();
        assert_eq!(error.exit, codex_reports::exit::BAD_INPUT);
        error.sentence()
    };
    let good = "data.format=jsonl";
    assert!(refused(&path, good).contains("a.jsonl:1: invalid record: no field that is read"));
    let nowhere = directory.path().join("nowhere");
    assert!(refused(&nowhere, good).ends_with("nowhere does not exist"));
    assert!(refused(&path, "data.formats=jsonl").contains("did you mean data.format?"));
}
