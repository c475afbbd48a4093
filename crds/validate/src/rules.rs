//! The CEL rules of a CRD (`x-kubernetes-validations`), evaluated for a new object. Rules that compare it with its former
//! version (`oldSelf`) do not apply to one.

use std::{collections::BTreeMap, fmt, sync::Arc};

use cel::{Context, Env, Program, Value as Cel, extensions};
use regex::Regex;
use serde_json::Value;

use crate::document::Path;

/// The compiled rules by their text.
pub(crate) struct Engine {
    environment: Arc<Env>,
    programs: BTreeMap<String, Program>,
    quantity: Regex,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("rules", &self.programs.len()).finish_non_exhaustive()
    }
}

/// Kubernetes' form of a quantity, such as 500m, 1.5Gi or 2e3.
const QUANTITY: &str = "^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$";

impl Engine {
    /// Compiles all rules of these schemas.
    pub(crate) fn new<'a>(schemas: impl Iterator<Item = &'a Value>) -> Result<Self, String> {
        let mut environment = Env::stdlib();
        environment.add_extension(extensions::strings).map_err(|error| format!("CEL: {error}"))?;
        let mut programs = BTreeMap::new();
        for schema in schemas {
            compile(&environment, schema, &mut programs)?;
        }
        let quantity = Regex::new(QUANTITY).map_err(|error| error.to_string())?;
        Ok(Self { environment: Arc::new(environment), programs, quantity })
    }

    /// Applies the rules of a schema and of everything below it to a value that the schema accepts.
    pub(crate) fn check(&self, schema: &Value, value: &Value, path: &Path, found: &mut Vec<(Path, String)>) {
        for rule in rules(schema) {
            let fields = rule.field.into_iter().flat_map(|field| field.split('.').skip(1));
            let path = fields.fold(path.clone(), |path, field| path.field(field));
            match self.evaluate(rule.text, value) {
                Ok(Cel::Bool(true)) => {}
                Ok(Cel::Bool(false)) => found.push((path, self.message(rule, value))),
                Ok(other) => found.push((path, format!("the rule {} gives {other:?}", rule.text))),
                Err(why) => {
                    found.push((path, format!("the rule {} could not be evaluated: {why}", rule.text)));
                }
            }
        }
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.check(&schema["items"], item, &path.index(index), found);
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    let below = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                    if let Some(below) = below {
                        self.check(below, value, &path.field(name), found);
                    }
                }
            }
            _ => {}
        }
    }

    fn message(&self, rule: Rule<'_>, value: &Value) -> String {
        let composed = rule.message_expression.and_then(|text| self.evaluate(text, value).ok());
        match (composed, rule.message) {
            (Some(Cel::String(text)), _) => text.to_string(),
            (_, Some(text)) => text.to_owned(),
            (_, None) => format!("the rule {} does not hold", rule.text),
        }
    }

    fn evaluate(&self, expression: &str, value: &Value) -> Result<Cel, String> {
        let program = self.programs.get(expression).ok_or("it was not compiled")?;
        let mut context = Context::with_env(Arc::clone(&self.environment));
        let quantity = self.quantity.clone();
        context
            .add_function("isQuantity", move |text: Arc<String>| quantity.is_match(&text))
            .map_err(|error| error.to_string())?;
        let own = cel::to_value(value).map_err(|error| error.to_string())?;
        context.add_variable_from_value("self", own);
        program.execute(&context).map_err(|error| error.to_string())
    }
}

/// A rule of a schema.
#[derive(Clone, Copy)]
struct Rule<'a> {
    text: &'a str,
    message: Option<&'a str>,
    message_expression: Option<&'a str>,
    /// The field that it is about, such as `.min`; otherwise it is about the whole value.
    field: Option<&'a str>,
}

/// The rules of a schema that apply to a new object.
fn rules(schema: &Value) -> impl Iterator<Item = Rule<'_>> {
    let all = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    let rules = all.filter_map(|rule| {
        let text = rule["rule"].as_str()?;
        let (message, message_expression) = (rule["message"].as_str(), rule["messageExpression"].as_str());
        Some(Rule { text, message, message_expression, field: rule["fieldPath"].as_str() })
    });
    rules.filter(|rule| !rule.text.contains("oldSelf"))
}

fn compile(environment: &Env, schema: &Value, programs: &mut BTreeMap<String, Program>) -> Result<(), String> {
    for expression in rules(schema).flat_map(|rule| [Some(rule.text), rule.message_expression]).flatten() {
        if !programs.contains_key(expression) {
            let program = environment.compile(expression).map_err(|error| format!("the rule {expression}: {error}"))?;
            programs.insert(expression.to_owned(), program);
        }
    }
    let below = schema["properties"].as_object().into_iter().flat_map(|it| it.values());
    for schema in below.chain(schema.get("items")).chain(schema.get("additionalProperties")) {
        compile(environment, schema, programs)?;
    }
    Ok(())
}
