//! `kubectl codex <TAB>`: what the last word of a command line may be, and the answer to kubectl. Pure.
//!
//! kubectl runs `kubectl_complete-codex` with the words after `codex`, the last of which may be empty. That runs `kubectl-codex __complete`,
//! which prints a candidate on each line, a tab and its description, and on the last line a directive of Cobra.

use std::{collections::BTreeMap, fmt::Write as _};

use clap::{Arg, ArgAction, Command, Id, ValueHint};

use crate::{cluster::Place, subject::Kind};

/// The word before those of the command line to complete.
pub(crate) const REQUEST: &str = "__complete";
/// The answer that lets the shell complete paths: Cobra's `ShellCompDirectiveDefault`.
pub(crate) const PATHS: &str = ":0\n";
/// Cobra's `ShellCompDirectiveNoFileComp`: the shell does not complete paths.
const NO_PATHS: &str = ":4\n";

/// A word that may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) word: String,
    /// One line, or empty.
    pub(crate) about: String,
}

impl Candidate {
    pub(crate) fn new(word: impl Into<String>, about: &impl ToString) -> Self {
        let about = about.to_string();
        Self { word: word.into(), about: about.lines().next().unwrap_or_default().to_owned() }
    }
}

/// What a word may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One of these words.
    OneOf(Vec<Candidate>),
    /// The path of a file or a directory.
    Path,
    /// A name that must be looked up.
    Name(Names),
}

/// Names that are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Objects of these kinds, as NAME or KIND/NAME.
    Objects(Vec<Kind>),
    /// ReasoningPods, as NAME or NAMESPACE/NAME.
    Pods,
    /// Namespaces of the cluster.
    Namespaces,
    /// Contexts of the kubeconfig.
    Contexts,
}

/// What a command line lacks.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) expected: Expected,
    /// The beginning of the word to complete, without the flag of `--flag=`, which shells add themselves.
    pub(crate) word: String,
    /// The flags of kubectl in the words before.
    pub(crate) place: Place,
}

/// Reads the words after `kubectl codex`; the last one is to be completed.
pub(crate) fn question(mut command: Command, words: &[String]) -> Question {
    // Gives every subcommand the global flags and --help.
    command.build();
    let (last, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let mut line = Line::new(&command);
    for word in before {
        line.read(word);
    }
    let (expected, word) = line.expected(last);
    Question { expected, word: word.to_owned(), place: line.place }
}

/// Returns the answer to kubectl: the candidates that begin with `word`.
pub(crate) fn answer(word: &str, candidates: &[Candidate]) -> String {
    let mut answer = String::new();
    // Contexts may have any name.
    let fits = |it: &&Candidate| it.word.starts_with(word) && !it.word.contains(char::is_control);
    for Candidate { word, about } in candidates.iter().filter(fits) {
        let _ = if about.is_empty() { writeln!(answer, "{word}") } else { writeln!(answer, "{word}\t{about}") };
    }
    answer + NO_PATHS
}

/// Returns the names of objects as candidates, below the kind or the namespace that was written before the slash.
pub(crate) fn named(before: Option<&str>, found: Vec<(Kind, String)>) -> Vec<Candidate> {
    let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (kind, name) in found {
        kinds.entry(name).or_default().push(kind.name());
    }
    let word = |name: String| before.map_or(name.clone(), |before| format!("{before}/{name}"));
    kinds.into_iter().map(|(name, kinds)| Candidate::new(word(name), &kinds.join(", "))).collect()
}

/// The words of a command line that have been read.
struct Line<'a> {
    command: &'a Command,
    /// The flag whose value is the next word.
    open: Option<&'a Arg>,
    given: Vec<&'a Id>,
    /// Number of positional arguments.
    positionals: usize,
    /// Whether `--` ended the flags.
    ended: bool,
    /// Whether a word is not a subcommand, so nothing is known about what follows.
    unknown: bool,
    place: Place,
}

impl<'a> Line<'a> {
    fn new(command: &'a Command) -> Self {
        let place = Place::default();
        Self { command, open: None, given: Vec::new(), positionals: 0, ended: false, unknown: false, place }
    }

    fn read(&mut self, word: &'a str) {
        if let Some(arg) = self.open.take() {
            self.value(arg, word);
        } else if word == "--" && !self.ended {
            self.ended = true;
        } else if word.len() > 1 && word.starts_with('-') && !self.ended {
            let Some((arg, value)) = flag(self.command, word) else { return };
            self.given.push(arg.get_id());
            match value {
                Some(value) => self.value(arg, value),
                None => self.open = Some(arg).filter(|arg| arg.get_action().takes_values()),
            }
        } else if self.command.has_subcommands() {
            match self.command.find_subcommand(word) {
                Some(command) => self.command = command,
                None => self.unknown = true,
            }
        } else {
            self.positionals += 1;
        }
    }

