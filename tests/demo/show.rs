//! The output of the demo: headings, commands with their output, tables. Runs kubectl.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use codex_crds::{Evaluation, TrainingRun};
use codex_tests::{
    Installation, Result,
    process::{output, output_with},
};

/// Prints the output of the demo. Holds its start time and its namespace.
pub(crate) struct Show<'a> {
    installation: &'a Installation,
    namespace: String,
    begun: Instant,
}

impl<'a> Show<'a> {
    pub(crate) fn new(installation: &'a Installation, namespace: &str) -> Self {
        Self { installation, namespace: namespace.to_owned(), begun: Instant::now() }
    }

    /// Returns the time since the start of the demo.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Prints a heading with the time since the start of the demo.
    pub(crate) fn heading(&self, text: &str) {
        let seconds = self.begun.elapsed().as_secs();
        println!("\n── {:02}:{:02} ── {text}\n", seconds / 60, seconds % 60);
    }

    /// Prints a kubectl command, runs it in the demo's namespace and prints its output.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<()> {
        println!("$ kubectl {}", arguments.join(" "));
        print!("{}", self.ask_kubectl(arguments)?);
        Ok(())
    }

    /// Prints a kubectl command and what it reads, runs it with that on its standard input, and prints its output.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<()> {
        println!("$ kubectl {} <<END\n{input}END", arguments.join(" "));
        print!("{}", output_with(self.command()?.args(arguments), input)?);
        Ok(())
    }

    /// Prints a kubectl command that creates an object of `namespace` from files, and replaces the existing object by it.
    pub(crate) fn kubectl_replace(&self, namespace: &str, arguments: &[&str]) -> Result<()> {
        let made = arguments.join(" ");
        println!("$ kubectl -n {namespace} {made} --dry-run=client -o yaml | kubectl -n {namespace} replace -f -");
        let kubectl = || -> Result<Command> {
            let mut kubectl = self.installation.cluster.kubectl()?;
            kubectl.args(["--namespace", namespace]);
            Ok(kubectl)
        };
        let object = output(kubectl()?.args(arguments).args(["--dry-run=client", "-o", "yaml"]))?;
        print!("{}", output_with(kubectl()?.args(["replace", "-f", "-"]), &object)?);
        Ok(())
    }

    /// Returns the output of a kubectl command in the demo's namespace.
    pub(crate) fn ask_kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.command()?.args(arguments))
    }

    fn command(&self) -> Result<Command> {
        let mut kubectl = self.installation.cluster.kubectl()?;
        kubectl.args(["--namespace", &self.namespace]);
        Ok(kubectl)
    }

    /// Prints one line of a run's progress.
    pub(crate) fn progress(&self, run: &TrainingRun) {
        let seconds = self.begun.elapsed().as_secs();
        let status = run.status.as_ref();
        let phase =
            status.and_then(|status| status.phase).map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"));
        let Some(progress) = status.and_then(|status| status.progress.as_ref()) else {
            println!("   {:02}:{:02}  {phase}", seconds / 60, seconds % 60);
            return;
        };
        let loss = progress.loss.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let speed = progress.tokens_per_second.map_or_else(|| "-".to_owned(), |speed| speed.to_string());
        let left = progress.eta_seconds.filter(|seconds| *seconds > 0);
        let left = left.map_or_else(String::new, |seconds| format!("  about {seconds} s left"));
        println!(
            "   {:02}:{:02}  {phase}  step {:>9}  loss {loss:>8}  {speed:>6} tokens/s{left}",
            seconds / 60,
            seconds % 60,
            progress.steps,
        );
    }
}

/// Prints the gates of an evaluation with their numbers.
pub(crate) fn gates(evaluation: &Evaluation) {
    println!();
    for gate in evaluation.status.iter().flat_map(|status| &status.gates) {
        println!("   {:<12}  {:<18}  {}", format!("{:?}", gate.verdict), gate.metric, gate.message);
    }
}
