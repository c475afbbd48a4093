//! Safety rules on what a prompt takes over as it is: tools, names, identifiers, and variables of the template. What a redaction left of
//! them would name something else, so that they are refused instead. Pure.

use minijinja::{Value as Any, value::ValueKind};

use super::error::ApiError;
use crate::{
    safety::Direction,
    serving::filter::{Check, Refusal},
};

/// Checks the text of a field.
///
/// # Errors
/// A rule blocks it or redacts a part of it, or it cannot be checked.
pub(super) fn text(check: Option<&Check>, place: &str, text: &str) -> Result<(), ApiError> {
    let Some(check) = check else { return Ok(()) };
    let refused = |told: &str| ApiError { code: Some("content_filter"), ..ApiError::field(place, told) };
    match check.text(text, Direction::Prompt) {
        Ok((left, _)) if left == text => Ok(()),
        Ok(_) => {
            check.refuse(Direction::Prompt);
            Err(refused("a safety rule redacts a part of it, and the rest would be something else: remove that part"))
        }
        Err(refusal @ Refusal::Blocked(_)) => Err(refused(&refusal.to_string())),
        Err(refusal @ Refusal::Unchecked(_)) => Err(refusal.into()),
    }
}

/// Checks the texts and numbers of a field, and the names in it, each alone.
///
/// # Errors
/// As [`text`], with the place of what is refused.
pub(super) fn value(check: Option<&Check>, place: &str, value: &Any) -> Result<(), ApiError> {
    if check.is_none() {
        return Ok(());
    }
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::String | ValueKind::Number => text(check, place, &value.to_string()),
        ValueKind::Seq => {
            items().enumerate().try_for_each(|(at, item)| self::value(check, &format!("{place}[{at}]"), &item))
        }
        ValueKind::Map => items().try_for_each(|name| {
            // Before it stands in the place of its value.
            self::value(check, place, &name)?;
            self::value(check, &format!("{place}.{name}"), &value.get_item(&name).unwrap_or_default())
        }),
        // The others are no text.
        _ => Ok(()),
    }
}
