//! Changed versions of prompts. Pure.
//!
//! Only what users write is changed, and only words of letters: nothing with a digit or another sign in it, nothing in a block of code or
//! between dollar signs. Words that are also in a response keep their letters, because an answer may repeat them.

use std::collections::HashSet;

use codex_configs::{AugmentationKind, AugmentationSettings};
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use sha2::Digest as _;

use super::{examples::Example, preferences::Preference};
use crate::text::Role;

/// Words that can be left out without another meaning.
const FILLERS: &[&str] = &["the", "an", "please", "kindly", "just", "very", "really", "also", "quite", "simply"];
/// The rows of a keyboard (QWERTY). Neighbours are beside each other in a row, or one above the other.
const KEYS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];
/// Signs that begin a word.
const BEFORE: &[char] = &['"', '\'', '('];
/// Signs that end a word.
const AFTER: &[char] = &['.', ',', ';', '!', '?', ':', '"', '\'', ')'];
/// The fewest letters of a word whose case is changed.
const LEAST_CASE: usize = 3;
/// The fewest letters of a word that gets a typing error.
const LEAST_TYPO: usize = 4;

/// Changes the prompts of records. The same settings, seed, data, record and version give the same prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Augmenter<'a> {
    pub(super) settings: &'a AugmentationSettings,
    /// Seed of the run.
    pub(super) seed: u64,
    /// Number of the version, from 1.
    pub(super) variant: u32,
}

/// A word between white space: signs before it, letters, signs after it.
struct Word<'a> {
    before: &'a str,
    letters: &'a str,
    after: &'a str,
}

impl<'a> Word<'a> {
    /// Returns the parts of a word of letters; `None` for other words.
    fn of(text: &'a str) -> Option<Self> {
        let inner = text.trim_start_matches(BEFORE);
        let letters = inner.trim_end_matches(AFTER);
        let is_plain = !letters.is_empty() && letters.chars().all(|c| c.is_ascii_alphabetic());
        is_plain.then(|| Self { before: &text[..text.len() - inner.len()], letters, after: &inner[letters.len()..] })
    }
}

impl Augmenter<'_> {
    /// Returns a record of the data `name` with changed prompts; `None` if nothing of it is changed. Records are numbered from 0.
    pub(super) fn apply(&self, name: &str, number: u32, example: &Example) -> Option<Example> {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex augmentation 1\0");
        hasher.update(self.seed.to_le_bytes());
        hasher.update(self.variant.to_le_bytes());
        hasher.update(number.to_le_bytes());
        hasher.update(name);
        let mut draws = Draws(ChaCha20Rng::from_seed(hasher.finalize().into()));
        let mut changed = example.clone();
        match &mut changed {
            Example::Pair { prompt, response } => {
                let kept = words([response.as_str()]);
                *prompt = self.text(prompt, &kept, &mut draws);
            }
            Example::Chat(messages) => {
                let others = messages.iter().filter(|message| message.role != Role::User);
                let kept = words(others.map(|message| message.content.as_str()));
                for message in messages.iter_mut().filter(|message| message.role == Role::User) {
                    message.content = self.text(&message.content, &kept, &mut draws);
                }
            }
            Example::Text(_) | Example::Preference(Preference::Texts { .. } | Preference::Chat { .. }) => return None,
        }
        (changed != *example).then_some(changed)
    }

    /// Returns a changed text. Words of `kept` keep their letters.
    fn text(&self, text: &str, kept: &HashSet<String>, draws: &mut Draws) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let (mut is_code, mut is_formula) = (false, false);
        let mut rest = text;
        while !rest.is_empty() {
            let start = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let (token, following) = rest.split_at(end);
            rest = following;
            let was_plain = !is_code && !is_formula;
            is_code ^= token.matches("```").count() % 2 == 1;
            is_formula ^= token.matches('$').count() % 2 == 1;
            let word = Word::of(token).filter(|_| was_plain);
            let Some(word) = word.filter(|_| draws.holds(self.settings.rate)) else {
                out.push_str(token);
                continue;
            };
            let (changed, space) = self.word(&word, rest, kept.contains(&word.letters.to_ascii_lowercase()), draws);
            out.push_str(&changed);
            match space {
                Space::Kept => {}
                Space::Doubled => out.push(' '),
                Space::Dropped => rest = &rest[1..],
            }
        }
        out
    }

    /// Returns the changed word, and what becomes of the space after it. `rest` is the text after it.
    fn word(&self, word: &Word, rest: &str, is_kept: bool, draws: &mut Draws) -> (String, Space) {
        let Word { before, letters, after } = *word;
        // One space, and another word after it.
        let has_space = rest.starts_with(' ') && rest[1..].starts_with(|c: char| !c.is_whitespace());
        let applies = |kind: AugmentationKind| match kind {
            AugmentationKind::Case => letters.len() >= LEAST_CASE && !is_kept,
            AugmentationKind::Whitespace => has_space,
            AugmentationKind::Punctuation => ["", ".", ",", ";", "!", "?"].contains(&after) && before.is_empty(),
            AugmentationKind::Typos => letters.len() >= LEAST_TYPO && !is_kept,
            AugmentationKind::Dropout => {
                let is_filler = FILLERS.contains(&letters.to_ascii_lowercase().as_str());
                is_filler && has_space && before.is_empty() && after.is_empty() && !is_kept
            }
        };
        let kinds: Vec<AugmentationKind> = self.settings.kinds.iter().copied().filter(|it| applies(*it)).collect();
        let whole = |letters: &str| format!("{before}{letters}{after}");
        let Some(kind) = draws.one_of(&kinds) else { return (whole(letters), Space::Kept) };
        match kind {
            AugmentationKind::Case => {
                let capital = format!("{}{}", letters[..1].to_ascii_uppercase(), letters[1..].to_ascii_lowercase());
                let mut forms = vec![letters.to_ascii_lowercase(), letters.to_ascii_uppercase(), capital];
                forms.retain(|form| form != letters);
                let form = draws.below(forms.len());
                (whole(&forms[form]), Space::Kept)
            }
            AugmentationKind::Whitespace => (whole(letters), Space::Doubled),
            AugmentationKind::Punctuation => {
                let sign = match (after, draws.below(2)) {
                    ("", _) => ",".to_owned(),
                    ("?", _) | (_, 0) => after.repeat(2),
                    _ => String::new(),
                };
                (format!("{letters}{sign}"), Space::Kept)
            }
            AugmentationKind::Typos => (whole(&typo(letters, draws)), Space::Kept),
            AugmentationKind::Dropout => (String::new(), Space::Dropped),
        }
    }
}

