//! The command line: a variant for each command, the set-up of logs, and the process's exit code. Does I/O.
//!
//! A command is a struct with clap's `Args` and a `run(self) -> Result<i32, CommandError>`; its `Ok` is the process's
//! exit code (see [`codex_reports::exit`]). To add one, write its `Args` in its own module, and a variant and a line in `run`
//! here. Nothing depends on this file but `main`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::{error::CommandError, terminal};

/// Train, evaluate, serve and verify small reasoning models.
#[derive(Debug, Parser)]
#[command(name = "codex", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "a process has one")]
enum Command {
    /// Train a model; resumes from the newest valid checkpoint in the output directory.
    Train(crate::training::Train),
    /// Take one step of a run again, and show its records, their losses and the gradient.
    ReplayStep(crate::training::ReplayStep),
    /// Find the first step and tensor in which two runs differ.
    Bisect(crate::training::Bisect),
    /// Let a model answer held-out problems, and score its answers.
    Evaluate(crate::evaluation::Evaluate),
    /// Judge recorded results by gates.
    Gate(crate::gating::GateCommand),
    /// Complete a prompt or answer a message, and print the text as it is generated.
    Generate(crate::generation::Generate),
    /// Write the model of a GGUF file as a Hugging Face directory.
    Import(crate::import::Import),
    /// Write a model whose weights have eight bits, which a decoder holds in half the memory.
    Quantize(crate::quantize::Quantize),
    /// Merge a LoRA adapter into the weights of its base.
    Merge(crate::merge::Merge),
    /// Download a model from Hugging Face, or a mirror of it.
    Fetch(crate::hub::Fetch),
    /// Train, check and use tokenizers.
    Tokenizer(crate::tokenizing::Tokenizing),
    /// Check data before a training: problems of an evaluation among the records.
    Data(crate::contamination::Data),
    /// Write problems of a synthetic reasoning task as JSON lines.
    PrepareData(crate::tasks::PrepareData),
    /// Verify a model's signature, promotion and ring, then serve it over HTTP.
    Serve(crate::serving::Serve),
    /// Hold requests while no server runs, and forward them once one does.
    Activate(crate::serving::Activate),
    /// Send a prompt to a server and print its completion.
    Infer(crate::client::Infer),
    /// Talk to a model in the terminal.
    Chat(crate::client::Chat),
    /// Measure the latency of a server under an open load.
    BenchServe(crate::client::BenchServe),
    /// Check a text by safety rules.
    Safety(crate::safety::Safety),
    /// Verify that a model directory is exactly what was signed.
    Verify(crate::verify::Verify),
    /// Report signatures of an identity in a transparency log that no bundle explains.
    LogWatch(crate::log_watch::LogWatch),
    /// Sign the files of a model with a key of your own.
    Sign(crate::sign::Sign),
    /// Check manifests without a cluster.
    Validate(crate::validate::Validate),
    /// Check from files that a ReasoningPod may roll out; nothing is created.
    Deploy(crate::checklist::Deploy),
    /// Survey how ready runs are for a ring, as Markdown and JSON.
    StatusReport(crate::checklist::StatusReport),
    /// Write a page about a run or a model: chain, gates, examples, loss, data, signatures.
    Report(crate::page::Report),
    /// Record a model directory immutably, under the name of its digest.
    Register(crate::register::Register),
    /// Show where the settings that control a chain stand, and their values.
    RepoMap(crate::knobs::RepoMap),
    /// List and explain the templates of runs.
    ReasoningTemplates(crate::knobs::ReasoningTemplates),
    /// Print a ReasoningPod whose servers are those of a deployment preset.
    ReasoningPod(crate::knobs::ReasoningPod),
    /// Show, compare and check configurations, with the origin of each setting.
    Config(crate::configuration::Config),
    /// Write a TrainingRun for each combination of values.
    Sweep(crate::configuration::Sweep),
    /// Check that a volume keeps checkpoints, and measure how fast it writes them.
    CheckpointSmoke(crate::training::CheckpointSmoke),
    /// Summarize, follow, plot and compare the metrics of runs.
    Metrics(crate::metrics::Metrics),
}

