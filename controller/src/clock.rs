//! The clock of reconciliations. Tests replace it, so that the time of a simulated cluster passes without waiting.

use jiff::Timestamp;

/// The source of the current time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The clock of the machine.
    #[default]
    System,
    /// The paused clock of a test's runtime.
    #[cfg(test)]
    Simulated(Simulated),
}

impl Clock {
    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            #[cfg(test)]
            Self::Simulated(simulated) => simulated.now(),
        }
    }
}

/// A clock that follows the monotonic clock of the runtime.
#[cfg(test)]
#[derive(Clone, Debug)]
pub struct Simulated {
    /// The time at the instant `since`.
    start: Timestamp,
    since: tokio::time::Instant,
    /// Seconds that the clock is ahead.
    ahead: std::sync::Arc<std::sync::atomic::AtomicI64>,
}

#[cfg(test)]
impl Simulated {
    /// Returns a clock that shows `start` now.
    pub(crate) fn starting_at(start: Timestamp) -> Self {
        Self { start, since: tokio::time::Instant::now(), ahead: std::sync::Arc::default() }
    }

    /// Returns the same clock with an error of its own.
    pub(crate) fn separate(&self) -> Self {
        Self { ahead: std::sync::Arc::default(), ..self.clone() }
    }

    /// Sets how many seconds the clock is ahead.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.ahead.store(seconds, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.since.elapsed().as_micros()).unwrap_or(i64::MAX);
        let ahead = self.ahead.load(std::sync::atomic::Ordering::Relaxed) * 1_000_000;
        Timestamp::from_microsecond(self.start.as_microsecond() + passed + ahead).unwrap_or(self.start)
    }
}
