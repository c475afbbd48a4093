//! What a model is: file digests, the manifest, and the statements made about it.
//!
//! [`manifest::Manifest`] lists a model's files; its digest is the model's identity. [`oms`] writes and reads the
//! OpenSSF Model Signing statement about a manifest, [`promotion`] the statement that allows a model in a ring,
//! [`attestation`] the statements about a promotion that other programs read, [`cyclonedx`] the document in one of them, and
//! [`reproduction`] the one that a model was trained again. Who signs and verifies them is the crate `codex-signing`: this one
//! needs no cryptography beyond SHA-256, except `sealed`, a feature of those who load models.
//!
//! Everything here works on bytes and values, except [`files`], [`threads`], `sealed` and the constructors of [`manifest::Manifest`] that
//! read directories.

pub mod attestation;
mod canonical;
pub mod cyclonedx;
mod device;
pub mod digest;
mod evidence;
pub mod files;
pub mod golden;
mod identity;
pub mod manifest;
pub mod oms;
pub mod promotion;
pub mod reproduction;
#[cfg(feature = "sealed")]
pub mod sealed;
mod statement;
pub mod text;
pub mod threads;
mod validity;

pub use device::Device;
pub use digest::{
    ConfigDigest, DataDigest, GatesDigest, ModelDigest, OmsPayloadDigest, OmsRoot, PromotionDigest, ReportDigest,
    Sha256,
};
pub use evidence::EvidenceStrength;
pub use identity::{Identity, IdentityError, IdentityPattern};
pub use validity::{Untimely, Validity};
