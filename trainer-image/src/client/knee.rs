//! The search of `codex bench-serve --knee` for the highest rate that a server holds. Pure.

use serde::Serialize;

use super::bench::Row;

/// The search ends when the lowest rate that broke is at most this much above the highest one that held.
const CLOSE: f64 = 1.1;

/// What a rate must keep to, to hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Limits {
    /// The most seconds of the 95th percentile of the time to the first token.
    pub(super) first_token: f64,
    /// The largest share of requests that are refused or fail, from 0 to 1.
    pub(super) refused: f64,
}

impl Limits {
    /// Returns why a rate does not hold; `None` if it does.
    pub(super) fn broken(&self, row: &Row) -> Option<String> {
        let lost = (row.refused + row.failed) as f64 / row.sent.max(1) as f64;
        if lost > self.refused {
            return Some(format!("{:.1} % of the requests were refused or failed", lost * 100.0));
        }
        match row.first_token {
            None => Some("no request was answered".to_owned()),
            Some(it) if it.p95 > self.first_token => {
                Some(format!("the first token came after {:.0} ms (p95)", it.p95 * 1000.0))
            }
            Some(_) => None,
        }
    }
}

/// The rates that were tried. It doubles a rate that holds and halves one that does not, until both kinds are known, and then tries
/// the geometric mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Search {
    /// The highest rate that held.
    pub(super) holds: Option<f64>,
    /// The lowest rate that did not.
    pub(super) breaks: Option<f64>,
    #[serde(skip)]
    first: f64,
}

impl Search {
    /// Begins with a rate.
    pub(super) fn new(first: f64) -> Self {
        Self { holds: None, breaks: None, first }
    }

    /// Returns the rate to try next; `None` once the knee is known.
    pub(super) fn next(&self) -> Option<f64> {
        match (self.holds, self.breaks) {
            (None, None) => Some(self.first),
            (Some(holds), None) => Some(holds * 2.0),
            (None, Some(breaks)) => Some(breaks / 2.0),
            (Some(holds), Some(breaks)) => (breaks / holds > CLOSE).then(|| short((holds * breaks).sqrt())),
        }
    }

    /// Takes the result of the rate that was tried.
    pub(super) fn tried(&mut self, rate: f64, held: bool) {
        *(if held { &mut self.holds } else { &mut self.breaks }) = Some(rate);
    }

    /// Returns the result for people; `why` says why the lowest rate broke.
    pub(super) fn sentence(&self, why: &str) -> String {
        match (self.holds, self.breaks) {
            (Some(holds), Some(breaks)) => {
                let rest = if self.next().is_none() {
                    ""
                } else {
                    " The knee is between them: raise --max-rates or --max-seconds."
                };
                format!("The highest rate that holds: {holds} requests/s. At {breaks}, {why}.{rest}")
            }
            (Some(holds), None) => {
                format!(
                    "{holds} requests/s hold, the highest rate that was tried: raise --max-rates, --max-seconds or --rate."
                )
            }
            (None, Some(breaks)) => format!("No rate that was tried holds. At {breaks} requests/s, {why}."),
            (None, None) => "No rate was tried: raise --max-seconds.".to_owned(),
        }
    }
}

/// Rounds to three digits, which people can read.
fn short(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rates that a search tries at a server that holds up to a capacity.
    fn rates(first: f64, capacity: f64) -> (Vec<f64>, Search) {
        let mut search = Search::new(first);
        let mut rates = Vec::new();
        while let Some(rate) = search.next() {
            search.tried(rate, rate <= capacity);
            rates.push(rate);
            assert!(rates.len() < 40, "{rates:?}");
        }
        (rates, search)
    }

    #[test]
    fn the_search_doubles_and_bisects() {
        let (tried, search) = rates(1.0, 5.0);
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 5.66, 4.76, 5.19]);
        assert_eq!((search.holds, search.breaks), (Some(4.76), Some(5.19)));
    }

    #[test]
    fn the_search_ends_close_below_the_capacity_from_any_rate() {
        for first in [0.1, 1.0, 3.0, 500.0] {
            for capacity in [0.07, 0.9, 12.34, 777.0] {
                let (_, search) = rates(first, capacity);
                let (holds, breaks) = (search.holds.unwrap(), search.breaks.unwrap());
                assert!(holds <= capacity && capacity < breaks && breaks / holds <= CLOSE, "{first} {capacity}");
            }
        }
    }
}