/// What becomes of the space after a word.
enum Space {
    Kept,
    Doubled,
    Dropped,
}

/// Returns a word with a typing error after its first letter.
fn typo(letters: &str, draws: &mut Draws) -> String {
    let mut bytes = letters.as_bytes().to_vec();
    let at = 1 + draws.below(bytes.len() - 2);
    match draws.below(4) {
        0 if bytes[at] != bytes[at + 1] => bytes.swap(at, at + 1),
        0 | 1 => {
            let near = neighbours(bytes[at]);
            if let Some(key) = draws.one_of(&near) {
                bytes[at] = if bytes[at].is_ascii_uppercase() { key.to_ascii_uppercase() } else { key };
            }
        }
        2 => drop(bytes.remove(at)),
        _ => bytes.insert(at, bytes[at]),
    }
    bytes.into_iter().map(char::from).collect()
}

/// Returns the keys beside a letter, in lower case.
fn neighbours(letter: u8) -> Vec<u8> {
    let letter = letter.to_ascii_lowercase();
    let place = |row: &str| row.bytes().position(|key| key == letter);
    let Some((row, column)) = KEYS.iter().enumerate().find_map(|(at, row)| Some((at, place(row)?))) else {
        return Vec::new();
    };
    let key = |row: Option<usize>, column: Option<usize>| KEYS.get(row?)?.as_bytes().get(column?).copied();
    let beside = [key(Some(row), column.checked_sub(1)), key(Some(row), Some(column + 1))];
    let above = [key(row.checked_sub(1), Some(column)), key(Some(row + 1), Some(column))];
    beside.into_iter().chain(above).flatten().collect()
}

/// Returns the words of texts in lower case.
fn words<'a>(texts: impl IntoIterator<Item = &'a str>) -> HashSet<String> {
    let each = texts.into_iter().flat_map(|text| text.split(|c: char| !c.is_alphabetic()));
    each.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Random choices.
struct Draws(ChaCha20Rng);

impl Draws {
    /// Returns a number below `count`.
    fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count.max(1) as u64) as usize
    }

    fn holds(&mut self, probability: f64) -> bool {
        unit(self.0.next_u64()) < probability
    }

    fn one_of<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        if items.is_empty() { None } else { Some(items[self.below(items.len())]) }
    }
}

