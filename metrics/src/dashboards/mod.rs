//! The four dashboards: operator, runs, rings and gates, serving.

mod operator;
mod rings;
mod runs;
mod serving;

use crate::dashboard::Dashboard;

/// Returns the four dashboards.
pub fn all() -> [Dashboard; 4] {
    [operator::operator(), runs::runs(), rings::rings(), serving::serving()]
}
