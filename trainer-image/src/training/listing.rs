//! Lists in messages: a few items and the number of the others. Pure.

/// Number of items that a message lists.
const SHOWN: usize = 8;

/// Joins the first few items; of a longer list the number of the others follows.
pub(crate) fn some_of(items: &[impl AsRef<str>], separator: &str) -> String {
    let mut text = items.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(separator);
    if items.len() > SHOWN {
        text = format!("{text}{separator}and {} more", items.len() - SHOWN);
    }
    text
}

/// Joins the first few tensor names, parameters before moments and other state.
pub(crate) fn some_tensors(names: &[String]) -> String {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort_by_key(|name| !name.starts_with("parameters/"));
    some_of(&names, ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (1..=10).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&names[..2], ", "), "1, 2");
        assert_eq!(some_of(&names, ", "), "1, 2, 3, 4, 5, 6, 7, 8, and 2 more");
    }

    #[test]
    fn parameters_are_listed_first() {
        let names = ["first/a", "parameters/a"].map(str::to_owned);
        assert_eq!(some_tensors(&names), "parameters/a, first/a");
    }
}
