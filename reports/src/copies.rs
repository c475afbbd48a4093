//! Copies of requests that servers send to shadows and canaries: the files that the controller mounts, and what is sent. No I/O.

use codex_provenance::ModelDigest;
use serde::{Deserialize, Serialize};

/// URL path to which copies are sent.
pub const COPIES_PATH: &str = "/copies";
/// Header with the public key (Ed25519, hexadecimal) of the server that signed a copy.
pub const COPY_KEY_HEADER: &str = "x-codex-copy-key";
/// Header with the signature of a copy (hexadecimal).
pub const COPY_SIGNATURE_HEADER: &str = "x-codex-copy-signature";
/// Maximum size of a copy in bytes.
pub const MAX_COPY: usize = 4 << 20;

/// Where a server sends copies of its requests. An absent or empty file means nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorFile {
    /// The shadows, and the canary that is compared.
    pub shadows: Vec<MirrorTarget>,
}

/// A shadow or a canary that gets copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorTarget {
    /// The uid of its ReasoningPod, for which copies are signed; that of a canary has its number, too.
    pub uid: String,
    /// The URL of its Service, without a path.
    pub url: String,
    /// The share of requests to copy, in percent.
    pub sample_percent: u32,
}

/// Whose copies a shadow or a canary accepts. An absent file means nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShadowFile {
    /// The uid of its ReasoningPod, as in [`MirrorTarget::uid`].
    pub uid: String,
    /// The public keys (Ed25519, hexadecimal) of the servers that it is compared with.
    pub keys: Vec<String>,
}

/// A copy of a request, and how it was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestCopy {
    /// Grows with every copy of a server, so that a copy counts once.
    pub sequence: u64,
    /// The model that answered.
    pub model: ModelDigest,
    /// The ids of the prompt.
    pub prompt: Vec<u32>,
    /// The prompt as text, from the tokenizer of the server that answered.
    pub prompt_text: String,
    /// The most tokens of the response.
    pub limit: usize,
    /// The settings with which tokens were chosen.
    pub sampling: CopiedSampling,
    /// What binds the response. Absent if nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<CopiedGrammar>,
    /// When the reasoning ends. Absent if only the model ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<CopiedThinking>,
    /// The ids of the response, its end token included.
    pub tokens: Vec<u32>,
    /// Whether the response ended early at a text that ended it. Then later tokens are not compared.
    pub stopped: bool,
    /// Milliseconds from the request to the end of the response.
    pub milliseconds: u64,
}

/// How the tokens of a copied request were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopiedSampling {
    /// The temperature.
    pub temperature: f64,
    /// The least sum of probabilities of the tokens to choose from.
    pub top_p: f64,
    /// The number of tokens to choose from; 0 is all.
    pub top_k: usize,
    /// The seed.
    pub seed: u64,
}

/// What binds the response to a copied request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopiedGrammar {
    /// The grammar, as servers write it in JSON.
    pub grammar: String,
    /// The marker that opens reasoning before the text, if the model may reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Whether the prompt ends with that marker.
    pub opened: bool,
    /// Whether the model may call tools instead.
    pub calls: bool,
}

/// When the reasoning of the response to a copied request ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopiedThinking {
    /// The marker that opens it.
    pub open: String,
    /// Whether the prompt ends in it.
    pub opened: bool,
    /// The most tokens between the markers. Absent for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<usize>,
    /// The number of tokens of the response after which it is closed in any case.
    pub until: usize,
}

/// Returns what the signature of a copy covers: a copy for one shadow is not one for another.
pub fn signed_copy(uid: &str, body: &[u8]) -> Vec<u8> {
    let mut message = b"codex-ml.dev/copies/v1\n".to_vec();
    message.extend_from_slice(uid.as_bytes());
    message.push(b'\n');
    message.extend_from_slice(body);
    message
}
