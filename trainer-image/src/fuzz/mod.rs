//! Mutated inputs for what this program reads of others; see [`codex_fuzz`].

mod targets;

codex_fuzz::tests! {
    json reports manifests configurations overrides gguf model_directories model_configurations tokenizers records tables
    parquet predictions bundles statements attestations roots identities logs keys requests copies expectations surveys
    templates plugins rules
}
