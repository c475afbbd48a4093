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
    fn a_figure_that_the_peer_lacks_has_a_dash() {
        let ours = [Figure::new("Jobs", "2", "≥ 1"), Figure::new("Restart", "3 s", "")];
        let table = comparison(&ours, &[Figure::new("Jobs", "1", "≥ 1")]);
        let rows: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(rows, ["| Jobs | 2 | 1 | ≥ 1 |", "| Restart | 3 s | – |  |"]);
    }
}
