//! Text for people: text from outside made safe to print, and counts with their nouns. Pure.

use std::fmt::{self, Write as _};

/// Shows a text with its control characters, line breaks and invisible characters escaped, so that it can neither start
/// another line nor direct a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                // `escape_debug` escapes them, too, and they are harmless.
                '"' | '\'' | '\\' => f.write_char(letter)?,
                _ => write!(f, "{}", letter.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// Returns a count with its noun: `1 row`, `2 rows`.
pub fn counted<N: Copy + fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let s = if count == N::from(1_u8) { "" } else { "s" };
    format!("{count} {noun}{s}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Printable, counted};

    #[test]
    fn one_is_singular() {
        assert_eq!([0_u64, 1, 2].map(|count| counted(count, "row")), ["0 rows", "1 row", "2 rows"]);
    }

    #[test]
    fn only_what_directs_a_terminal_is_escaped() {
        for plain in ["größe.txt", "it's \"a\" \\ b", "日本 – ½ 🙂", ""] {
            assert_eq!(Printable(plain).to_string(), plain);
        }
        assert_eq!(Printable("a\nb\r\t").to_string(), "a\\nb\\r\\t");
        assert_eq!(Printable("\u{1b}[2K\u{9b}0m\u{7f}").to_string(), "\\u{1b}[2K\\u{9b}0m\\u{7f}");
        // Two forms of the same letter.
        assert_ne!(Printable("caf\u{e9}").to_string(), Printable("cafe\u{301}").to_string());
        assert_eq!(Printable("cafe\u{301}").to_string(), "cafe\\u{301}");
        // Right-to-left override, line separator, zero-width space.
        assert_eq!(Printable("\u{202e}\u{2028}\u{200b}").to_string(), "\\u{202e}\\u{2028}\\u{200b}");
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text: String) {
            prop_assert!(!Printable(&text).to_string().chars().any(char::is_control));
        }
    }
}
