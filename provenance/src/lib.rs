//! What a model is and who vouches for it: file digests, the manifest, signing and verifying.
//!
//! Everything here works on bytes and values; only [`files`] and what reads directories in [`manifest`]
//! touch a disk.
//!
//! The way of a model: [`manifest::Manifest`] → [`oms::payload`] → [`key::Signer::sign`] → OMS bundle, and
//! [`promotion::Promotion`] → [`promotion::Promotion::payload`] → [`key::Signer::sign`] → promotion bundle. Back:
//! [`verify::verify_model`] over exactly the bytes that are about to be used.

pub mod bundle;
mod canonical;
pub mod digest;
mod dsse;
pub mod files;
pub mod key;
pub mod manifest;
pub mod oms;
pub mod promotion;
mod statement;
pub mod verify;

pub use digest::{
    ConfigDigest, DataDigest, GatesDigest, ModelDigest, OmsPayloadDigest, OmsRoot, PromotionDigest, ReportDigest,
    Sha256,
};
