//! Truncation of text to the limits of the API.

/// Returns `text`, cut to at most `max` characters. A cut text ends with `…`.
pub fn truncate_chars(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// Returns `text`, cut to at most `max` bytes. A cut text ends with `…`.
pub fn truncate_bytes(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max.saturating_sub('…'.len_utf8()))])
}

#[cfg(test)]
mod tests {
    use super::{truncate_bytes, truncate_chars};

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!((truncate_bytes("short", 5), truncate_chars("short", 5)), ("short".to_owned(), "short".to_owned()));
        let text = "ä".repeat(600);
        assert_eq!(truncate_bytes(&text, 1024), format!("{}…", "ä".repeat(510)));
        assert_eq!(truncate_chars(&text, 100), format!("{}…", "ä".repeat(99)));
    }
}
