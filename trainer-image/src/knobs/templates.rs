//! `codex reasoning-templates`: lists and explains the templates of runs and the options of `+reasoning=`. Prints.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use codex_configs::{Template, template, template_names};
use codex_reports::exit;
use serde_json::{Value, json};

use crate::{arguments::Format, atomic_fs, error::CommandError};

/// List and explain the templates of runs, and the options of `+reasoning=`.
#[derive(Debug, Args)]
pub struct ReasoningTemplates {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the name of every template, the override that chooses it, and its purpose.
    List(List),
    /// Print what a template sets, with the defaults, and the tasks that it trains on.
    Explain(Explain),
}

#[derive(Debug, Args)]
struct List {
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct Explain {
    /// The template, such as cot-starter, or the option of `+reasoning=`, such as baseline.
    #[arg(value_name = "NAME")]
    name: String,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

impl ReasoningTemplates {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let text = match self.command {
            Command::List(List { format }) => list(format)?,
            Command::Explain(Explain { name, format }) => {
                explain(&template(&name).map_err(CommandError::bad_input)?, format)
            }
        };
        atomic_fs::say(text.trim_end())?;
        Ok(exit::FINISHED)
    }
}

/// Describes every template.
fn list(format: Format) -> Result<String, CommandError> {
    let all: Vec<Template> =
        template_names().into_iter().map(template).collect::<Result<_, _>>().map_err(CommandError::failed)?;
    let width = |text: fn(&Template) -> &str| all.iter().map(|it| text(it).len()).max().unwrap_or_default();
    let (name, choice) = (width(|it| it.name), width(|it| it.choice.as_str()));
    Ok(match format {
        Format::Text => {
            let line = |it: &Template| format!("{:name$}  {:choice$}  {}\n", it.name, it.choice, it.description);
            all.iter().map(line).collect::<Vec<_>>().concat()
        }
        Format::Json => {
            let shown = |it: &Template| json!({ "name": it.name, "choice": it.choice, "description": it.description });
            Value::Array(all.iter().map(shown).collect()).to_string()
        }
    })
}

/// Describes a template: its settings in a table with the defaults.
fn explain(template: &Template, format: Format) -> String {
    let Template { name, choice, description, tasks, settings } = template;
    if format == Format::Json {
        let settings: Vec<Value> = settings
            .iter()
            .map(|setting| json!({ "key": setting.key, "value": setting.value, "default": setting.default }))
            .collect();
        let told = json!({
            "name": name, "choice": choice, "description": description, "tasks": tasks, "settings": settings,
        });
        return told.to_string();
    }
    let trained = if tasks.is_empty() { "none: name data by spec.data or --data".to_owned() } else { tasks.join(", ") };
    let mut text = format!("{name}\n{description}\n\nchosen by: {choice}\ntasks without other data: {trained}\n\n");
    let rows: Vec<[String; 3]> = std::iter::once(["setting".to_owned(), "value".to_owned(), "default".to_owned()])
        .chain(settings.iter().map(|it| [it.key.to_owned(), shown(&it.value), shown(&it.default)]))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    for [key, value, default] in &rows {
        let _ = writeln!(text, "{key:first$}  {value:second$}  {default}");
    }
    text
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_listed_with_its_purpose() {
        let text = list(Format::Text).unwrap();
        let names = template_names();
        assert_eq!(text.lines().count(), names.len());
        for (line, name) in text.lines().zip(&names) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let choices = [format!("template={name}"), format!("+reasoning={name}")];
            assert!(words[0] == *name && choices.iter().any(|choice| choice == words[1]) && words.len() > 5, "{line}");
        }
        assert!(names.starts_with(codex_configs::TEMPLATES) && names.ends_with(&["tool_execution"]), "{names:?}");
        let json: Value = serde_json::from_str(&list(Format::Json).unwrap()).unwrap();
        let choice = format!("template={}", names[0]);
        assert_eq!((&json[0]["name"], &json[0]["choice"]), (&names[0].into(), &choice.into()));
    }

    #[test]
    fn a_template_is_explained_by_its_settings_and_their_defaults() {
        let starter = template("cot-starter").unwrap();
        let text = explain(&starter, Format::Text);
        assert!(text.contains("tasks without other data: arithmetic, word-problems\n"), "{text}");
        let row: Vec<&str> =
            text.lines().find(|line| line.starts_with("training.max_steps ")).unwrap().split_whitespace().collect();
        assert_eq!(row, ["training.max_steps", "2000", "1000"]);
        let json: Value = serde_json::from_str(&explain(&starter, Format::Json)).unwrap();
        let settings = json["settings"].as_array().unwrap();
        assert_eq!(settings.len(), starter.settings.len());
        assert!(settings.contains(&json!({ "key": "training.dtype", "value": "bf16", "default": "fp32" })));
        let text = explain(&template("lora").unwrap(), Format::Text);
        assert!(text.contains("tasks without other data: none: name data"), "{text}");
    }

    #[test]
    fn an_option_of_reasoning_is_explained_with_what_its_list_brings() {
        let row = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(key));
            line.map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>())
        };
        let baseline = explain(&template("baseline").unwrap(), Format::Text);
        assert!(baseline.contains("\nchosen by: +reasoning=baseline\n"), "{baseline}");
        assert!(baseline.contains("\ntasks without other data: arithmetic, word-problems\n"), "{baseline}");
        assert_eq!(row(&baseline, "curriculum.preset").unwrap(), ["starter", "none"]);
        assert_eq!(row(&baseline, "trace_capture.mode").unwrap(), ["weights", "disabled"]);
        let thought = explain(&template("chain_of_thought").unwrap(), Format::Text);
        assert_eq!(row(&thought, "curriculum.preset").unwrap(), ["first_principles", "none"]);
        assert_eq!(row(&thought, "trace_capture.mode"), row(&baseline, "trace_capture.mode"));
        let tools = explain(&template("tool_execution").unwrap(), Format::Text);
        assert!(tools.contains("tasks without other data: none: name data"), "{tools}");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest() {
        let command = ReasoningTemplates {
            command: Command::Explain(Explain { name: "cot-plu".to_owned(), format: Format::Text }),
        };
        let error = command.run().unwrap_err();
        assert!(error.exit == exit::BAD_INPUT && error.sentence().contains("did you mean cot-plus?"));
        assert!(template("baselin").unwrap_err().to_string().contains("did you mean baseline?"));
    }
}