/// Returns a random number as one from 0 to 1, without 1.
pub(super) fn unit(number: u64) -> f64 {
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::Message;

    const ALL: [AugmentationKind; 5] = [
        AugmentationKind::Case,
        AugmentationKind::Whitespace,
        AugmentationKind::Punctuation,
        AugmentationKind::Typos,
        AugmentationKind::Dropout,
    ];

    fn settings(kinds: &[AugmentationKind]) -> AugmentationSettings {
        AugmentationSettings { probability: 1.0, rate: 1.0, variants: 1, kinds: kinds.to_vec() }
    }

    fn prompt(kinds: &[AugmentationKind], number: u32, prompt: &str, response: &str) -> String {
        let (settings, prompt, response) = (settings(kinds), prompt.to_owned(), response.to_owned());
        let example = Example::Pair { prompt: prompt.clone(), response: response.clone() };
        match (Augmenter { settings: &settings, seed: 7, variant: 1 }).apply("a", number, &example) {
            Some(Example::Pair { prompt, response: after }) => {
                assert_eq!(after, response, "answers stay as they are");
                prompt
            }
            None => prompt,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_changes_what_it_says() {
        let all = |kind, text: &str| -> HashSet<String> {
            (0..512).map(|number| prompt(&[kind], number, text, "1")).collect()
        };
        let set = |texts: &[&str]| -> HashSet<String> { texts.iter().map(|text| (*text).to_owned()).collect() };
        assert_eq!(all(AugmentationKind::Case, "Add it"), set(&["add it", "ADD it"]));
        assert_eq!(all(AugmentationKind::Whitespace, "add  two to"), set(&["add  two  to"]));
        assert_eq!(all(AugmentationKind::Punctuation, "is it?"), set(&["is, it??"]));
        assert_eq!(all(AugmentationKind::Punctuation, "Go. 3"), set(&["Go.. 3", "Go 3"]));
        assert_eq!(all(AugmentationKind::Dropout, "Please add the numbers, please."), set(&["add numbers, please."]));
        let typos = all(AugmentationKind::Typos, "what");
        for typo in ["waht", "whta", "wat", "wht", "whaat", "wyat"] {
            assert!(typos.contains(typo), "{typo}: {typos:?}");
        }
        assert!(typos.iter().all(|word| word.starts_with('w') && (3..=5).contains(&word.len())), "{typos:?}");
        assert_eq!(neighbours(b'A'), b"sqz");
        assert_eq!(neighbours(b'g'), b"fhtb");
    }

    #[test]
    fn what_an_answer_may_depend_on_stays() {
        for text in ["347+86:", "3.50 4 <tool_call> foo_bar x1 a-b http://host/path ```", "Ünïcödé ёлка 你好", "", "  "]
        {
            for number in 0..32 {
                assert_eq!(prompt(&ALL, number, text, "1"), text);
            }
        }
        let code = "Explain\n```python\nfor name in names: print name\n``` simply now";
        for number in 0..64 {
            let changed = prompt(&ALL, number, code, "a loop");
            assert!(changed.contains("\n```python\nfor name in names: print name\n```"), "{changed}");
            let formula = prompt(&ALL, number, "where $speed times time$ holds", "1");
            assert!(formula.contains("$speed times time$"), "{formula}");
            let named = prompt(
                &[AugmentationKind::Case, AugmentationKind::Typos],
                number,
                "Does Thomas own the house",
                "Thomas",
            );
            assert!(named.contains("Thomas"), "{named}");
        }
    }

    #[test]
    fn users_are_changed_and_nobody_else() {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let chat = Example::Chat(vec![
            message(Role::System, "Answer every question briefly"),
            message(Role::User, "Which colour does grass have"),
            message(Role::Assistant, "Green"),
            message(Role::User, "And which does water have"),
        ]);
        let settings = settings(&ALL);
        let augmenter = Augmenter { settings: &settings, seed: 1, variant: 2 };
        let Some(Example::Chat(changed)) = augmenter.apply("a", 3, &chat) else { panic!("a conversation") };
        let Example::Chat(messages) = &chat else { panic!("a conversation") };
        assert!(changed[0] == messages[0] && changed[2] == messages[2]);
        assert!(changed[1] != messages[1] && changed[3] != messages[3]);
        assert_eq!(augmenter.apply("a", 3, &chat), Some(Example::Chat(changed.clone())), "the same again");
        for other in [
            Augmenter { seed: 2, ..augmenter }.apply("a", 3, &chat),
            Augmenter { variant: 3, ..augmenter }.apply("a", 3, &chat),
            augmenter.apply("b", 3, &chat),
            augmenter.apply("a", 4, &chat),
        ] {
            assert_ne!(other, Some(Example::Chat(changed.clone())));
        }
        assert_eq!(augmenter.apply("a", 3, &Example::Text("Which colour does grass have".to_owned())), None);
    }

    #[test]
    fn the_rate_is_the_share_of_changed_words() {
        let settings = AugmentationSettings { rate: 0.2, ..settings(&[AugmentationKind::Typos]) };
        let text = "measure ".repeat(2000);
        let changed = Augmenter { settings: &settings, seed: 3, variant: 1 }.apply(
            "a",
            0,
            &Example::Pair { prompt: text.clone(), response: "1".to_owned() },
        );
        let Some(Example::Pair { prompt, .. }) = changed else { panic!("changed") };
        let count = prompt.split(' ').filter(|word| !word.is_empty() && *word != "measure").count();
        assert!((320..480).contains(&count), "{count}");
    }

    proptest! {
        /// Whatever stands there, words that are not of letters stay, in their order, and so do digits.
        #[test]
        fn other_words_stay(text in "([a-zA-Z]{1,9}|[0-9+*=.]{1,5}|<[a-z]{2,5}>|\\p{L}{1,4})( {1,2}([a-zA-Z]{1,9}[.,!?]?|[0-9+*=.]{1,5}|<[a-z]{2,5}>)){0,12}", number in any::<u32>()) {
            let changed = prompt(&ALL, number, &text, "1");
            let others = |text: &str| -> Vec<String> {
                text.split_whitespace().filter(|it| it.contains(|c: char| !c.is_ascii_alphabetic() && !AFTER.contains(&c))).map(str::to_owned).collect()
            };
            prop_assert_eq!(others(&text), others(&changed));
            let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
            prop_assert_eq!(digits(&text), digits(&changed));
        }
    }
}
