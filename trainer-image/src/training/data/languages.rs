//! Selects records by language. Pure.

use codex_configs::DataSettings;
use whatlang::Lang;

use super::examples::Example;

/// Characters at the beginning of a record that its language is detected in.
const READ: usize = 4096;

/// Languages of the records that are trained on; none means all.
#[derive(Clone, Debug, Default)]
pub(super) struct Languages(Vec<Lang>);

impl Languages {
    /// Returns the languages of a configuration.
    pub(super) fn of(settings: &DataSettings) -> Self {
        // The rule of the key has refused other codes.
        Self(settings.languages.iter().filter_map(Lang::from_code).collect())
    }

    /// Returns whether a record is trained on: unless another language is detected reliably. Short texts and calculations have no
    /// language that can be detected.
    pub(super) fn keep(&self, example: &Example) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let texts = example.texts().into_iter().flat_map(|text| text.chars().chain(" ".chars()));
        let text: String = texts.take(READ).collect();
        whatlang::detect(&text).is_none_or(|found| !found.is_reliable() || self.0.contains(&found.lang()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_know_the_languages_of_the_library() {
        let mut known: Vec<&str> = Lang::all().iter().map(Lang::code).collect();
        known.sort_unstable();
        assert_eq!(codex_configs::LANGUAGES, known);
    }

    #[test]
    fn records_of_other_languages_are_left_out() {
        let text = |text: &str| Example::Text(text.to_owned());
        let english =
            text("The committee published its report on Tuesday, and most of its members agreed with what it says.");
        let german = text(
            "Der Ausschuss hat seinen Bericht am Dienstag veröffentlicht, und die meisten Mitglieder stimmten zu.",
        );
        let sum = text("347+86=433");
        let kept = |codes: &[Lang]| [&english, &german, &sum].map(|example| Languages(codes.to_vec()).keep(example));
        assert_eq!(kept(&[]), [true, true, true]);
        assert_eq!(kept(&[Lang::Eng]), [true, false, true]);
        assert_eq!(kept(&[Lang::Deu]), [false, true, true]);
        assert_eq!(kept(&[Lang::Eng, Lang::Deu]), [true, true, true]);
    }
}
