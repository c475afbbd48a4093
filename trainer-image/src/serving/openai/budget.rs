//! What a request says about reasoning: whether the model reasons, and how many tokens it may reason. Pure.

use serde_json::Value;

use super::error::ApiError;

/// The names that the budget has: those of vLLM, of Qwen's API, of `SGLang` and of `OpenRouter`.
const FIELDS: [&str; 4] =
    ["thinking_token_budget", "thinking_budget", "custom_params.thinking_budget", "reasoning.max_tokens"];
/// The names of the switch that templates know as `enable_thinking`: those of Qwen's API and of `OpenRouter`.
const SWITCHES: [&str; 2] = ["enable_thinking", "reasoning.enabled"];
/// The value that asks for no budget.
const NO_LIMIT: i64 = -1;

/// How many tokens a request grants to reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// The field that says so.
    pub(super) field: &'static str,
    /// `None` is any number.
    pub(super) tokens: Option<usize>,
}

/// Reads the budget.
///
/// # Errors
/// A value is no number of tokens, or two fields contradict each other.
pub(super) fn of(body: &Value) -> Result<Option<Budget>, ApiError> {
    one(body, &FIELDS, |value| match (value.as_u64(), value.as_i64()) {
        (Some(tokens), _) => Ok(Some(usize::try_from(tokens).unwrap_or(usize::MAX))),
        (None, Some(NO_LIMIT)) => Ok(None),
        _ => Err("send a whole number of tokens, or -1 for no limit"),
    })
    .map(|found| found.map(|(field, tokens)| Budget { field, tokens }))
}

/// Reads whether the model reasons, which its chat template decides.
///
/// # Errors
/// A value is neither true nor false, or two fields contradict each other.
pub(super) fn enabled(body: &Value) -> Result<Option<bool>, ApiError> {
    let switch = |value: &Value| value.as_bool().ok_or("send true or false");
    Ok(one(body, &SWITCHES, switch)?.map(|(_, enabled)| enabled))
}

/// Reads a setting with several names; the dots in a name lead into objects.
fn one<T: PartialEq>(
    body: &Value,
    fields: &[&'static str],
    read: impl Fn(&Value) -> Result<T, &'static str>,
) -> Result<Option<(&'static str, T)>, ApiError> {
    let mut found: Option<(&'static str, T)> = None;
    for field in fields {
        let value = body.pointer(&format!("/{}", field.replace('.', "/")));
        let Some(value) = value.filter(|value| !value.is_null()) else { continue };
        let read = read(value).map_err(|right| ApiError::field(field, format!("{value}: {right}")))?;
        match &found {
            Some((first, other)) if *other != read => {
                return Err(ApiError::field(field, format!("{value}: {first} says otherwise: send one of them")));
            }
            Some(_) => {}
            None => found = Some((field, read)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn budgets_have_the_names_of_other_servers() {
        for (body, expected) in [
            (json!({ "thinking_token_budget": 5 }), Some(("thinking_token_budget", Some(5)))),
            (json!({ "thinking_budget": 0 }), Some(("thinking_budget", Some(0)))),
            (json!({ "custom_params": { "thinking_budget": 7 } }), Some(("custom_params.thinking_budget", Some(7)))),
            (json!({ "reasoning": { "max_tokens": 9, "effort": "high" } }), Some(("reasoning.max_tokens", Some(9)))),
            (json!({ "thinking_token_budget": -1 }), Some(("thinking_token_budget", None))),
            (json!({ "thinking_token_budget": 5, "thinking_budget": 5 }), Some(("thinking_token_budget", Some(5)))),
            (json!({ "thinking_budget": null, "reasoning": "high", "custom_params": null }), None),
        ] {
            assert_eq!(of(&body).unwrap().map(|it| (it.field, it.tokens)), expected, "{body}");
        }
        assert_eq!(enabled(&json!({ "enable_thinking": false })).unwrap(), Some(false));
        assert_eq!(enabled(&json!({ "reasoning": { "enabled": true } })).unwrap(), Some(true));
        assert_eq!(enabled(&json!({ "reasoning": {} })).unwrap(), None);
    }

    #[test]
    fn refusals_name_the_field_and_the_value() {
        for (body, told) in [
            (json!({ "thinking_token_budget": -2 }), "thinking_token_budget: -2: send a whole number of tokens, or -1"),
            (json!({ "thinking_budget": "8" }), "thinking_budget: \"8\": send a whole number"),
            (json!({ "reasoning": { "max_tokens": 1.5 } }), "reasoning.max_tokens: 1.5: send a whole number"),
            (
                json!({ "thinking_token_budget": 5, "thinking_budget": 6 }),
                "thinking_budget: 6: thinking_token_budget says otherwise: send one of them",
            ),
        ] {
            let refused = of(&body).unwrap_err();
            assert!(refused.message.starts_with(told), "{}", refused.message);
            assert!(refused.param.is_some_and(|param| told.starts_with(&param)));
        }
        for (body, told) in [
            (json!({ "enable_thinking": "no" }), "enable_thinking: \"no\": send true or false"),
            (
                json!({ "enable_thinking": true, "reasoning": { "enabled": false } }),
                "reasoning.enabled: false: enable_thinking says otherwise",
            ),
        ] {
            let refused = enabled(&body).unwrap_err();
            assert!(refused.message.starts_with(told), "{}", refused.message);
        }
    }
}
