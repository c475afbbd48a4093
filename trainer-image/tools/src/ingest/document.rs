//! A document: its bytes, its encoding and its text. Pure.

use chardetng::EncodingDetector;
use encoding_rs::{Encoding, UTF_8};

/// Bytes in which a document must not have a zero to be text.
const LOOKED_AT: usize = 8 << 10;

/// The encoding of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// That of the byte order mark, UTF-8 where it is valid, else what the letters look like.
    Auto,
    /// This one.
    Always(&'static Encoding),
}

/// Parses an encoding.
///
/// # Errors
/// The allowed values.
pub(super) fn encoding(text: &str) -> Result<Chosen, String> {
    if text == "auto" {
        return Ok(Chosen::Auto);
    }
    let found = Encoding::for_label_no_replacement(text.as_bytes());
    found.map(Chosen::Always).ok_or_else(|| {
        "write auto, or the label of an encoding as browsers know it, such as utf-8, windows-1252 or shift_jis"
            .to_owned()
    })
}

/// Why bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotText {
    /// They have zeros.
    Binary,
    /// They are invalid in the encoding that was chosen.
    Invalid(&'static str),
}

/// Decodes bytes, and returns the text and the name of the encoding. Line ends become line feeds; a byte order mark is dropped.
///
/// # Errors
/// They are no text.
pub(super) fn decode(bytes: &[u8], chosen: Chosen) -> Result<(String, &'static str), NotText> {
    let marked = Encoding::for_bom(bytes).map(|(encoding, length)| (encoding, &bytes[length..]));
    if marked.is_none() && bytes.iter().take(LOOKED_AT).any(|byte| *byte == 0) {
        // UTF-16 without a mark is not guessed.
        let wide = matches!(chosen, Chosen::Always(encoding) if encoding.name().starts_with("UTF-16"));
        if !wide {
            return Err(NotText::Binary);
        }
    }
    let (encoding, rest) = match (marked, chosen) {
        (Some(marked), _) => marked,
        (None, Chosen::Always(encoding)) => (encoding, bytes),
        (None, Chosen::Auto) => (guessed(bytes), bytes),
    };
    let text = encoding.decode_without_bom_handling_and_without_replacement(rest);
    let text = text.ok_or(NotText::Invalid(encoding.name()))?;
    Ok((text.replace("\r\n", "\n").replace('\r', "\n"), encoding.name()))
}

/// Returns UTF-8 if bytes are valid in it, else what they look like.
fn guessed(bytes: &[u8]) -> &'static Encoding {
    if std::str::from_utf8(bytes).is_ok() {
        return UTF_8;
    }
    let mut detector = EncodingDetector::new(chardetng::Iso2022JpDetection::Deny);
    detector.feed(bytes, true);
    detector.guess(None, chardetng::Utf8Detection::Deny)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_recognized() {
        let auto = |bytes: &[u8]| decode(bytes, Chosen::Auto);
        assert_eq!(auto("Größe\r\nzwei\r".as_bytes()), Ok(("Größe\nzwei\n".to_owned(), "UTF-8")));
        assert_eq!(auto(b"\xef\xbb\xbfa"), Ok(("a".to_owned(), "UTF-8")));
        assert_eq!(auto(b"\xff\xfea\0\xfc\0"), Ok(("aü".to_owned(), "UTF-16LE")));
        let (german, _, _) = encoding_rs::WINDOWS_1252.encode("Die Größe der Straße ist schön und übel für Käufer.");
        assert_eq!(
            auto(&german).unwrap(),
            ("Die Größe der Straße ist schön und übel für Käufer.".to_owned(), "windows-1252")
        );
        let (japanese, _, _) = encoding_rs::SHIFT_JIS.encode("これは日本語の文章です。漢字とかなが混ざっています。");
        assert_eq!(auto(&japanese).unwrap().1, "Shift_JIS");
        let (russian, _, _) = encoding_rs::WINDOWS_1251.encode("Это обычный русский текст, написанный для проверки.");
        assert_eq!(auto(&russian).unwrap().1, "windows-1251");
        assert_eq!(auto(b"PK\x03\x04\0\0"), Err(NotText::Binary));
    }

    #[test]
    fn a_chosen_encoding_is_kept_to() {
        let latin = encoding("latin1").unwrap();
        assert_eq!(decode(b"\xe9", latin), Ok(("é".to_owned(), "windows-1252")));
        assert_eq!(decode(b"\xe9", encoding("utf-8").unwrap()), Err(NotText::Invalid("UTF-8")));
        assert_eq!(decode(b"a\0", encoding("utf-16le").unwrap()), Ok(("a".to_owned(), "UTF-16LE")));
        assert!(encoding("klingon").unwrap_err().contains("such as utf-8"));
    }
}
