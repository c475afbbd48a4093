//! Work on several threads, and beside others. Starts threads.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use rustix::process::setpriority_process;

/// The lowest priority of a thread.
const LOWEST: i32 = 19;

/// Gives the calling thread the lowest priority, so that it takes what others leave of the processors. If the system refuses that, it
/// competes with them as before, which is no failure.
pub fn give_way() {
    // On Linux this is the priority of the calling thread alone.
    let _ = setpriority_process(None, LOWEST);
}

/// Does work on each item with all processors, and returns the results in order. The first item that fails ends it.
pub(crate) fn in_parallel<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(items.len());
    if threads < 2 {
        return items.iter().map(work).collect();
    }
    // An item is begun only after all before it, so the first failure in order is always found.
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<Option<Result<R, E>>>> = Mutex::new(items.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let result = work(item);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn results_are_in_order_and_the_first_failure_counts() {
        let numbers: Vec<usize> = (0..500).collect();
        let doubled: Result<Vec<usize>, usize> = in_parallel(&numbers, |number| Ok(number * 2));
        assert_eq!(doubled.unwrap(), (0..500).map(|number| number * 2).collect::<Vec<_>>());
        let refused = |number: &usize| if number % 100 == 77 { Err(*number) } else { Ok(()) };
        for _ in 0..20 {
            assert_eq!(in_parallel(&numbers, refused).unwrap_err(), 77);
        }
        assert_eq!(in_parallel(&[], refused).unwrap(), []);
    }

    #[test]
    fn only_the_thread_that_gives_way_gets_the_lowest_priority() {
        let before = getpriority_process(None).unwrap();
        let lowered = thread::spawn(|| {
            give_way();
            getpriority_process(None).unwrap()
        });
        assert_eq!(lowered.join().unwrap(), LOWEST);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