    /// Keeps the value of a flag that says where to look for names.
    fn value(&mut self, arg: &Arg, value: &str) {
        match arg.get_id().as_str() {
            "namespace" => self.place.namespace = Some(value.to_owned()),
            "context" => self.place.context = Some(value.to_owned()),
            "kubeconfig" => self.place.kubeconfig = Some(value.into()),
            _ => {}
        }
    }

    /// Returns what the last word may be, and which part of it is to be completed.
    fn expected<'w>(&self, last: &'w str) -> (Expected, &'w str) {
        if self.unknown {
            return (Expected::OneOf(Vec::new()), last);
        }
        if let Some(arg) = self.open {
            return (values(self.command, arg), last);
        }
        if last.starts_with('-') && !self.ended {
            return match flag(self.command, last) {
                Some((arg, Some(value))) if last.contains('=') && arg.get_action().takes_values() => {
                    (values(self.command, arg), value)
                }
                _ => (Expected::OneOf(self.flags(|_| true)), last),
            };
        }
        if self.command.has_subcommands() {
            let shown = self.command.get_subcommands().filter(|command| !command.is_hide_set());
            let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
            let candidates = shown.map(|command| Candidate::new(command.get_name(), &about(command)));
            return (Expected::OneOf(candidates.collect()), last);
        }
        match self.command.get_positionals().nth(self.positionals) {
            Some(arg) => (values(self.command, arg), last),
            None if self.ended => (Expected::OneOf(Vec::new()), last),
            None => (Expected::OneOf(self.flags(Arg::is_required_set)), last),
        }
    }

    /// Returns the flags that may follow.
    fn flags(&self, wanted: impl Fn(&Arg) -> bool) -> Vec<Candidate> {
        let again = |arg: &Arg| matches!(arg.get_action(), ArgAction::Append | ArgAction::Count);
        let may_follow = |arg: &&Arg| {
            !arg.is_positional() && !arg.is_hide_set() && (again(arg) || !self.given.contains(&arg.get_id()))
        };
        let mut flags = Vec::new();
        for arg in self.command.get_arguments().filter(may_follow).filter(|arg| wanted(arg)) {
            let about = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            flags.extend(long.into_iter().chain(short).map(|word| Candidate::new(word, &about)));
        }
        flags
    }
}

/// Returns the flag of a word that begins with `-`, and the value in the same word.
fn flag<'c, 'w>(command: &'c Command, word: &'w str) -> Option<(&'c Arg, Option<&'w str>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        return Some((arg, value));
    }
    let mut letters = word.strip_prefix('-')?.chars();
    loop {
        let letter = letters.next()?;
        let arg = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
        let rest = letters.as_str();
        if rest.is_empty() {
            return Some((arg, None));
        }
        if arg.get_action().takes_values() {
            return Some((arg, Some(rest.strip_prefix('=').unwrap_or(rest))));
        }
    }
}

