//! Runs all measurements, in the order of the table. Does I/O.

use std::fmt::Write as _;

use codex_tests::{Installation, Result, Team};

use crate::{operator, programs};

/// One row of the table.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) value: String,
    pub(crate) aim: &'static str,
}

impl Figure {
    pub(crate) fn new(what: &'static str, value: impl Into<String>, aim: &'static str) -> Self {
        Self { what, value: value.into(), aim }
    }
}

/// Runs the measurements one after the other, because there are few cores.
pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let installation = Installation::ensure().await?;
    let mut figures = operator::idle(installation).await?;
    let team = Team::new("bench").await?;
    let (chain, model) = operator::chain(&team).await?;
    figures.extend(chain);
    figures.push(programs::ready(&team, &model).await?);
    team.done();
    drop(team);
    figures.push(programs::training()?);
    Ok(figures)
}

/// Returns, for each row, the smallest, the median and the largest value of several measurements of the same figures.
pub(crate) fn spread(measured: &[Vec<Figure>]) -> Vec<Figure> {
    let Some(first) = measured.first() else { return Vec::new() };
    first.iter().map(|Figure { what, aim, .. }| Figure::new(what, spread_of(what, measured), aim)).collect()
}

fn spread_of(what: &str, measured: &[Vec<Figure>]) -> String {
    let rows = measured.iter().flatten().filter(|figure| figure.what == what);
    let mut values: Vec<&str> = rows.map(|figure| figure.value.as_str()).collect();
    values.sort_by(|one, other| leading_number(one).total_cmp(&leading_number(other)));
    match values[..] {
        [] => String::new(),
        [min, .., max] if min != max => format!("{min} / {} / {max}", values[values.len() / 2]),
        [only, ..] => only.to_owned(),
    }
}

/// Returns the number that a value begins with, such as 18.66 of `18.66 s`.
fn leading_number(value: &str) -> f64 {
    let end = value.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(value.len());
    value[..end].parse().unwrap_or(f64::NAN)
}

/// Formats the figures as Markdown.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = "\n| Figure | Measured | Aim |\n|---|---|---|\n".to_owned();
    for Figure { what, value, aim } in figures {
        let _ = writeln!(text, "| {what} | {value} | {aim} |");
    }
    text
}

/// Formats the figures of this project and those of the peer with the same name as Markdown.
pub(crate) fn comparison(ours: &[Figure], peers: &[Figure]) -> String {
    let mut text = "\n| Figure | Codex | Kubeflow Trainer with JobSet | Aim |\n|---|---|---|---|\n".to_owned();
    for Figure { what, value, aim } in ours {
        let peer = peers.iter().find(|figure| figure.what == *what).map_or("–", |figure| &figure.value);
        let _ = writeln!(text, "| {what} | {value} | {peer} | {aim} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_measurements_have_a_spread() {
        let measured = ["18.66 s", "9.1 s", "20 s"]
            .map(|value| vec![Figure::new("Wait", value, "≤ 1 s"), Figure::new("Jobs", "2", "")]);
        let values: Vec<String> = spread(&measured).into_iter().map(|figure| figure.value).collect();
        assert_eq!(values, ["9.1 s / 18.66 s / 20 s", "2"]);
    }

    /// A name that only one of them has would never be measured again, or be measured and not be told.
    #[test]
    fn every_figure_of_the_operator_and_its_programs_has_a_row_in_the_documents() {
        let document = include_str!("../../docs/benchmarks.md");
        for source in [include_str!("operator.rs"), include_str!("programs.rs"), include_str!("scale.rs")] {
            for figure in source.split("Figure::new(").skip(1) {
                let name = figure.split('"').nth(1).unwrap();
                assert!(document.contains(&format!("\n| {name} |")), "docs/benchmarks.md has no row {name:?}");
            }
        }
    }

    #[test]
    fn a_figure_that_the_peer_lacks_has_a_dash() {
        let ours = [Figure::new("Jobs", "2", "≥ 1"), Figure::new("Restart", "3 s", "")];
        let table = comparison(&ours, &[Figure::new("Jobs", "1", "≥ 1")]);
        let rows: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(rows, ["| Jobs | 2 | 1 | ≥ 1 |", "| Restart | 3 s | – |  |"]);
    }
}
