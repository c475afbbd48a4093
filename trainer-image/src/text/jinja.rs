//! Chat templates: Jinja as `transformers` sets it up. Pure.
//!
//! Like there, a block's line feed and the white space before it are removed; `raise_exception`, `strftime_now` and
//! `{% break %}` exist; `tojson` writes what Python's `json.dumps` writes; strings, lists and maps have Python's methods.
//! `{% generation %}` is ignored. Every rendering has a limit of operations, because a template comes with a model from
//! elsewhere and must not be able to run forever.

use std::{io, sync::Arc};

use jiff::civil::DateTime;
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize as _;

use super::TokenizerError;

/// The template's name in error messages.
const NAME: &str = "chat template";
/// Operations of one rendering, at most. A message takes about a hundred.
const FUEL: u64 = 50_000_000;

/// The time that a template sees as now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// 26 July 2024, 12:00: the date that Llama 3's templates have where none is given. With it the same messages always give
    /// the same text; evaluation, training and serving use it.
    Fixed,
    /// A time.
    At(DateTime),
}

impl Clock {
    fn now(self) -> DateTime {
        match self {
            Self::Fixed => jiff::civil::datetime(2024, 7, 26, 12, 0, 0, 0),
            Self::At(time) => time,
        }
    }
}

/// A compiled chat template.
#[derive(Clone, Debug)]
pub(super) struct Template {
    environment: Arc<Environment<'static>>,
    source: String,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] with the line.
    pub(super) fn new(source: &str) -> Result<Self, TokenizerError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| refused(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |told: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, told))
        });
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| refused(&error))?;
        Ok(Self { environment: Arc::new(environment), source: source.to_owned() })
    }

    /// Returns the template's text.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders the template with these variables.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] with the template's own message if it raised one.
    pub(super) fn render(&self, clock: Clock, variables: Vec<(String, Value)>) -> Result<String, TokenizerError> {
        let strftime_now = Value::from_function(move |format: String| {
            jiff::fmt::strtime::format(format, clock.now())
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
        });
        let variables = variables.into_iter().chain([("strftime_now".to_owned(), strftime_now)]);
        let template = self.environment.get_template(NAME).map_err(|error| refused(&error))?;
        template.render(Value::from_pairs(variables)).map_err(|error| refused(&error))
    }
}

fn refused(error: &Error) -> TokenizerError {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let told = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    TokenizerError::Template(format!("{}{line}", told.replace('\n', " ")))
}

/// Replaces the tags around what the assistant writes, which Jinja itself does not know, by ones without effect.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        let Some((tag, after)) = after.split_once("%}") else { break };
        let sign = |sign: char| ['-', '+'].contains(&sign);
        let replaced = match tag.trim_matches(sign).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        };
        text.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    text.push_str(rest);
    text
}

/// `value | tojson(indent=None, ensure_ascii=False, …)`: what Python's `json.dumps` writes.
#[allow(clippy::needless_pass_by_value, reason = "the signature of a filter")]
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted as far as they change nothing here: keys have the order in which they were written.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = vec![b' '; width.min(64)];
            let pretty = serde_json::ser::PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Python)),
    };
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
}

/// The separators of Python's `json.dumps`.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let variables =
            vec![("items".to_owned(), Value::from(vec![1, 2, 3])), ("text".to_owned(), Value::from(" a<b "))];
        let rendered = Template::new(source).and_then(|template| template.render(Clock::Fixed, variables));
        rendered.map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_are_trimmed_like_in_transformers() {
        let source = "{% if true %}\n    {% for item in items %}\n{{ item }}\n    {% endfor %}\n{% endif %}\nend\n";
        assert_eq!(render(source).unwrap(), "1\n2\n3\nend");
    }

    #[test]
    fn generation_tags_have_no_effect() {
        let source = "{% for item in items %}{%- generation -%}  {{ item }}{% endgeneration %},{% endfor %}";
        assert_eq!(render(source).unwrap(), "1,2,3,");
        assert_eq!(render("{{ '{%' }} x").unwrap(), "{% x");
    }

    #[test]
    fn pythons_functions_and_methods_exist() {
        for (source, expected) in [
            ("{{ {'a': [1, 'é<'], 'b': none} | tojson }}", "{\"a\": [1, \"é<\"], \"b\": null}"),
            ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
            ("{{ [] | tojson(indent=4) }}", "[]"),
            (
                "{{ text.strip() }}|{{ text | trim }}|{{ text.split('<')[-1] }}|{{ text.startswith(' a') }}",
                "a<b|a<b|b |True",
            ),
            ("{{ items[::-1] }}{{ items[1:] | length }}", "[3, 2, 1]2"),
            ("{% for i in items %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
            ("{% set ns = namespace(n=0) %}{% for i in items %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "6"),
            ("{{ strftime_now('%d %b %Y') }}{{ strftime_now is defined }}", "26 Jul 2024True"),
            ("{{ nothing }}{{ nothing is defined }}{{ text is string and items is iterable }}", "FalseTrue"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn refusals_are_told() {
        let told = render("\n{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(told, "the chat template cannot be rendered: roles must alternate (line 2)");
        assert!(render("{% if %}").unwrap_err().contains("(line 1)"));
        assert!(render("{{ strftime_now('%!') }}").unwrap_err().contains("strftime_now: "));
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(render(source).unwrap_err().contains("fuel"));
    }
}
