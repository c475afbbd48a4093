//! The size of a model, checked before any of its bytes is read. Pure.

use codex_provenance::files::Entry;

/// The files of a model do not fit into memory.
#[derive(Debug, thiserror::Error)]
#[error("its files have {bytes} bytes, more than {source_of_limit} of {limit}: the largest is {largest}")]
pub struct TooLarge {
    bytes: u64,
    limit: u64,
    source_of_limit: String,
    largest: String,
}

/// Checks that the listed files fit into `limit` bytes, as `source_of_limit` says. A file that was replaced, such as by a sparse
/// one, may be larger than any memory.
///
/// # Errors
/// Names the largest file.
pub(crate) fn check_size(entries: &[Entry], limit: u64, source_of_limit: &str) -> Result<(), TooLarge> {
    let bytes = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
    if bytes <= limit {
        return Ok(());
    }
    let largest = entries.iter().max_by_key(|entry| entry.size).map(|entry| format!("{:?}", entry.path));
    Err(TooLarge {
        bytes,
        limit,
        source_of_limit: source_of_limit.to_owned(),
        largest: largest.unwrap_or_else(|| "none".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use codex_engine::{Layout, ModelConfig, Shape, initial};
    use codex_provenance::manifest::MAX_RECORDED_FILES;

    use super::*;
    use crate::{model::describe, text::Tokenizer};

    /// A model of any size has the same files, so that no training ends with a model that a cluster cannot record.
    #[test]
    fn every_model_that_is_written_can_be_recorded() {
        for num_hidden_layers in [1, 80] {
            let shape = Shape {
                hidden_size: 16,
                intermediate_size: 8,
                num_hidden_layers,
                num_attention_heads: 1,
                max_position_embeddings: 8,
                rope_theta: 10_000.0,
            };
            let tokenizer = Tokenizer::characters().unwrap();
            let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
            let files = describe(&config, &initial(&config, &Layout::of(&config), 1), &tokenizer).unwrap();
            assert!(files.len() <= MAX_RECORDED_FILES && files.len() == 5, "{:?}", files.keys());
        }
    }

    #[test]
    fn files_that_exceed_the_memory_together_are_refused() {
        let entry = |path: &str, size| Entry { path: path.to_owned(), location: "nowhere".into(), size };
        let entries = [entry("a", 60), entry("b", 41)];
        check_size(&entries, 101, "the memory").unwrap();
        let told = check_size(&entries, 100, "the memory").unwrap_err().to_string();
        assert_eq!(told, "its files have 101 bytes, more than the memory of 100: the largest is \"a\"");
        assert!(check_size(&[entry("a", u64::MAX), entry("b", u64::MAX)], u64::MAX - 1, "x").is_err());
    }
}
