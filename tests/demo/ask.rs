//! Questions for the served model, drawn at random from the held-out problems. Runs `codex`.

use std::{
    collections::HashMap,
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use codex_configs::benchmark;
use codex_tests::{Error, Result, install::program, process::output};
use serde::{Deserialize, de::DeserializeOwned};

/// A problem with its reference solution.
#[derive(Debug, Deserialize)]
pub(crate) struct Problem {
    pub(crate) prompt: String,
    pub(crate) response: String,
}

/// The response of the server.
#[derive(Debug, Deserialize)]
pub(crate) struct Reply {
    pub(crate) completion: String,
    pub(crate) answer: Option<String>,
    pub(crate) steps: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Prediction {
    prompt: String,
    prediction: String,
}

impl Problem {
    /// Returns the right answer: the text between the last `#` and the final `$`.
    pub(crate) fn answer(&self) -> Option<&str> {
        answer(&self.response)
    }
}

fn answer(response: &str) -> Option<&str> {
    response.strip_suffix('$')?.rsplit_once('#').map(|(_, answer)| answer)
}

/// Draws held-out problems with a seed from the clock: two of arithmetic and one word problem.
pub(crate) fn held_out() -> Result<Vec<Problem>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = u64::from(now.subsec_nanos()) ^ now.as_secs();
    let mut problems = draw("arithmetic", 2, seed)?;
    problems.extend(draw("word-problems", 1, seed)?);
    Ok(problems)
}

/// Draws `count` held-out problems of arithmetic, the same ones each time.
pub(crate) fn arithmetic(count: usize) -> Result<Vec<Problem>> {
    draw("arithmetic", count, 1)
}

fn draw(task: &str, count: usize, seed: u64) -> Result<Vec<Problem>> {
    let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
    let file = folder.path().join(task);
    let mut codex = Command::new(program("codex")?);
    codex.args(["prepare-data", "--split", "held-out", "--task", task, "--count", &count.to_string()]);
    output(codex.args(["--seed", &seed.to_string(), "--out"]).arg(&file))?;
    let text = fs::read_to_string(&file).map_err(Error::io(format!("reading {}", file.display())))?;
    lines(&text)
}

/// Returns how many problems of `cot-lite` its pinned baseline answers correctly, and how many there are.
pub(crate) fn baseline() -> Result<(usize, usize)> {
    let text = |name: &str| {
        let file = benchmark("cot-lite").iter().find(|file| file.name == name);
        file.map(|file| String::from_utf8_lossy(file.contents()).into_owned()).unwrap_or_default()
    };
    let predictions: HashMap<String, String> =
        lines::<Prediction>(&text("baseline"))?.into_iter().map(|line| (line.prompt, line.prediction)).collect();
    let problems: Vec<Problem> = lines(&text("problems"))?;
    let right = problems.iter().filter(|problem| {
        let predicted = predictions.get(&problem.prompt).and_then(|prediction| answer(prediction));
        predicted.is_some() && predicted == problem.answer()
    });
    Ok((right.count(), problems.len()))
}

fn lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let parsed: serde_json::Result<Vec<T>> = text.lines().map(serde_json::from_str).collect();
    parsed.map_err(|error| Error::Client(kube::Error::SerdeError(error)))
}
