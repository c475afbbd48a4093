//! The writer of the reports of a pod: a key that its process makes, and signatures over challenges of the endpoint. Pure.
//!
//! A token names a pod; anyone who reads it can send it. The first process that reports for a pod therefore pins its public key,
//! and later reports must be signed with it. This is defence in depth and proves nothing: a process that reports first with a
//! stolen token pins its own key.

/// Header of a request: the writer's Ed25519 public key, in hexadecimal digits.
pub const KEY_HEADER: &str = "codex-report-key";
/// Header of a response: the challenge that the next request signs. Header of a request: the challenge that it signed.
pub const CHALLENGE_HEADER: &str = "codex-report-challenge";
/// Header of a request: the signature of [`signed_message`], in hexadecimal digits.
pub const SIGNATURE_HEADER: &str = "codex-report-signature";

/// Returns what a writer signs: the challenge and the body of the request.
pub fn signed_message(challenge: &str, body: &[u8]) -> Vec<u8> {
    [b"codex-ml.dev/reports/v1\n", challenge.as_bytes(), b"\n", body].concat()
}
