//! The templates of a task: what becomes of a document. Pure.
//!
//! As in lm-evaluation-harness, a template that is the name of a field stands for that field, and everything else is Jinja in which
//! an unknown name is an error. Every rendering has a limit of operations.

use std::sync::Arc;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde_json::{Map, Value};

const NAME: &str = "task";
/// Operations of one rendering, at most.
const FUEL: u64 = 5_000_000;

/// A document of a task.
pub(super) type Document = Map<String, Value>;

/// A compiled template.
#[derive(Clone, Debug)]
pub(super) struct Template {
    source: String,
    environment: Arc<Environment<'static>>,
}

fn told(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let told = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("{}{line}", told.replace('\n', " "))
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(|error| told(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("regex_replace", |text: String, pattern: String, value: String| {
            let compiled = Regex::new(&pattern);
            let compiled =
                compiled.map_err(|_| Error::new(ErrorKind::InvalidOperation, "regex_replace: malformed pattern"))?;
            Ok::<String, Error>(compiled.replace_all(&text, value.as_str()).into_owned())
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| told(&error))?;
        Ok(Self { source: source.to_owned(), environment: Arc::new(environment) })
    }

    /// Returns the field of a document that the template names, if it names one.
    pub(super) fn field<'a>(&self, document: &'a Document) -> Option<&'a Value> {
        document.get(&self.source)
    }

    /// Returns the value for a document of a template that is one expression between braces; `None` for any other template.
    ///
    /// # Errors
    /// What is wrong with the expression or the document.
    pub(super) fn value(&self, document: &Document) -> Result<Option<Value>, String> {
        let inner = self.source.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        let Some(inner) = inner.filter(|inner| !inner.contains("{{")) else { return Ok(None) };
        let expression = self.environment.compile_expression(inner).map_err(|error| told(&error))?;
        let value = expression.eval(Serde(document)).map_err(|error| told(&error))?;
        Ok(serde_json::to_value(value).ok())
    }

    /// Returns the text for a document.
    ///
    /// # Errors
    /// What is wrong with the template or the document.
    pub(super) fn render(&self, document: &Document) -> Result<String, String> {
        match self.field(document) {
            Some(Value::String(text)) => return Ok(text.clone()),
            Some(Value::Number(number)) => return Ok(number.to_string()),
            Some(_) => return Err(format!("the field {} is neither a text nor a number", self.source)),
            None => {}
        }
        let template = self.environment.get_template(NAME).map_err(|error| told(&error))?;
        template.render(Serde(document)).map_err(|error| told(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let Value::Object(document) =
            serde_json::json!({ "q": " 2+2 ", "n": 4, "list": ["a", "b"], "o": { "x": "y" } })
        else {
            unreachable!()
        };
        Template::new(source).and_then(|template| template.render(&document))
    }

    #[test]
    fn a_template_is_a_field_or_jinja() {
        for (source, expected) in [
            ("q", " 2+2 "),
            ("n", "4"),
            ("Question: {{ q.strip() }}\nAnswer:\n", "Question: 2+2\nAnswer:\n"),
            ("{{ list[1] }}{{ o.x }}{{ n + 1 }}", "by5"),
            ("{{ q | regex_replace('[0-9]', 'x') | trim }}", "x+x"),
            ("plain", "plain"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        assert!(render("{{ nothing }}").unwrap_err().contains("undefined"));
        assert!(render("{% if %}").unwrap_err().contains("(line 1 of the template)"));
        assert_eq!(render("list").unwrap_err(), "the field list is neither a text nor a number");
        assert!(render("{{ q | regex_replace('(', '') }}").unwrap_err().contains("malformed pattern"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(endless).unwrap_err().contains("fuel"));
    }
}
