//! Why a plugin cannot be loaded, or a call of it failed. Pure.

use codex_wasm::{Invalid, Trap};

use super::{LIMITS, MAX_BYTES, VERSION};

/// A plugin that cannot be used, or a call that failed. The same plugin fails in the same way on the same texts.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PluginError {
    /// The file is too large.
    #[error(
        "the plugin has {0} bytes, but at most {MAX_BYTES} are read: build it for size (opt-level \"s\", strip = true)"
    )]
    TooLarge(usize),
    /// The file is no module that can be run.
    #[error(
        "the plugin is no WebAssembly module that can be run ({0}): build it for wasm32-unknown-unknown, without SIMD, threads, \
         exceptions, 64-bit memory or a start function"
    )]
    Malformed(Invalid),
    /// No export tells the version of the interface.
    #[error(
        "the plugin does not tell the version of its interface: export codex_plugin_{VERSION}, a function without parameters that is \
         never called"
    )]
    Unversioned,
    /// It was written for another version of the interface.
    #[error(
        "the plugin was written for version {0:?} of the interface, but this program has {VERSION}: use a plugin that exports \
         codex_plugin_{VERSION}, or a program that has that version"
    )]
    Version(String),
    /// It imports something.
    #[error(
        "the plugin imports {0}, but plugins have no imports, so no clock, random numbers, files or network: build it for \
         wasm32-unknown-unknown without what needs them"
    )]
    Import(String),
    /// An export is missing.
    #[error("the plugin does not export {export}: it must export {right}")]
    Missing {
        /// The name of the export.
        export: &'static str,
        /// What it must be.
        right: &'static str,
    },
    /// An export has another type.
    #[error("the plugin exports {export} with another type: it must be {right}")]
    Mistyped {
        /// The name of the export.
        export: &'static str,
        /// What it must be.
        right: &'static str,
    },
    /// It needs more memory than it may have.
    #[error("the plugin needs more than {} MiB of memory, which is the most that it may have", LIMITS.memory >> 20)]
    Memory,
    /// A call used all its fuel.
    #[error(
        "the plugin's {0} used all of its fuel ({most} units, about one for each instruction): it does not end, or does too much for one text",
        most = LIMITS.fuel
    )]
    Fuel(&'static str),
    /// A call trapped.
    #[error("the plugin's {function} failed: {trap}")]
    Trap {
        /// The name of the function.
        function: &'static str,
        /// What happened.
        trap: Trap,
    },
    /// `alloc` returned an address without room for the text.
    #[error("the plugin's alloc returned the address {at} for {length} bytes, which are not all in its memory")]
    Address {
        /// The address.
        at: u32,
        /// The length of the text in bytes.
        length: u32,
    },
    /// A result is NaN or infinite.
    #[error("the plugin's {function} returned {value}, which is not a finite number")]
    NotFinite {
        /// The name of the function.
        function: &'static str,
        /// The result.
        value: f64,
    },
    /// A metric is not from 0 to 1.
    #[error("the plugin's metric returned {0}, which is not from 0 to 1")]
    Outside(f64),
    /// A filter neither keeps a record nor drops it.
    #[error("the plugin's filter returned {0}, which is neither 0 (drop the record) nor 1 (keep it)")]
    Undecided(i32),
}

impl PluginError {
    /// Returns why a call of `function` failed.
    pub(super) fn of(function: &'static str, trap: Trap) -> Self {
        match trap {
            Trap::Fuel => Self::Fuel(function),
            Trap::OutOfMemory => Self::Memory,
            trap => Self::Trap { function, trap },
        }
    }
}
