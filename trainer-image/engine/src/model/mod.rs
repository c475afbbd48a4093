//! The description of a model that every backend shares: its configuration, the names and places of its tensors, how they are
//! initialized, and how much arithmetic a step takes.

mod config;
mod config_file;
mod flops;
mod initial;
mod layout;
mod lora;
mod modules;

pub use config::{ConfigError, Family, HEAD_WIDTHS, ModelConfig, RopeScaling, Shape, Vocabulary};
pub(crate) use flops::adapter_flops;
pub use flops::flops;
pub use initial::initial;
pub use layout::{Layout, Tensor};
pub(crate) use lora::{Adapter, Adapters, BlockAdapters, Dropout, adapter_names, stream};
pub use lora::{Lora, LoraError, Projection, add_low_rank};
pub(crate) use modules::{Block, Linear, Model, Norm, Read};
