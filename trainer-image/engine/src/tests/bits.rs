//! The bits of logits on each code path: a change that gives others needs another version of [`KERNELS`], so that golden tokens of
//! earlier versions are not compared bit for bit.

use std::io::{self, Write as _};

use super::*;
use crate::{KERNELS, instruction_set};

/// The digest of the logits for a code path and an instruction set, with version [`KERNELS`].
const KNOWN: [(&str, &str, u64); 0] = [];

/// Returns the FNV-1a digest of the bits.
fn digest(logits: &[f32]) -> u64 {
    let bytes = logits.iter().flat_map(|logit| logit.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn other_bits_need_another_version_of_the_kernels() {
    for settings in [Settings::default(), BF16] {
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
        let (isa, found) = (instruction_set(), digest(&logits));
        match KNOWN.iter().find(|known| (known.0, known.1) == (path, isa)) {
            Some((.., known)) => assert_eq!(
                found, *known,
                "{path} on {isa} gives other bits than version {KERNELS} of the kernels: raise KERNELS in cpu/isa.rs, and record \
                 the new digests here ({found:#018x})"
            ),
            // Written directly: the test harness captures `eprintln!`.
            None => writeln!(
                io::stderr(),
                "SKIPPED: the bits of {path} on {isa}: none are recorded; found (\"{path}\", \"{isa}\", {found:#018x})"
            )
            .unwrap(),
        }
    }
}
