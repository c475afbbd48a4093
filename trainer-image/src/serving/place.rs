//! Which slot a prompt gets, and how much released slots keep for later prompts: the prefix cache. Pure.
//!
//! A released slot keeps the keys and values of its tokens. A prompt that begins with the same tokens takes them over, bit for bit
//! those that it would compute. The bound is a number of tokens over all free slots; the one that was used longest ago is
//! emptied first.

use crate::model::Generator;

/// Slots beside those that run requests, so that prefixes outlive the next requests.
pub(super) const SPARE: usize = 8;
/// Tokens that are worth taking over, at least.
const WORTH: usize = 16;

/// The order in which slots were used, and the bound.
#[derive(Debug)]
pub(super) struct Places {
    /// For each slot, when it was used last.
    used: Vec<u64>,
    clock: u64,
    /// The most tokens that free slots hold.
    bound: usize,
}

impl Places {
    /// Empties all slots of a generator, which must be free.
    pub(super) fn new(generator: &mut Generator, bound: usize) -> Self {
        for slot in 0..generator.slots() {
            generator.forget(slot);
        }
        Self { used: vec![0; generator.slots()], clock: 0, bound }
    }

    /// Chooses a free slot for a prompt: one whose tokens the prompt continues, else an empty one, else the one that was used
    /// longest ago. What another slot holds is copied, so that a prefix with many continuations stays.
    pub(super) fn choose(&mut self, generator: &Generator, prompt: &[u32]) -> Option<usize> {
        let free = || (0..self.used.len()).filter(move |slot| generator.is_free(*slot));
        let common =
            |slot: usize| generator.held(slot).iter().zip(prompt).take_while(|(held, token)| held == token).count();
        let continued = free()
            .map(|slot| (common(slot), slot))
            .filter(|(common, slot)| *common >= WORTH && 4 * common >= 3 * generator.held(*slot).len())
            .max_by_key(|(common, slot)| (*common, usize::MAX - slot));
        let slot = match continued {
            Some((_, slot)) => slot,
            None => free().min_by_key(|slot| (!generator.held(*slot).is_empty(), self.used[*slot], *slot))?,
        };
        self.touch(slot);
        Some(slot)
    }

    /// Records that a slot was released, and empties others until the bound holds.
    pub(super) fn released(&mut self, generator: &mut Generator, slot: usize) {
        self.touch(slot);
        if generator.held(slot).is_empty() {
            generator.forget(slot);
        }
        loop {
            let free: Vec<usize> = (0..self.used.len())
                .filter(|slot| generator.is_free(*slot) && !generator.held(*slot).is_empty())
                .collect();
            let held: usize = free.iter().map(|slot| generator.held(*slot).len()).sum();
            let oldest = free.into_iter().min_by_key(|slot| self.used[*slot]);
            match oldest {
                Some(oldest) if held > self.bound => generator.forget(oldest),
                _ => return,
            }
        }
    }

    fn touch(&mut self, slot: usize) {
        self.clock += 1;
        if let Some(used) = self.used.get_mut(slot) {
            *used = self.clock;
        }
    }
}
