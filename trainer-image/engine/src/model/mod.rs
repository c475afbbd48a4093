//! The description of a model that every backend shares: its configuration, the names and places of its tensors, how they are
//! initialized, and how much arithmetic a step takes.

mod config;
mod config_file;
mod flops;
mod initial;
mod layout;
mod modules;

pub use config::{ConfigError, Family, HEAD_WIDTHS, ModelConfig, RopeScaling, Shape, Vocabulary};
pub use flops::flops;
pub use initial::initial;
pub use layout::{Layout, Tensor};
pub(crate) use modules::{Block, Linear, Model, Norm};
