//! The embedded files of the presets. Pure.

use codex_provenance::{DataDigest, Sha256};

use crate::{BASELINE, PROBLEMS};

/// A file of a preset. What it holds is apart from what is known about it, so that the controller, which needs only the latter, does
/// not carry the problems in its program.
#[derive(Clone, Copy, Debug)]
pub struct BenchmarkFile {
    /// `problems` or `baseline`.
    pub name: &'static str,
    /// Path within the folder of this crate.
    pub path: &'static str,
    /// Number of lines.
    pub records: u64,
    /// The lines of `SHA256SUMS` beside it.
    sums: &'static str,
}

impl BenchmarkFile {
    /// Returns the digest of the contents, as `SHA256SUMS` has it.
    pub fn digest(&self) -> DataDigest {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        let line = self.sums.lines().filter_map(|line| line.split_once("  ")).find(|(_, name)| *name == file);
        let digest = line.and_then(|(digest, _)| digest.parse().ok());
        // A test compares every line with the contents.
        DataDigest(digest.unwrap_or_else(|| Sha256::of("")))
    }

    /// Returns the contents.
    pub fn contents(&self) -> &'static [u8] {
        match self.path {
            "benchmarks/base/problems.jsonl" => include_bytes!("../benchmarks/base/problems.jsonl"),
            "benchmarks/cot-hard/problems.jsonl" => include_bytes!("../benchmarks/cot-hard/problems.jsonl"),
            "benchmarks/cot-lite/problems.jsonl" => include_bytes!("../benchmarks/cot-lite/problems.jsonl"),
            "benchmarks/cot-lite/baseline.jsonl" => include_bytes!("../benchmarks/cot-lite/baseline.jsonl"),
            "benchmarks/gym-chain-sum/problems.jsonl" => include_bytes!("../benchmarks/gym-chain-sum/problems.jsonl"),
            "benchmarks/gym-gsm-symbolic/problems.jsonl" => {
                include_bytes!("../benchmarks/gym-gsm-symbolic/problems.jsonl")
            }
            "benchmarks/gym-products/problems.jsonl" => include_bytes!("../benchmarks/gym-products/problems.jsonl"),
            "benchmarks/math/problems.jsonl" => include_bytes!("../benchmarks/math/problems.jsonl"),
            "benchmarks/tools/problems.jsonl" => include_bytes!("../benchmarks/tools/problems.jsonl"),
            _ => &[],
        }
    }
}

/// A file of the preset in a folder of `benchmarks/`.
macro_rules! file {
    ($name:expr, $folder:literal, $file:literal, $records:literal) => {
        BenchmarkFile {
            name: $name,
            path: concat!("benchmarks/", $folder, "/", $file),
            records: $records,
            sums: include_str!(concat!("../benchmarks/", $folder, "/SHA256SUMS")),
        }
    };
}

const BASE: &[BenchmarkFile] = &[file!(PROBLEMS, "base", "problems.jsonl", 150)];
const COT_HARD: &[BenchmarkFile] = &[file!(PROBLEMS, "cot-hard", "problems.jsonl", 800)];
const COT_LITE: &[BenchmarkFile] =
    &[file!(PROBLEMS, "cot-lite", "problems.jsonl", 1000), file!(BASELINE, "cot-lite", "baseline.jsonl", 1000)];
const GYM_CHAIN_SUM: &[BenchmarkFile] = &[file!(PROBLEMS, "gym-chain-sum", "problems.jsonl", 200)];
const GYM_GSM_SYMBOLIC: &[BenchmarkFile] = &[file!(PROBLEMS, "gym-gsm-symbolic", "problems.jsonl", 200)];
const GYM_PRODUCTS: &[BenchmarkFile] = &[file!(PROBLEMS, "gym-products", "problems.jsonl", 200)];
const MATH: &[BenchmarkFile] = &[file!(PROBLEMS, "math", "problems.jsonl", 100)];
const TOOLS: &[BenchmarkFile] = &[file!(PROBLEMS, "tools", "problems.jsonl", 50)];

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
    fn files_are_what_is_known_about_them() {
        for preset in crate::PRESETS {
            let files = benchmark(preset);
            for file in files {
                let contents = file.contents();
                assert_eq!(DataDigest(Sha256::of(contents)), file.digest(), "{}", file.path);
                let lines = contents.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
                assert_eq!(lines.count() as u64, file.records, "{}", file.path);
                // Training data is not part of a preset.
                let listed = file.sums.lines().filter(|line| !line.ends_with("train.jsonl"));
                assert_eq!(listed.count(), files.len(), "{}", file.path);
            }
            assert_eq!(files.iter().filter(|file| file.name == PROBLEMS).count(), 1);
            assert!(files.iter().all(|file| [PROBLEMS, BASELINE].contains(&file.name)));
        }
    }
}
