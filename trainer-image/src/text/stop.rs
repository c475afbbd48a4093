//! Texts that end a response, in a stream of text. Pure.

/// Cuts a stream before the first of some texts.
#[derive(Debug)]
pub struct Stops<'a> {
    texts: &'a [String],
    /// Text that was not returned, because it may begin one of the texts.
    held: String,
    reached: bool,
}

impl<'a> Stops<'a> {
    /// Looks for these texts, none of which is empty.
    pub fn new(texts: &'a [String]) -> Self {
        Self { texts, held: String::new(), reached: false }
    }

    /// Takes the next piece of text and returns what certainly comes before the first of the texts.
    pub fn push(&mut self, piece: &str) -> String {
        if self.reached {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min();
        if let Some(at) = found {
            self.reached = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |at: usize| self.texts.iter().any(|text| text.starts_with(&self.held[at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(|at| begins(*at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns whether one of the texts was found.
    pub fn reached(&self) -> bool {
        self.reached
    }

    /// Returns what was held back at the end of the stream.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The pieces are the text up to the first of the texts, however it is cut.
        #[test]
        fn text_ends_before_the_first_of_them(
            pieces in prop::collection::vec("[ab\u{e9}]{0,3}", 0..12), texts in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3),
        ) {
            let mut stops = Stops::new(&texts);
            let mut said = String::new();
            for piece in &pieces {
                said.push_str(&stops.push(piece));
            }
            let whole = pieces.concat();
            // The first that is complete wins, which is the one that ends first.
            let first = texts.iter().filter_map(|text| whole.find(text.as_str())).min();
            let reached = stops.reached();
            prop_assert_eq!(reached, first.is_some());
            if reached {
                prop_assert!(whole.starts_with(&said));
                let end = texts.iter().filter_map(|text| whole.find(text.as_str()).map(|at| at + text.len())).min();
                prop_assert!(said.len() <= end.unwrap());
                prop_assert!(texts.iter().any(|text| whole[said.len()..].starts_with(text.as_str())));
            } else {
                said.push_str(&stops.finish());
                prop_assert_eq!(said, whole);
            }
        }
    }
}
