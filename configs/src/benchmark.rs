//! The files that presets bring along. Pure: they are embedded.

use codex_provenance::{DataDigest, Sha256};

use crate::{BASELINE, PROBLEMS};

/// A file of a preset.
#[derive(Clone, Copy, Debug)]
pub struct BenchmarkFile {
    /// `problems` or `baseline`.
    pub name: &'static str,
    /// Where it lies in this crate's folder.
    pub path: &'static str,
    /// Its bytes.
    pub bytes: &'static [u8],
}

impl BenchmarkFile {
    /// The digest of its bytes.
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

/// The files of a preset: its problems, and the recorded predictions of its baseline where there is one.
pub fn benchmark(preset: &str) -> &'static [BenchmarkFile] {
    match preset {
        "cot-hard" => COT_HARD,
        "cot-lite" => COT_LITE,
        _ => &[],
    }
}

/// The file of a preset that has this digest.
pub fn benchmark_file(preset: &str, digest: DataDigest) -> Option<&'static BenchmarkFile> {
    benchmark(preset).iter().find(|file| file.digest() == digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_of_the_checksums() {
        for preset in crate::PRESETS {
            let sums = match *preset {
                "cot-hard" => include_str!("../benchmarks/cot-hard/SHA256SUMS"),
                "cot-lite" => include_str!("../benchmarks/cot-lite/SHA256SUMS"),
                other => panic!("no checksums of {other}"),
            };
            let lines: Vec<String> = benchmark(preset)
                .iter()
                .map(|file| format!("{}  {}", file.digest(), file.path.rsplit('/').next().expect("a name")))
                .collect();
            assert_eq!(lines, sums.lines().collect::<Vec<_>>());
            assert_eq!(benchmark(preset).iter().filter(|file| file.name == PROBLEMS).count(), 1);
            assert!(benchmark(preset).iter().all(|file| [PROBLEMS, BASELINE].contains(&file.name)));
        }
    }
}
