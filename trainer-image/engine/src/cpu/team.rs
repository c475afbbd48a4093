//! A team of threads for work in many small steps, such as decoding one token: each product takes some microseconds, and a thread of
//! the pool that found nothing to do meanwhile sleeps, and takes as long to wake. Members of a team wait for the next step awake, for
//! as long as the team exists. The leader is the thread that asks, so that its scratch memory is not held by each thread of the pool.
//!
//! The work of a team must not wait for the pool, whose threads are in the team.
//!
//! Which thread does a part of a step is left to chance, and no result depends on it.

use std::{
    cell::{Cell, UnsafeCell},
    hint, ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    thread,
};

use rayon::prelude::*;

/// The part of a team's state that counts.
const LEFT: u64 = u32::MAX as u64;

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

/// Keeps a step where it is while a member works on it, also if the leader's own part panics.
struct Leading<'a> {
    team: &'a Team,
    parts: usize,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        // After a panic, nobody begins the parts that are left.
        let left = self.team.state.fetch_and(!LEFT, Ordering::AcqRel) & LEFT;
        let mut looks = 0;
        while self.team.done.load(Ordering::Acquire) + (left as usize) < self.parts {
            wait(&mut looks);
        }
    }
}

impl Team {
    /// Does a part that nobody has begun; whether there was one.
    fn help(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        let left = loop {
            let left = state & LEFT;
            if left == 0 {
                return false;
            }
            match self.state.compare_exchange_weak(state, state - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break left,
                Err(other) => state = other,
            }
        };
        let done = Done(&self.done);
        let step = self.step.load(Ordering::Acquire);
        // SAFETY: this thread has begun a part of the step that `state` names. Its leader keeps the step where it is, and begins no
        // other, until every part that was begun is done, also if it panics (`Leading`); `done` says so below.
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
        // Waits for the others.
        let _leading = Leading { team: self, parts: parts as usize };
        while self.help() {}
    }

    /// Helps until the team ends.
    fn follow(&self) {
        let mut looks = 0;
        while !self.ended.load(Ordering::Acquire) {
            if self.help() {
                looks = 0;
            } else {
                wait(&mut looks);
            }
        }
    }
}

fn wait(looks: &mut u32) {
    if *looks < LOOKS {
        *looks += 1;
        hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

/// Does work in many small steps with a team of this thread and, but for one, the threads of the pool.
pub(crate) fn in_team<R>(work: impl FnOnce() -> R) -> R {
    let team = Team::default();
    rayon::in_place_scope(|scope| {
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
    // Parts that call this again find no team: it has one step.
    let team = LED.replace(ptr::null());
    let parts = u32::try_from(items.len()).unwrap_or(u32::MAX);
    if team.is_null() || parts < 2 || parts == u32::MAX {
        items.into_par_iter().with_max_len(1).for_each(work);
        LED.set(team);
        return;
    }
    let items = Items { items: items.into_iter().map(|item| UnsafeCell::new(Some(item))).collect(), work: &work };
    let step = Step { work: ptr::from_ref(&items).cast(), part: Items::<T, F>::part };
    // SAFETY: `in_team` has set the pointer on this thread, and replaces it before the team goes.
    #[allow(unsafe_code)]
    unsafe { &*team }.lead(&step, parts);
    LED.set(team);
}

#[cfg(test)]
mod tests {
    use std::{
        panic,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
        time::Duration,
    };

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

    /// Returns a pool of three threads, whatever the processor has.
    fn three() -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap()
    }

    #[test]
    fn no_member_works_on_a_step_whose_leader_panicked() {
        three().install(|| {
            in_team(|| {
                let (leader, busy) = (thread::current().id(), AtomicUsize::new(0));
                let part = |_: u32| {
                    if thread::current().id() == leader {
                        while busy.load(Ordering::Acquire) == 0 {
                            thread::yield_now();
                        }
                        panic!("the leader's part");
                    }
                    busy.fetch_add(1, Ordering::AcqRel);
                    thread::sleep(Duration::from_millis(50));
                    busy.fetch_sub(1, Ordering::AcqRel);
                };
                let _ = panic::catch_unwind(panic::AssertUnwindSafe(|| spread((0..8).collect(), part)));
                assert_eq!(busy.load(Ordering::Acquire), 0, "a member still works on the step");
            });
        });
    }

    /// Fails if another thread sleeps in the pool: two parts wait for each other.
    #[test]
    fn the_parts_of_a_step_are_done_beside_each_other() {
        three().install(|| {
            in_team(|| {
                for _ in 0..200 {
                    let met = AtomicUsize::new(0);
                    spread(vec![(), ()], |()| {
                        met.fetch_add(1, Ordering::AcqRel);
                        while met.load(Ordering::Acquire) < 2 {
                            thread::yield_now();
                        }
                    });
                }
            });
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
