//! The embedded files of the presets. Pure.

use codex_provenance::{DataDigest, Sha256};

use crate::{BASELINE, PROBLEMS};

/// A file of a preset.
#[derive(Clone, Copy, Debug)]
pub struct BenchmarkFile {
    /// `problems` or `baseline`.
    pub name: &'static str,
    /// Path within the folder of this crate.
    pub path: &'static str,
    /// Contents.
    pub bytes: &'static [u8],
}

impl BenchmarkFile {
    /// Returns the digest of the contents.
    pub fn digest(&self) -> DataDigest {
        DataDigest(Sha256::of(self.bytes))
    }
}

const COT_LITE: &[BenchmarkFile] = &[
    BenchmarkFile {
        name: PROBLEMS,
        path: "benchmarks/cot-lite/problems.jsonl",
        bytes: include_bytes!("../benchmarks/cot-lite/problems.jsonl"),
    },
    BenchmarkFile {
        name: BASELINE,
        path: "benchmarks/cot-lite/baseline.jsonl",
        bytes: include_bytes!("../benchmarks/cot-lite/baseline.jsonl"),
    },
];

const COT_HARD: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/cot-hard/problems.jsonl",
    bytes: include_bytes!("../benchmarks/cot-hard/problems.jsonl"),
}];

const GYM_CHAIN_SUM: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/gym-chain-sum/problems.jsonl",
    bytes: include_bytes!("../benchmarks/gym-chain-sum/problems.jsonl"),
}];

const GYM_GSM_SYMBOLIC: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/gym-gsm-symbolic/problems.jsonl",
    bytes: include_bytes!("../benchmarks/gym-gsm-symbolic/problems.jsonl"),
}];

const GYM_PRODUCTS: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/gym-products/problems.jsonl",
    bytes: include_bytes!("../benchmarks/gym-products/problems.jsonl"),
}];

const BASE: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/base/problems.jsonl",
    bytes: include_bytes!("../benchmarks/base/problems.jsonl"),
}];

const MATH: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/math/problems.jsonl",
    bytes: include_bytes!("../benchmarks/math/problems.jsonl"),
}];

const TOOLS: &[BenchmarkFile] = &[BenchmarkFile {
    name: PROBLEMS,
    path: "benchmarks/tools/problems.jsonl",
    bytes: include_bytes!("../benchmarks/tools/problems.jsonl"),
}];

/// Returns the files of a preset: its problems and, if it has a baseline, the recorded predictions of the baseline.
pub fn benchmark(preset: &str) -> &'static [BenchmarkFile] {
    match preset {
        "base" => BASE,
        "cot-hard" => COT_HARD,
        "cot-lite" => COT_LITE,
        "gym-chain-sum" => GYM_CHAIN_SUM,
        "gym-gsm-symbolic" => GYM_GSM_SYMBOLIC,
        "gym-products" => GYM_PRODUCTS,
        "math" => MATH,
        "tools" => TOOLS,
        _ => &[],
    }
}

/// Returns the file of a preset with this digest.
pub fn benchmark_file(preset: &str, digest: DataDigest) -> Option<&'static BenchmarkFile> {
    benchmark(preset).iter().find(|file| file.digest() == digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_match_their_checksums() {
        for preset in crate::PRESETS {
            let sums = match *preset {
                "base" => include_str!("../benchmarks/base/SHA256SUMS"),
                "math" => include_str!("../benchmarks/math/SHA256SUMS"),
                "tools" => include_str!("../benchmarks/tools/SHA256SUMS"),
                "cot-hard" => include_str!("../benchmarks/cot-hard/SHA256SUMS"),
                "cot-lite" => include_str!("../benchmarks/cot-lite/SHA256SUMS"),
                "gym-chain-sum" => include_str!("../benchmarks/gym-chain-sum/SHA256SUMS"),
                "gym-gsm-symbolic" => include_str!("../benchmarks/gym-gsm-symbolic/SHA256SUMS"),
                "gym-products" => include_str!("../benchmarks/gym-products/SHA256SUMS"),
                other => panic!("no checksums of {other}"),
            };
            let lines: Vec<String> = benchmark(preset)
                .iter()
                .map(|file| format!("{}  {}", file.digest(), file.path.rsplit('/').next().expect("a name")))
                .collect();
            // Training data is not part of a preset.
            assert_eq!(lines, sums.lines().filter(|line| !line.ends_with("train.jsonl")).collect::<Vec<_>>());
            assert_eq!(benchmark(preset).iter().filter(|file| file.name == PROBLEMS).count(), 1);
            assert!(benchmark(preset).iter().all(|file| [PROBLEMS, BASELINE].contains(&file.name)));
        }
    }
}
