//! When the last request of a server ended. Pure.

use std::time::Duration;

/// How often the numbers of requests are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Seconds without a request after which a server calls itself idle, so that requests in a row are not reported one by one.
const QUIET: i64 = 5;

/// Follows the numbers of requests.
#[derive(Debug)]
pub(super) struct Activity {
    arrived: u64,
    /// Seconds since 1970 when a request was last seen.
    last: i64,
}

impl Activity {
    /// Begins at a time, in seconds since 1970, with so many requests that came before.
    pub(super) fn new(arrived: u64, now: i64) -> Self {
        Self { arrived, last: now }
    }

    /// Returns since when the server is idle, given the number of requests that came, and of those that run or wait; `None` while it is
    /// not.
    pub(super) fn idle_since(&mut self, arrived: u64, active: i64, now: i64) -> Option<i64> {
        if active > 0 || arrived != self.arrived {
            (self.arrived, self.last) = (arrived, now);
        }
        // The clock of the node may be set back.
        self.last = self.last.min(now);
        (now - self.last >= QUIET).then_some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::Activity;

    #[test]
    fn a_server_is_idle_since_its_last_request_once_it_was_quiet() {
        let mut activity = Activity::new(7, 100);
        assert_eq!([activity.idle_since(7, 0, 104), activity.idle_since(7, 0, 105)], [None, Some(100)]);
        assert_eq!(activity.idle_since(8, 1, 110), None, "a request runs");
        assert_eq!(activity.idle_since(8, 1, 190), None, "it still runs");
        assert_eq!([activity.idle_since(8, 0, 194), activity.idle_since(8, 0, 200)], [None, Some(190)]);
        assert_eq!(activity.idle_since(9, 0, 201), None, "a request came and ended between two looks");
        assert_eq!(activity.idle_since(9, 0, 206), Some(201));
        assert_eq!(activity.idle_since(9, 0, 150), None, "the clock was set back, and the time since is unknown");
        assert_eq!(activity.idle_since(9, 0, 155), Some(150));
    }
}
