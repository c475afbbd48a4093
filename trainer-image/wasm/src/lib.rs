//! A small interpreter of WebAssembly for plugins. Pure: a module has no imports, so it computes from its arguments alone.
//!
//! It runs what compilers emit for `wasm32-unknown-unknown`: WebAssembly 1.0 with several results, sign extension, saturating conversions
//! and copies of memory (`memory.copy`, `fill` and `init`, `data.drop`). References as values, SIMD, threads, exceptions and 64-bit
//! memories are refused. A module is validated as the specification says before anything of it runs.
//!
//! The same call gives the same bits on every processor: every NaN that arithmetic makes is the canonical one, and fuel is counted by
//! instructions. `instructions.rs` defines what an instruction costs, so that a program that once ended ends with every version.
//!
//! - [`Module::parse`] reads and validates a module (`binary.rs`, `validate.rs`) and translates its functions (`instructions.rs`).
//! - [`Instance`] is its memory, and runs its functions (`machine.rs`, `numeric.rs`).

mod binary;
mod instructions;
mod machine;
mod module;
mod numeric;
#[cfg(test)]
mod tests;
mod validate;

pub use binary::Invalid;
pub use machine::{Instance, Limits, Trap, Value};
pub use module::{Exported, FunctionType, Module, ValueType, export_names};
