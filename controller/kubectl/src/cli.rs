//! The command line of `kubectl codex`.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use codex_crds::TrainingRun;
use codex_provenance::text::Printable;
use jiff::Timestamp;
use kube::api::ListParams;
use serde::Serialize;

use crate::{
    cluster::{Cluster, Found, Place, contexts},
    completion::{self, Candidate, Expected, Names, Question},
    error::CommandError,
    events, logs, promotion,
    reproduce::reproduction,
    subject::{Kind, Subject},
    text::{Painter, coloured},
    top,
    tree::{self, roots},
    why::{self, why},
};

/// How long names are looked up for a completion. A user waits for it.
const COMPLETION_LIMIT: Duration = Duration::from_secs(2);

/// Show what the Codex operator does: chains of runs, evaluations and servers, and what blocks them.
#[derive(Debug, Parser)]
#[command(name = "kubectl-codex", bin_name = "kubectl codex", version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    place: PlaceFlags,
    #[command(subcommand)]
    command: Command,
}

/// The flags of kubectl.
#[derive(Debug, Args)]
struct PlaceFlags {
    /// Namespace of the object. Defaults to the namespace of the context.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig to use. Defaults to the current context.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Kubeconfig file to use. Defaults to the files in KUBECONFIG, else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// An object.
#[derive(Debug, Args)]
struct Named {
    /// Object, as NAME or KIND/NAME, such as trainingrun/cot.
    #[arg(value_name = "[KIND/]NAME")]
    subject: Subject,
}

/// The form of the output.
#[derive(Debug, Args)]
struct Output {
    /// Form of the output: json; text without it.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Form>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// JSON.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the chain of an object: base, run, evaluations with their gates, and what serves the model.
    Tree {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        output: Output,
    },
    /// Say in one paragraph what blocks an object and what to do.
    Why {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        output: Output,
    },
    /// Print the logs of all pods of an object, in the order in which they were created.
    Logs {
        #[command(flatten)]
        named: Named,
        /// Go on with new lines and new pods, until a run or an evaluation has ended.
        #[arg(short, long)]
        follow: bool,
        /// Number of lines to show of the end of each log. Without it, all lines are shown.
        #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i64).range(0..))]
        tail: Option<i64>,
        /// Begin each line with its time.
        #[arg(long)]
        timestamps: bool,
    },
    /// Show runs with steps, tokens per second, remaining time and loss.
    Top {
        /// Show the runs of all namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Show the Events of an object, its Job or Deployment and its pods.
    Events {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        output: Output,
    },
    /// Print the manifest of a TrainingRun that trains another one again and compares the models, in JSON: for kubectl create -f -.
    Reproduce {
        /// TrainingRun to reproduce, as NAME or trainingrun/NAME.
        #[arg(value_name = "[KIND/]NAME")]
        subject: Subject,
        /// Name of the new TrainingRun. Defaults to the name of the run and -again.
        #[arg(long)]
        name: Option<String>,
    },
    /// Check that a ReasoningPod may roll out, as codex deploy checks it from files; nothing is created.
    ///
    /// Exit codes: 0 every check holds or is waived, 1 blocked, 2 bad input.
    Deploy(promotion::Deploy),
    /// Survey how ready the run of a ReasoningPod is for its ring, as codex status-report surveys files.
    StatusReport(promotion::StatusReport),
    /// Show the settings that control a chain, each as path -> value.
    RepoMap(promotion::RepoMap),
    /// Print a completion script for a shell.
    Completion {
        /// Shell to complete for.
        shell: Shell,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// Reads the command line, runs the command and returns the exit code: 0, 1 if it failed or what it checked is blocked, or 2 if a flag or
/// an object is invalid.
pub fn main() -> ExitCode {
    let mut words = env::args_os().skip(1);
    if words.next().is_some_and(|word| word == completion::REQUEST) {
        let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        // A shell that reads no answer needs none.
        let _ = io::stdout().write_all(complete(&words).as_bytes());
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(failure) => Err(CommandError::Output(failure)),
    };
    match result {
        Ok(code) => code,
        // The reader, such as `head`, has read enough.
        Err(CommandError::Output(failure)) if failure.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // A message that cannot be printed changes nothing.
            let _ = writeln!(io::stderr(), "error: {}", Printable(&failure.to_string()));
            failure.exit()
        }
    }
}

/// Returns the command line as clap knows it.
pub(crate) fn command_line() -> clap::Command {
    Arguments::command()
}

/// Returns the answer to kubectl, which completes the last of the words. Names that cannot be looked up in time are missing.
fn complete(words: &[String]) -> String {
    let Question { expected, word, place } = completion::question(command_line(), words);
    let candidates = match expected {
        Expected::Path => return completion::PATHS.to_owned(),
        Expected::OneOf(candidates) => candidates,
        Expected::Name(names) => {
            let (sender, receiver) = mpsc::channel();
            let begun = word.clone();
            // A thread, because a credential plugin of the kubeconfig blocks. It ends with the program.
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let found = runtime.ok().and_then(|runtime| runtime.block_on(look_up(names, place, &begun)).ok());
                // The other side may have stopped waiting.
                let _ = sender.send(found);
            });
            receiver.recv_timeout(COMPLETION_LIMIT).ok().flatten().unwrap_or_default()
        }
    };
    completion::answer(&word, &candidates)
}

/// Looks up names for a word.
async fn look_up(names: Names, place: Place, word: &str) -> Result<Vec<Candidate>, CommandError> {
    let plain = |names: Vec<String>| names.into_iter().map(|name| Candidate::new(name, &"")).collect();
    let before = word.split_once('/').map(|(before, _)| before);
    let (kinds, place) = match names {
        Names::Contexts => return Ok(plain(contexts(&place)?)),
        Names::Namespaces => return Ok(plain(Cluster::connect(&place).await?.namespaces().await?)),
        Names::Pods => {
            let namespace = before.map(str::to_owned).or(place.namespace);
            (vec![Kind::ReasoningPod], Place { namespace, ..place })
        }
        Names::Objects(mut kinds) => {
            kinds.retain(|kind| before.is_none_or(|before| Kind::of(before) == Some(*kind)));
            (kinds, place)
        }
    };
    Ok(completion::named(before, Cluster::connect(&place).await?.names(&kinds).await))
}

async fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    let PlaceFlags { namespace, context, kubeconfig } = arguments.place;
    let place = Place { namespace, context, kubeconfig };
    let mut out = io::stdout().lock();
    let mut code = ExitCode::SUCCESS;
    match arguments.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command().bin_name("kubectl-codex");
            clap_complete::generate(clap_complete::Shell::from(shell), &mut command, "kubectl-codex", &mut script);
            out.write_all(&script)?;
        }
        Command::Tree { named, output } => {
            let cluster = Cluster::connect(&place).await?;
            let found = cluster.find(&named.subject).await?;
            let roots = roots(&cluster.chain(found).await?);
            let painter = Painter::new(coloured(
                io::stdout().is_terminal(),
                env::var_os("NO_COLOR").as_deref(),
                env::var_os("TERM").as_deref(),
            ));
            write(&mut out, &output, &roots, || tree::render(&roots, painter))?;
        }
        Command::Why { named, output } => {
            let cluster = Cluster::connect(&place).await?;
            let found = cluster.find(&named.subject).await?;
            let (view, causes) = (found.view(), cluster.causes(&found).await?);
            let events = cluster.events(view.kind, &view.name, &found.uid()).await?;
            let why = why(&view, &causes, &events);
            write(&mut out, &output, &why, || why::render(&why))?;
        }
        Command::Logs { named, follow, tail, timestamps } => {
            let cluster = Cluster::connect(&place).await?;
            let view = cluster.find(&named.subject).await?.view();
            let shown = logs::Shown { follow, tail, timestamps };
            logs::logs(&cluster, view.kind, &view.name, shown, &mut out).await?;
        }
        Command::Top { all_namespaces, output } => {
            let cluster = Cluster::connect(&place).await?;
            let rows = top::rows(&cluster.list::<TrainingRun>(all_namespaces, ListParams::default()).await?);
            if rows.is_empty() && output.output.is_none() {
                let place = if all_namespaces {
                    "any namespace".to_owned()
                } else {
                    format!("the namespace {}", cluster.namespace)
                };
                let _ = writeln!(io::stderr(), "no TrainingRun exists in {place}");
            } else {
                write(&mut out, &output, &rows, || top::render(&rows, all_namespaces, Timestamp::now()))?;
            }
        }
        Command::Reproduce { subject, name } => {
            let cluster = Cluster::connect(&place).await?;
            let subject = Subject { kind: subject.kind.or(Some(Kind::TrainingRun)), ..subject };
            let Found::Run(run) = cluster.find(&subject).await? else { return Err(CommandError::NoRun(subject.name)) };
            writeln!(out, "{}", serde_json::to_string_pretty(&reproduction(&run, name))?)?;
        }
        Command::Deploy(command) => code = command.run(&place, &mut out).await?,
        Command::StatusReport(command) => command.run(&place, &mut out).await?,
        Command::RepoMap(command) => command.run(&place, &mut out).await?,
        Command::Events { named, output } => {
            let cluster = Cluster::connect(&place).await?;
            let found = cluster.find(&named.subject).await?;
            let view = found.view();
            let events = cluster.events(view.kind, &view.name, &found.uid()).await?;
            if events.is_empty() && output.output.is_none() {
                let _ = writeln!(
                    io::stderr(),
                    "no Event is about {} {}; the cluster keeps Events for an hour",
                    view.kind.name(),
                    view.name
                );
            } else {
                write(&mut out, &output, &events, || events::render(&events, Timestamp::now()))?;
            }
        }
    }
    out.flush()?;
    Ok(code)
}

/// Writes a result as JSON or as text.
fn write<T: Serialize>(
    out: &mut impl io::Write,
    output: &Output,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), CommandError> {
    match output.output {
        Some(Form::Json) => writeln!(out, "{}", serde_json::to_string_pretty(value)?)?,
        None => out.write_all(text().as_bytes())?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "kubectl-codex", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("kubectl-codex") && script.contains("tree"), "{shell}");
        }
    }
}
