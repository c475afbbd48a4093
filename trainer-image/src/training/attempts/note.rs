//! The note of an attempt: one line of fixed width about its progress, its memory and its end. Pure.

use std::fmt;

use crate::training::resources::Bytes;

/// Phase of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Claiming the directory; takes no time.
    #[default]
    Starting,
    /// Reading data.
    Loading,
    /// Taking optimizer steps.
    Training,
    /// Writing the model.
    Exporting,
    /// Ended, whether it succeeded or not.
    Ended,
}

/// What an attempt recorded about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttemptNote {
    /// Steps that the attempt executed.
    pub(crate) steps: u64,
    /// Phase of the attempt.
    pub(crate) phase: Phase,
    /// The last step it began, counted from 1 over the whole run; 0 before the first.
    pub(crate) step: u64,
    /// Peak memory in bytes.
    pub(crate) peak: u64,
    /// Memory estimate in bytes; 0 before the estimate is made.
    pub(crate) estimate: u64,
    /// Memory limit in bytes; 0 without a limit.
    pub(crate) limit: u64,
    /// Out-of-memory kills that the kernel had counted in the control group when the attempt began.
    pub(crate) kills: u64,
}

const PHASES: [(Phase, &str); 5] = [
    (Phase::Starting, "starting"),
    (Phase::Loading, "loading"),
    (Phase::Training, "training"),
    (Phase::Exporting, "exporting"),
    (Phase::Ended, "ended"),
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(PHASES.iter().find(|(phase, _)| phase == self).map_or("", |(_, name)| name))
    }
}

impl fmt::Display for AttemptNote {
    /// Writes one line of fixed width, so that overwriting it never leaves digits of an older one behind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, phase, step, peak, estimate, limit, kills } = self;
        write!(f, "{steps:020} {phase:<10} {step:020} {peak:020} {estimate:020} {limit:020} {kills:020}")
    }
}

impl AttemptNote {
    /// Reads a line as far as it goes: an attempt that was killed between creating its file and writing to it did nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let steps = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let phase = words.next().and_then(|word| PHASES.iter().find(|(_, name)| *name == word));
        let phase = phase.map_or(Phase::Starting, |(phase, _)| *phase);
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Self { steps, phase, step: number(), peak: number(), estimate: number(), limit: number(), kills: number() }
    }

    /// Returns a notice about an attempt that ended without recording its end; `None` if it recorded it. `kills` is the
    /// control group's current count of out-of-memory kills.
    pub(crate) fn killed_notice(&self, epoch: u32, kills: u64) -> Option<String> {
        let Self { peak, estimate, limit, .. } = *self;
        let at = self.activity()?;
        let known = |what: &str, bytes: u64| if bytes > 0 { format!("{what}{}", Bytes(bytes)) } else { String::new() };
        let near = limit > 0 && peak.max(estimate) >= limit / 10 * 9;
        let cause = if kills > self.kills {
            ": the kernel reports an out-of-memory kill in this control group"
        } else if near {
            ": it probably exceeded its memory limit"
        } else {
            ""
        };
        Some(format!(
            "attempt {epoch} was killed {at} (memory peak {}{}{}){cause}",
            Bytes(peak),
            known(", estimate ", estimate),
            known(", limit ", limit),
        ))
    }

    /// Returns a notice about an attempt whose process still runs; `None` if it recorded its end.
    pub(crate) fn running_notice(&self, epoch: u32) -> Option<String> {
        let at = self.activity()?;
        Some(format!(
            "attempt {epoch} is still running: this attempt took over the output directory {at} of attempt {epoch}, which stops \
             at its next checkpoint; run one training per output directory"
        ))
    }

    /// Says where the attempt is or was; `None` after its end.
    fn activity(&self) -> Option<String> {
        match self.phase {
            Phase::Ended => None,
            Phase::Starting => Some("during start-up".to_owned()),
            Phase::Loading => Some("while reading data".to_owned()),
            Phase::Training => Some(format!("in step {}", self.step)),
            Phase::Exporting => Some("while writing the model".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_killed_attempt_is_described_with_its_memory() {
        let note = AttemptNote { phase: Phase::Loading, peak: (4 << 30) - 5, limit: 4 << 30, ..AttemptNote::default() };
        assert_eq!(
            note.killed_notice(2, 0).unwrap(),
            "attempt 2 was killed while reading data (memory peak 4.0 GiB, limit 4.0 GiB): it probably exceeded its memory limit"
        );
        assert!(
            note.killed_notice(2, 1)
                .unwrap()
                .ends_with(": the kernel reports an out-of-memory kill in this control group")
        );
        assert_eq!(AttemptNote { phase: Phase::Ended, ..note }.killed_notice(2, 1), None);
        assert_eq!(AttemptNote { phase: Phase::Ended, ..note }.running_notice(2), None);
    }

    proptest! {
        #[test]
        fn a_note_reads_back_and_no_line_panics(
            numbers: [u64; 6], phase in 0_usize..5, cut in any::<prop::sample::Index>(), text in "\\PC*",
        ) {
            let [steps, step, peak, estimate, limit, kills] = numbers;
            let note = AttemptNote { steps, phase: PHASES[phase].0, step, peak, estimate, limit, kills };
            let line = note.to_string();
            prop_assert_eq!(AttemptNote::parse(&line), note);
            prop_assert_eq!(line.len(), AttemptNote::default().to_string().len());
            prop_assert!(AttemptNote::parse(&line[..cut.index(line.len())]).steps <= steps);
            AttemptNote::parse(&text).killed_notice(1, 0);
        }
    }
}
