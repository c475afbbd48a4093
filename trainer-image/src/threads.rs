//! The limit of compute threads. Reads the environment and starts the thread pool.

use crate::artifacts::environment::variable;

/// Variables from which rayon takes the number of threads, in this order.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"];

/// Limits the thread pool to one thread per processor that this process may use, whatever the environment requests: more
/// threads only compete for processors, and thousands of them make the machine unusable.
pub(crate) fn limit() {
    // As many as the affinity and the quota of the cgroup allow: threads that wait for work awake would use up the quota.
    let Ok(processors) = std::thread::available_parallelism().map(usize::from) else { return };
    let Some((name, requested)) = VARIABLES.into_iter().find_map(|name| Some((name, variable(name)?))) else { return };
    let Some(threads) = limited(&requested, processors) else { return };
    tracing::warn!(
        "{name} is {requested}, but this process may use only {processors} processors: using {threads} threads"
    );
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        tracing::warn!(%error, "the number of threads cannot be limited");
    }
}

/// Returns the number of threads if fewer than `requested` must be used.
fn limited(requested: &str, processors: usize) -> Option<usize> {
    let requested: usize = requested.parse().ok()?;
    (processors > 0 && requested > processors).then_some(processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_threads_than_processors_are_limited() {
        assert_eq!(limited("100000", 4), Some(4));
        assert_eq!(["4", "1", "0", "", "many"].map(|text| limited(text, 4)), [None; 5]);
    }
}
