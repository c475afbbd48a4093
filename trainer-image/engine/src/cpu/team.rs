//! A team of threads for work in many small steps, such as decoding one token: each product takes some microseconds, and a thread of
//! the pool that found nothing to do meanwhile sleeps, and takes as long to wake. Members of a team wait for the next step awake, for
//! as long as the team exists.
//!
//! Which thread does a part of a step is left to chance, and no result depends on it.

use std::{
    cell::{Cell, UnsafeCell},
    hint, ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    thread,
};

use rayon::prelude::*;

/// How often a thread looks for work before it lets others run.
const LOOKS: u32 = 2_000;

thread_local! {
    /// The team that this thread leads; null if none.
    static LED: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// What a team works on.
#[derive(Default)]
struct Team {
    /// The number of the step in the upper half, and how many of its parts nobody has begun in the lower half.
    state: AtomicU64,
    /// The step, while it has parts that are not done.
    step: AtomicPtr<Step>,
    /// How many parts of the step are done.
    done: AtomicUsize,
    /// Whether there are no more steps.
    ended: AtomicBool,
}

/// A step, with its type erased.
struct Step {
    work: *const (),
    /// Does a part of the work.
    part: fn(*const (), usize),
}

/// Counts a part as done, also if it panics: the panic reaches the leader at the end of the team.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Ends a team, also if its leader panics.
struct Ended<'a> {
    team: &'a Team,
    before: *const Team,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        LED.set(self.before);
        self.team.ended.store(true, Ordering::Release);
    }
}

impl Team {
    /// Does a part that nobody has begun; whether there was one.
    fn help(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let left = state & u64::from(u32::MAX);
        if left == 0 || self.state.compare_exchange(state, state - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let done = Done(&self.done);
        let step = self.step.load(Ordering::Acquire);
        // SAFETY: this thread has begun a part of the step that `state` names. Its leader keeps the step where it is, and begins no
        // other, until every part is done, which `done` says below.
        #[allow(unsafe_code)]
        let Step { work, part } = unsafe { &*step };
        part(*work, left as usize - 1);
        drop(done);
        true
    }

    /// Does a step with the other members.
    fn lead(&self, step: &Step, parts: u32) {
        self.done.store(0, Ordering::Relaxed);
        self.step.store(ptr::from_ref(step).cast_mut(), Ordering::Relaxed);
        let number = self.state.load(Ordering::Relaxed) >> 32;
        self.state.store((number + 1) << 32 | u64::from(parts), Ordering::Release);
        let mut looks = 0;
        while self.done.load(Ordering::Acquire) < parts as usize {
            if !self.help() {
                wait(&mut looks, thread::yield_now);
            }
        }
    }

    /// Helps until the team ends.
    fn follow(&self) {
        let mut looks = 0;
        while !self.ended.load(Ordering::Acquire) {
            if self.help() {
                looks = 0;
            } else {
                // The pool may have other work.
                wait(&mut looks, || {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        thread::yield_now();
                    }
                });
            }
        }
    }
}

fn wait(looks: &mut u32, patience_ends: impl FnOnce()) {
    if *looks < LOOKS {
        *looks += 1;
        hint::spin_loop();
    } else {
        patience_ends();
    }
}

/// Does work that has many parallel steps on a thread of the pool. Another thread would sleep and be woken at each step.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Does work in many small steps with a team of all threads of the pool.
pub(crate) fn in_team<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let team = Team::default();
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| team.follow());
        }
        let _ended = Ended { team: &team, before: LED.replace(&raw const team) };
        work()
    })
}

/// The items of a step, each of which is taken once.
struct Items<'a, T, F> {
    items: Vec<UnsafeCell<Option<T>>>,
    work: &'a F,
}

impl<T: Send, F: Fn(T) + Sync> Items<'_, T, F> {
    fn part(items: *const (), at: usize) {
        // SAFETY: `spread` gives a pointer to `Items` of this type, and every `at` once: `state` counts down, and a thread that reads
        // the number which it decrements is the only one to have it. So no two threads have the same item.
        #[allow(unsafe_code)]
        let (item, work) = unsafe {
            let items = &*items.cast::<Self>();
            ((*items.items[at].get()).take(), items.work)
        };
        if let Some(item) = item {
            work(item);
        }
    }
}

/// Does work for each item on all threads: those of the team that this thread leads, or else those of the pool.
pub(crate) fn spread<T: Send, F: Fn(T) + Send + Sync>(items: Vec<T>, work: F) {
    let team = LED.get();
    let parts = u32::try_from(items.len()).unwrap_or(u32::MAX);
    if team.is_null() || parts < 2 || parts == u32::MAX {
        items.into_par_iter().with_max_len(1).for_each(work);
        return;
    }
    let items = Items { items: items.into_iter().map(|item| UnsafeCell::new(Some(item))).collect(), work: &work };
    let step = Step { work: ptr::from_ref(&items).cast(), part: Items::<T, F>::part };
    // SAFETY: `in_team` has set the pointer on this thread, and replaces it before the team goes.
    #[allow(unsafe_code)]
    unsafe { &*team }.lead(&step, parts);
}

#[cfg(test)]
mod tests {
    use std::{panic, sync::Mutex};

    use super::{in_team, spread};

    #[test]
    fn every_item_is_done_once_in_each_of_many_steps() {
        let sums = in_team(|| {
            (0..5_000_u64)
                .map(|step| {
                    let mut parts = vec![0; 1 + (step % 9) as usize];
                    spread(parts.iter_mut().enumerate().collect(), |(at, part)| *part += step + at as u64);
                    let count = parts.len() as u64;
                    assert!(parts.iter().enumerate().all(|(at, part)| *part == step + at as u64));
                    count
                })
                .sum::<u64>()
        });
        assert_eq!(sums, (0..5_000).map(|step| 1 + step % 9).sum::<u64>());
    }

    #[test]
    fn teams_beside_each_other_do_their_own_work() {
        std::thread::scope(|scope| {
            for seed in 0..4_u64 {
                scope.spawn(move || {
                    for _ in 0..50 {
                        in_team(|| {
                            for step in 0..50 {
                                let mut parts = [0; 4];
                                spread(parts.iter_mut().collect(), |part| *part = seed + step);
                                assert_eq!(parts, [seed + step; 4]);
                            }
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_leader() {
        let seen = Mutex::new(0);
        let ended = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            in_team(|| {
                spread((0..8).collect(), |at: u32| {
                    *seen.lock().unwrap() += 1;
                    assert!(at != 5, "part {at}");
                });
            });
        }));
        assert!(ended.is_err());
        // A team works after another one failed.
        in_team(|| spread(vec![1, 2], |_: u32| ()));
        assert!(*seen.lock().unwrap() >= 1);
    }
}
