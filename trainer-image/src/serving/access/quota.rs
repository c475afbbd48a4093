//! Quotas: a number of things within a time, and what a client has used of it. Pure; the caller passes the time.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use crate::arguments;

/// The most that a quota may be, so that a window is bounded.
const MOST: u64 = 1_000_000_000_000;
/// The longest window in seconds: 31 days.
const LONGEST: i64 = 31 * 86_400;
/// Entries of a window, about. What is used at nearly the same time is one entry, which counts until the last of it is over.
const ENTRIES: u32 = 256;

/// At most this many within a time, written as `30/60s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    most: u64,
    window: Duration,
}

impl Quota {
    /// `/infer` requests of a key, if nothing else is said: 30 within 60 s.
    pub(super) const REQUESTS: Self = Self { most: 30, window: Duration::from_secs(60) };
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}s", self.most, self.window.as_secs())
    }
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = || "write a number, a slash and a time of at most 31 days, such as 30/60s or 1000000/1d".to_owned();
        let (most, window) = text.split_once('/').ok_or_else(right)?;
        let most = most.parse().ok().filter(|most| (1..=MOST).contains(most)).ok_or_else(right)?;
        let window = arguments::duration(window).map_err(|_| right())?.0.as_secs();
        let window = Some(window).filter(|window| (1..=LONGEST).contains(window)).ok_or_else(right)?;
        Ok(Self { most, window: Duration::from_secs(window.unsigned_abs()) })
    }
}

/// What was used within the window of a quota.
#[derive(Debug)]
pub(super) struct Used {
    quota: Quota,
    /// The oldest first.
    entries: VecDeque<Entry>,
    total: u64,
}

/// An amount that was used between two times.
#[derive(Debug)]
struct Entry {
    first: Instant,
    last: Instant,
    amount: u64,
}

impl Used {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, entries: VecDeque::new(), total: 0 }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// Changes the quota. What was used stays used.
    pub(super) fn set(&mut self, quota: Quota) {
        self.quota = quota;
    }

    /// Returns how long a client has to wait until something is left; `None` if there is.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        while let Some(Entry { last, amount, .. }) = self.entries.front()
            && now.saturating_duration_since(*last) >= self.quota.window
        {
            self.total -= amount;
            self.entries.pop_front();
        }
        let mut total = self.total;
        for Entry { last, amount, .. } in &self.entries {
            if total < self.quota.most {
                break;
            }
            total -= amount;
            if total < self.quota.most {
                return Some((*last + self.quota.window).saturating_duration_since(now));
            }
        }
        None
    }

    /// Records what was used now. It may be more than is left, because the length of a response is not known before.
    pub(super) fn spend(&mut self, now: Instant, amount: u64) {
        self.total += amount;
        let exact = self.quota.most <= u64::from(ENTRIES);
        match self.entries.back_mut() {
            // What is used within a 256th of the window counts together, so that entries are bounded.
            Some(entry) if !exact && now.saturating_duration_since(entry.first) < self.quota.window / ENTRIES => {
                entry.last = now;
                entry.amount += amount;
            }
            _ => self.entries.push_back(Entry { first: now, last: now, amount }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn quotas_are_read_and_shown() {
        assert_eq!("30/60s".parse(), Ok(Quota::REQUESTS));
        assert_eq!("5/1d".parse::<Quota>().unwrap().to_string(), "5/86400s");
        for text in ["", "30", "0/60s", "30/0s", "30/32d", "-1/60s", "30/60", "1.5/60s", "9999999999999/1s"] {
            assert!(text.parse::<Quota>().unwrap_err().contains("such as 30/60s"), "{text}");
        }
    }

    #[test]
    fn the_wait_is_until_the_oldest_request_is_no_longer_counted() {
        let begun = Instant::now();
        let mut used = Used::new(Quota::REQUESTS);
        for second in 0..30 {
            assert_eq!(used.wait(begun + seconds(second)), None);
            used.spend(begun + seconds(second), 1);
        }
        assert_eq!(used.wait(begun + seconds(30)), Some(seconds(30)));
        assert_eq!(used.wait(begun + seconds(59)), Some(seconds(1)));
        assert_eq!(used.wait(begun + seconds(60)), None);
        used.spend(begun + seconds(60), 1);
        assert_eq!(used.wait(begun + seconds(60)), Some(seconds(1)), "the second of them");
    }

    #[test]
    fn a_budget_waits_until_enough_of_it_is_back() {
        let begun = Instant::now();
        let mut used = Used::new("1000/100s".parse().unwrap());
        used.spend(begun, 400);
        used.spend(begun + seconds(10), 500);
        assert_eq!(used.wait(begun + seconds(10)), None);
        used.spend(begun + seconds(20), 600);
        // 1,500 were used: after the first 400 are back, 1,100 are left, so that the second ones count, too.
        assert_eq!(used.wait(begun + seconds(20)), Some(seconds(90)));
        assert_eq!(used.wait(begun + seconds(110)), None);
        used.set("100/100s".parse().unwrap());
        assert_eq!(used.wait(begun + seconds(110)), Some(seconds(10)), "a smaller quota holds for what was used");
    }

    proptest! {
        /// Whoever waits as told is admitted, and in no window more is admitted than the quota.
        #[test]
        fn the_quota_holds_and_the_wait_suffices(gaps in prop::collection::vec(0_u64..20, 1..200), most in 1_u64..20) {
            let quota: Quota = format!("{most}/60s").parse().unwrap();
            let mut used = Used::new(quota);
            let mut now = Instant::now();
            let mut admitted = Vec::new();
            for gap in gaps {
                now += seconds(gap);
                if let Some(wait) = used.wait(now) {
                    prop_assert!(wait > Duration::ZERO && wait <= quota.window);
                    prop_assert!(used.wait(now + wait.saturating_sub(Duration::from_nanos(1))).is_some());
                    now += wait;
                    prop_assert_eq!(used.wait(now), None);
                }
                used.spend(now, 1);
                admitted.push(now);
            }
            for at in &admitted {
                let within = admitted.iter().filter(|other| **other >= *at && **other < *at + quota.window).count();
                prop_assert!(within as u64 <= most);
            }
        }

        #[test]
        fn entries_are_bounded(amounts in prop::collection::vec(1_u64..50, 1..3000)) {
            let mut used = Used::new("100000000/60s".parse().unwrap());
            let mut now = Instant::now();
            for amount in amounts {
                now += Duration::from_millis(40);
                used.wait(now);
                used.spend(now, amount);
                prop_assert!(used.entries.len() <= ENTRIES as usize + 2);
                prop_assert_eq!(used.total, used.entries.iter().map(|entry| entry.amount).sum::<u64>());
            }
        }
    }
}
