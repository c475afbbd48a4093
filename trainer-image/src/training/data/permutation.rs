//! Keyed permutations: the order of records within one pass over a source. Pure.

use sha2::Digest as _;

/// Returns the key of the permutation for one pass over one source.
pub(super) fn permutation_key(seed: u64, source: usize, pass: u64) -> u64 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"codex order 1\0");
    for number in [seed, source as u64, pass] {
        hasher.update(number.to_le_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// Returns the image of `index` under the permutation of 0..`count` with this `key`: a Feistel network over the next power of
/// four, applied until the result is below `count`. Takes constant time on average.
pub(super) fn permute(index: u64, count: u64, key: u64) -> u64 {
    let half = (64 - count.leading_zeros()).div_ceil(2).max(1);
    let mask = (1_u64 << half) - 1;
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ key.rotate_left(16 * round)) & mask));
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}

/// The finaliser of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pass_sees_every_record_once(count in 1_u64..3000, key: u64) {
            let mut seen = vec![false; count as usize];
            for index in 0..count {
                let at = permute(index, count, key) as usize;
                prop_assert!(!seen[at]);
                seen[at] = true;
            }
        }
    }

    #[test]
    fn passes_differ() {
        let order = |pass| (0..100).map(|i| permute(i, 100, permutation_key(1, 0, pass))).collect::<Vec<_>>();
        assert_ne!(order(0), order(1));
        assert_ne!(order(0), (0..100).collect::<Vec<_>>());
    }
}