/// Returns the values of an argument.
fn values(command: &Command, arg: &Arg) -> Expected {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let shown = possible.iter().filter(|value| !value.is_hide_set());
        let about = shown.map(|value| (value, value.get_help().map(ToString::to_string).unwrap_or_default()));
        return Expected::OneOf(about.map(|(value, about)| Candidate::new(value.get_name(), &about)).collect());
    }
    match (command.get_name(), arg.get_id().as_str()) {
        ("reproduce", "subject") => Expected::Name(Names::Objects(vec![Kind::TrainingRun])),
        (_, "subject") => Expected::Name(Names::Objects(Kind::ALL.to_vec())),
        (_, "cluster") => Expected::Name(Names::Pods),
        (_, "namespace") => Expected::Name(Names::Namespaces),
        (_, "context") => Expected::Name(Names::Contexts),
        _ if arg.get_value_hint() == ValueHint::AnyPath => Expected::Path,
        _ => Expected::OneOf(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Expected, Names, PATHS, Question, answer, named, question};
    use crate::{cli::command_line, subject::Kind};

    /// Asks with the words of a line; a space at its end begins an empty word.
    fn ask(line: &str) -> Question {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        question(command_line(), &words)
    }

    /// Returns the candidates without their descriptions.
    fn words(line: &str) -> Vec<String> {
        let Question { expected, word, .. } = ask(line);
        let Expected::OneOf(candidates) = expected else { panic!("{line}: {expected:?}") };
        let answer = answer(&word, &candidates);
        let lines = answer.strip_suffix(":4\n").unwrap().lines();
        lines.map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn commands_are_candidates() {
        assert_eq!(words("t"), ["tree", "top"]);
        assert_eq!(words("-n team re"), ["reproduce", "repo-map"]);
        assert_eq!(words("help ev"), ["events"]);
        let all = words("");
        assert!(all.contains(&"status-report".to_owned()) && all.contains(&"help".to_owned()), "{all:?}");
        assert!(all.iter().all(|word| !word.starts_with('_')), "{all:?}");
        assert_eq!(question(command_line(), &[]).expected, ask("").expected);
    }

    #[test]
    fn descriptions_follow_a_tab_and_the_directive_is_last() {
        let Expected::OneOf(commands) = ask("tr").expected else { panic!() };
        let about = "Show the chain of an object: base, run, evaluations with their gates, and what serves the model";
        assert_eq!(answer("tr", &commands), format!("tree\t{about}\n:4\n"));
        let Expected::OneOf(commands) = ask("dep").expected else { panic!() };
        assert_eq!(answer("dep", &commands).lines().count(), 2, "one line of a longer help");
    }

    #[test]
    fn flags_are_candidates_once() {
        assert_eq!(words("logs cot --t"), ["--tail", "--timestamps"]);
        assert_eq!(words("logs cot --timestamps --t"), ["--tail"]);
        assert_eq!(words("logs cot -f --f"), [""; 0]);
        assert_eq!(words("repo-map --include deployment --inc"), ["--include"]);
        let short = words("top -");
        for flag in ["-A", "--all-namespaces", "-o", "--output", "-n", "--namespace", "--context", "-h", "--help"] {
            assert!(short.contains(&flag.to_owned()), "{flag} is missing: {short:?}");
        }
        // A command without positional arguments offers the flags that it requires.
        assert_eq!(words("repo-map "), ["--cluster", "--reasoning"]);
        assert_eq!(words("repo-map --reasoning "), ["--cluster"]);
        assert_eq!(words("top "), [""; 0]);
        assert_eq!(words("top -- -"), [""; 0]);
    }

    #[test]
    fn values_are_candidates() {
        assert_eq!(words("completion "), ["bash", "zsh", "fish"]);
        assert_eq!(words("tree cot -o "), ["json"]);
        assert_eq!(words("status-report --format m"), ["markdown"]);
        // Shells add the flag themselves.
        assert_eq!(words("status-report --format=m"), ["markdown"]);
        assert_eq!(words("top -Ao=j"), ["json"]);
        assert_eq!(words("repo-map --reasoning --include dep"), ["deployment"]);
        assert_eq!(words("logs cot --tail "), [""; 0]);
    }

    #[test]
    fn nothing_follows_an_unknown_word() {
        for line in ["absent ", "absent -", "tree cot another ", "tree cot --absent=", "completion tcsh "] {
            assert_eq!(words(line), [""; 0], "{line}");
        }
        // An unknown flag is skipped.
        assert_eq!(words("tree cot --absent --ou"), ["--output"]);
    }

    #[test]
    fn names_are_looked_up_where_the_flags_say() {
        let expected = |line: &str| ask(line).expected;
        let all = Expected::Name(Names::Objects(Kind::ALL.to_vec()));
        for line in ["tree ", "why -o json c", "logs --tail 3 c", "events -- ", "logs -n team trun/"] {
            assert_eq!(expected(line), all, "{line}");
        }
        assert_eq!(expected("reproduce "), Expected::Name(Names::Objects(vec![Kind::TrainingRun])));
        assert_eq!(expected("deploy --cluster="), Expected::Name(Names::Pods));
        assert_eq!(expected("-n "), Expected::Name(Names::Namespaces));
        assert_eq!(expected("tree cot --context "), Expected::Name(Names::Contexts));
        for line in ["deploy --status-report ", "status-report --out ", "top --kubeconfig="] {
            assert_eq!(expected(line), Expected::Path, "{line}");
        }
        assert_eq!(PATHS, ":0\n");
        let place = ask("--context=lab tree -nteam --kubeconfig file trun/c").place;
        assert_eq!((place.namespace.as_deref(), place.context.as_deref()), (Some("team"), Some("lab")));
        assert_eq!(place.kubeconfig.unwrap().to_str(), Some("file"));
    }

    #[test]
    fn a_name_of_several_kinds_is_one_candidate() {
        let found = || vec![(Kind::TrainingRun, "cot".to_owned()), (Kind::ReasoningPod, "cot".to_owned())];
        assert_eq!(answer("c", &named(None, found())), "cot\tTrainingRun, ReasoningPod\n:4\n");
        let pod = named(Some("team"), vec![(Kind::ReasoningPod, "rc".to_owned())]);
        assert_eq!(answer("team/", &pod), "team/rc\tReasoningPod\n:4\n");
        let broken = named(None, vec![(Kind::TrainingRun, "a\nb".to_owned())]);
        assert_eq!(answer("", &broken), ":4\n");
    }
}
