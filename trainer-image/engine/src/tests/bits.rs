//! The bits of logits where no special instruction is used: a change that gives others needs another version of [`KERNELS`], so that
//! golden tokens of earlier versions are not compared bit for bit. Every processor can compute these bits; a test runs all tests so.

use super::*;
use crate::{KERNELS, instruction_set};

/// The digest of the logits for a code path, with version [`KERNELS`].
const KNOWN: [(&str, u64); 2] = [("cpu-f32", 0x8f1d_3971_d089_8833), ("cpu-bf16-portable", 0x51e4_ada4_076b_6116)];

/// Returns the FNV-1a digest of the bits.
fn digest(logits: &[f32]) -> u64 {
    let bytes = logits.iter().flat_map(|logit| logit.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn other_bits_need_another_version_of_the_kernels() {
    if instruction_set() != "portable" {
        return;
    }
    let found = [Settings::default(), BF16].map(|settings| {
        let mut logits = Vec::new();
        let mut path = "";
        for config in shapes() {
            let parameters = state(&config, 3).parameters;
            let mut decoder = decoder(&config, &parameters, settings, 2).unwrap();
            path = decoder.path();
            decoder.prefill(0, &ids(40, 9)).unwrap();
            decoder.prefill(1, &ids(5, 4)).unwrap();
            for _ in 0..6 {
                logits.extend(decoder.logits().unwrap().rows);
                assert_eq!([0, 1].map(|slot| decoder.push(slot, 3)), [None, None]);
            }
        }
        (path, digest(&logits))
    });
    assert_eq!(
        found, KNOWN,
        "these are other bits than those of version {KERNELS} of the kernels: raise KERNELS in cpu/isa.rs, and record the digests here"
    );
}