impl Command {
    fn run(self) -> Result<i32, CommandError> {
        match self {
            Self::Train(command) => command.run(),
            Self::ReplayStep(command) => command.run(),
            Self::Bisect(command) => command.run(),
            Self::Evaluate(command) => command.run(),
            Self::Gate(command) => command.run(),
            Self::Generate(command) => command.run(),
            Self::Import(command) => command.run(),
            Self::Quantize(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Fetch(command) => command.run(),
            Self::Tokenizer(command) => command.run(),
            Self::Data(command) => command.run(),
            Self::PrepareData(command) => command.run(),
            Self::Serve(command) => command.run(),
            Self::Activate(command) => command.run(),
            Self::Infer(command) => command.run(),
            Self::Chat(command) => command.run(),
            Self::BenchServe(command) => command.run(),
            Self::Safety(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::LogWatch(command) => command.run(),
            Self::Sign(command) => command.run(),
            Self::Validate(command) => command.run(),
            Self::Deploy(command) => command.run(),
            Self::StatusReport(command) => command.run(),
            Self::Report(command) => command.run(),
            Self::Register(command) => command.run(),
            Self::RepoMap(command) => command.run(),
            Self::ReasoningTemplates(command) => command.run(),
            Self::ReasoningPod(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Sweep(command) => command.run(),
            Self::CheckpointSmoke(command) => command.run(),
            Self::Metrics(command) => command.run(),
        }
    }
}

/// Parses the command line, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    let command = ignore_empty_variables(Arguments::command(), &|name| {
        std::env::var_os(name).is_some_and(|value| value.is_empty())
    });
    let arguments = match Arguments::from_arg_matches(&command.get_matches()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    start_logging();
    crate::threads::limit();
    let allowed = codex_engine::Isa::limit().map_err(CommandError::bad_input);
    let code = match allowed.and_then(|_| arguments.command.run()) {
        Ok(code) => code,
        Err(error) => {
            let sentence = error.sentence();
            if std::io::stderr().is_terminal() {
                let _ = writeln!(std::io::stderr(), "codex: {sentence}");
            } else {
                tracing::error!(exit = error.exit, "{sentence}");
            }
            error.exit
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Makes clap ignore environment variables that are set and empty.
pub fn ignore_empty_variables(command: clap::Command, is_empty: &impl Fn(&std::ffi::OsStr) -> bool) -> clap::Command {
    let command = command.mut_args(|argument| match argument.get_env() {
        Some(name) if is_empty(name) => argument.env(clap::builder::Resettable::Reset),
        _ => argument,
    });
    command.mut_subcommands(|command| ignore_empty_variables(command, is_empty))
}

/// Starts logging to standard error: compact lines on a terminal, JSON lines elsewhere, filtered by `CODEX_LOG` (default
/// `info`).
pub fn start_logging() {
    let filter = std::env::var("CODEX_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.and_then(|filter| tracing_subscriber::EnvFilter::try_new(filter).ok());
    let filter = filter.unwrap_or_else(|| "info".into());
    // The HTTP client shows requests whole, with tokens and signed addresses: no setting brings these lines.
    let quiet = ["ureq=warn", "ureq_proto=warn"].into_iter().filter_map(|directive| directive.parse().ok());
    let filter = quiet.fold(filter, tracing_subscriber::EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Otherwise a log line that cannot be written is reported with `eprintln!`, which panics.
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        builder.compact().with_target(false).with_ansi(colours()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// Returns whether log lines have colours: not on dumb terminals, nor with `NO_COLOR`.
fn colours() -> bool {
    terminal::is_interactive() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// pre-commit adds the names of files to the entry of a hook.
    #[test]
    fn hooks_of_pre_commit_are_commands() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.pre-commit-hooks.yaml");
        let hooks: Vec<serde_json::Value> = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(!hooks.is_empty());
        for hook in hooks {
            let words = hook["entry"].as_str().unwrap().split(' ').chain(["team/a.yaml", "team/b.yaml"]);
            assert_eq!((words.clone().next(), hook["language"].as_str()), (Some("codex"), Some("system")), "{hook}");
            Arguments::try_parse_from(words).unwrap();
        }
    }

    #[test]
    fn empty_variables_are_ignored() {
        let names = |command: &clap::Command| -> Vec<String> {
            let train = command.find_subcommand("train").unwrap();
            train.get_arguments().filter_map(|it| Some(it.get_env()?.to_str()?.to_owned())).collect()
        };
        assert_eq!(names(&Arguments::command()), ["HF_ENDPOINT", "CODEX_GRACE_SECONDS", "CODEX_METRICS_ADDRESS"]);
        let command = ignore_empty_variables(Arguments::command(), &|name| name == "CODEX_GRACE_SECONDS");
        assert_eq!(names(&command), ["HF_ENDPOINT", "CODEX_METRICS_ADDRESS"]);
    }

    #[test]
    fn refusals_name_the_argument_and_the_allowed_values() {
        let refused = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap_err().to_string();
        let train = refused("codex train --template cot-starter --output x --seed -1");
        assert!(train.contains("'-1' for '--seed") && train.contains("from 0 to 9007199254740991"), "{train}");
        let evaluate = "codex evaluate --preset cot-lite --model m --output o";
        let told = refused(&format!("{evaluate} --seed 1.5"));
        assert!(told.contains("write a whole number"), "{told}");
        let told = refused(&format!("{evaluate} --gate exact_match>=2"));
        assert!(told.contains("bound \"2\": write a decimal from 0 to 1, such as 0.95"), "{told}");
        let verify = "codex verify m --bundle b --key k --promotion p --ring";
        let told = refused(&format!("{verify} 0E_base_"));
        for ring in codex_verdict::Ring::ALL.map(codex_verdict::Ring::name) {
            assert!(told.contains(ring), "{told}");
            Arguments::try_parse_from(format!("{verify} {ring}").split(' ')).unwrap();
        }
    }

    #[test]
    fn overrides_are_arguments_too() {
        let parsed = |line: &str| Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string());
        for line in [
            "codex train template=cot-starter training.max_steps=500 --output o",
            "codex train --template cot-starter ~training.max_epochs --output o",
            "codex train --set template=lora --output o",
            "codex evaluate preset=cot-lite evaluation.limit=5 --model m --output o",
        ] {
            assert!(parsed(line).is_ok(), "{:?}", parsed(line).err());
        }
        let told = parsed("codex train --output o").unwrap_err();
        assert!(told.contains("required arguments") && told.contains("--template"), "{told}");
        for line in [
            "codex train --config c --template cot-starter --output o",
            "codex train --config c training.max_steps=5 --output o",
            "codex evaluate --config c --preset cot-lite --model m --output o",
        ] {
            assert!(parsed(line).unwrap_err().contains("cannot be used with"), "{line}");
        }
    }

    /// The commands that do something, by their names.
    fn leaves(command: &clap::Command, path: &[String]) -> Vec<(Vec<String>, clap::Command)> {
        let inner: Vec<_> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
        if inner.is_empty() {
            return vec![(path.to_vec(), command.clone())];
        }
        inner.into_iter().flat_map(|inner| leaves(inner, &[path, &[inner.get_name().to_owned()]].concat())).collect()
    }

    #[test]
    fn every_number_and_address_has_a_sentence_for_another_text() {
        let texts: std::collections::HashSet<_> =
            [std::any::TypeId::of::<String>(), std::any::TypeId::of::<std::path::PathBuf>()].into();
        let (mut checked, mut silent) = (0, Vec::new());
        let mut root = Arguments::command();
        // The positions of arguments are known then.
        root.build();
        for (path, command) in leaves(&root, &[]) {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                let parser = argument.get_value_parser();
                if texts.iter().any(|text| parser.type_id() == *text) || parser.possible_values().is_some() {
                    continue;
                }
                let mut line = vec!["codex".to_owned()];
                line.extend(path.iter().cloned());
                match argument.get_long() {
                    Some(name) => line.push(format!("--{name}=1e3x")),
                    None => line.extend(vec!["1e3x".to_owned(); argument.get_index().unwrap_or(1)]),
                }
                let told = Arguments::try_parse_from(&line).unwrap_err();
                let sentence = ["write ", "use one of ", ": use "].iter().any(|right| told.to_string().contains(right));
                if told.kind() != clap::error::ErrorKind::ValueValidation || !sentence {
                    silent.push(format!("{line:?}: {told}"));
                }
                checked += 1;
            }
        }
        assert!(checked > 30, "{checked}");
        assert!(silent.is_empty(), "{silent:#?}");
    }

    /// Doc comments with links to items of the code become help texts.
    #[test]
    fn no_help_text_shows_the_syntax_of_documentation() {
        for (path, mut command) in leaves(&Arguments::command(), &[]) {
            let help = command.render_long_help().to_string();
            for syntax in ["[`", "`]", "::", "](", "Some(", "None"] {
                assert!(!help.contains(syntax), "{path:?} has {syntax:?} in its help:\n{help}");
            }
        }
    }

    #[test]
    fn the_help_of_prepare_data_lists_every_task() {
        let mut command = Arguments::command();
        let prepare = command.find_subcommand_mut("prepare-data").unwrap();
        let task = prepare.get_arguments().find(|argument| argument.get_id() == "task").unwrap();
        let listed = task.get_help().unwrap().to_string().replace(" or ", ", ");
        let listed: Vec<_> = listed.strip_prefix("The task: ").unwrap().split(", ").collect();
        assert_eq!(listed, codex_configs::TASKS);
    }
}
