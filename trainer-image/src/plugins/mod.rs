//! Plugins: metrics, rewards and filters as WebAssembly modules, interpreted in a sandbox. Pure.
//!
//! A plugin is a function of the texts that it is given and of nothing else: it has no imports, so no clock, no random numbers, no
//! files and no network; every call begins with a fresh memory; NaN has one representation. Memory and instructions of a call are
//! bounded, so that a plugin cannot hang a run. `docs/plugins.md` describes the interface, whose version is [`VERSION`].

mod error;

use std::{fmt, sync::Arc};

use codex_wasm::{Exported, FunctionType, Instance, Invalid, Limits, Module, Value, ValueType, export_names};

pub use error::PluginError;

/// The version of the interface.
pub(crate) const VERSION: &str = "v1";
/// What the name of the export begins with that tells the version for which a plugin was written.
const MARKER: &str = "codex_plugin_";
/// The most bytes of a plugin.
pub(crate) const MAX_BYTES: usize = 4 << 20;
/// The bounds of a call.
pub(crate) const LIMITS: Limits = Limits { memory: 64 << 20, fuel: 100_000_000 };
/// The function that makes room for a text.
const ALLOC: &str = "alloc";
/// Its signature, as errors and documents write it.
const ALLOC_SIGNATURE: &str = "alloc(i32) -> i32";

/// What a plugin decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number from 0 to 1 for each problem of an evaluation.
    Metric,
    /// What a sampled answer earns.
    Reward,
    /// Whether a record is kept.
    Filter,
}

impl Kind {
    /// Returns the name of the function that the plugin exports.
    pub(crate) const fn function(self) -> &'static str {
        match self {
            Self::Metric => "metric",
            Self::Reward => "reward",
            Self::Filter => "filter",
        }
    }

    /// Returns the type of the function. It is given texts, each as an address and a length.
    fn function_type(self) -> FunctionType {
        let (texts, result) = match self {
            Self::Metric | Self::Reward => (3, ValueType::F64),
            Self::Filter => (2, ValueType::I32),
        };
        FunctionType { parameters: vec![ValueType::I32; 2 * texts], results: vec![result] }
    }

    /// Returns the signature of the function, as errors and documents write it.
    const fn signature(self) -> &'static str {
        match self {
            Self::Metric => "metric(i32, i32, i32, i32, i32, i32) -> f64",
            Self::Reward => "reward(i32, i32, i32, i32, i32, i32) -> f64",
            Self::Filter => "filter(i32, i32, i32, i32) -> i32",
        }
    }
}

/// A plugin that can be called.
#[derive(Clone)]
pub(crate) struct Plugin {
    module: Arc<Module>,
    kind: Kind,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Reads a plugin, and checks its version, its imports and its exports.
    ///
    /// # Errors
    /// [`PluginError`] says what the plugin lacks, or has and must not have.
    pub(crate) fn load(bytes: &[u8], kind: Kind) -> Result<Self, PluginError> {
        if bytes.len() > MAX_BYTES {
            return Err(PluginError::TooLarge(bytes.len()));
        }
        check_version(&export_names(bytes).map_err(PluginError::Malformed)?)?;
        let module = Module::parse(bytes).map_err(|why| match why {
            Invalid::Import { module, name } => PluginError::Import(format!("{:?}.{:?}", short(&module), short(&name))),
            other => PluginError::Malformed(other),
        })?;
        check_exports(&module, kind)?;
        let plugin = Self { module: Arc::new(module), kind };
        plugin.instance()?;
        Ok(plugin)
    }

    /// Returns the value of a metric for a response.
    ///
    /// # Errors
    /// The call failed, or its result is not from 0 to 1.
    pub(crate) fn metric(&self, prompt: &str, response: &str, reference: &str) -> Result<f64, PluginError> {
        let value = self.number([prompt, response, reference])?;
        if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(PluginError::Outside(value)) }
    }

    /// Returns the reward of a response.
    ///
    /// # Errors
    /// The call failed, or its result is not finite.
    pub(crate) fn reward(&self, prompt: &str, response: &str, reference: &str) -> Result<f64, PluginError> {
        self.number([prompt, response, reference])
    }

    /// Returns whether a record is kept.
    ///
    /// # Errors
    /// The call failed, or its result is neither 0 nor 1.
    pub(crate) fn keeps(&self, prompt: &str, response: &str) -> Result<bool, PluginError> {
        match self.call([prompt, response])? {
            Value::I32(0) => Ok(false),
            Value::I32(1) => Ok(true),
            Value::I32(other) => Err(PluginError::Undecided(other.cast_signed())),
            _ => Err(self.mistyped()),
        }
    }

    fn number(&self, texts: [&str; 3]) -> Result<f64, PluginError> {
        match self.call(texts)? {
            Value::F64(value) if value.is_finite() => Ok(value),
            Value::F64(value) => Err(PluginError::NotFinite { function: self.kind.function(), value }),
            _ => Err(self.mistyped()),
        }
    }

    fn mistyped(&self) -> PluginError {
        PluginError::Mistyped { export: self.kind.function(), right: self.kind.signature() }
    }

    /// Puts the texts into a fresh memory, and calls the function with the address and the length of each.
    fn call<const N: usize>(&self, texts: [&str; N]) -> Result<Value, PluginError> {
        let mut instance = self.instance()?;
        let mut arguments = Vec::with_capacity(2 * N);
        for text in texts {
            let length = u32::try_from(text.len()).map_err(|_| PluginError::Memory)?;
            let room = instance.call(ALLOC, &[Value::I32(length)]).map_err(|trap| PluginError::of(ALLOC, trap))?;
            let [Value::I32(at)] = room[..] else {
                return Err(PluginError::Mistyped { export: ALLOC, right: ALLOC_SIGNATURE });
            };
            instance.write(at, text.as_bytes()).map_err(|_| PluginError::Address { at, length })?;
            arguments.extend([Value::I32(at), Value::I32(length)]);
        }
        let function = self.kind.function();
        let results = instance.call(function, &arguments).map_err(|trap| PluginError::of(function, trap))?;
        results.first().copied().ok_or_else(|| self.mistyped())
    }

    fn instance(&self) -> Result<Instance<'_>, PluginError> {
        Instance::new(&self.module, LIMITS).map_err(|trap| PluginError::of("initial memory", trap))
    }
}

/// Checks the version for which a plugin was written.
fn check_version(exports: &[String]) -> Result<(), PluginError> {
    let versions: Vec<&str> = exports.iter().filter_map(|name| name.strip_prefix(MARKER)).collect();
    match versions.as_slice() {
        [] => Err(PluginError::Unversioned),
        found if found.contains(&VERSION) => Ok(()),
        [other, ..] => Err(PluginError::Version(short(other))),
    }
}

/// Checks that the plugin has what it is called by.
fn check_exports(module: &Module, kind: Kind) -> Result<(), PluginError> {
    let missing = |export, right| Err(PluginError::Missing { export, right });
    let mistyped = |export, right| Err(PluginError::Mistyped { export, right });
    match module.export("memory") {
        Some(Exported::Memory) if module.memory_size() > Some(LIMITS.memory as u64) => return Err(PluginError::Memory),
        Some(Exported::Memory) => {}
        Some(_) => return mistyped("memory", "a memory"),
        None => return missing("memory", "its memory, in which it is given texts"),
    }
    let alloc = FunctionType { parameters: vec![ValueType::I32], results: vec![ValueType::I32] };
    let functions = [(ALLOC, alloc, ALLOC_SIGNATURE), (kind.function(), kind.function_type(), kind.signature())];
    for (name, expected, signature) in functions {
        match module.export(name) {
            Some(Exported::Function(index)) if module.function_type(index) == Some(&expected) => {}
            Some(_) => return mistyped(name, signature),
            None => return missing(name, signature),
        }
    }
    Ok(())
}

/// Cuts a name that a plugin chose.
fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    /// Returns a plugin with these definitions in WebAssembly's text form, beside a memory and an `alloc` that counts upwards.
    pub(crate) fn wat(body: &str) -> Vec<u8> {
        let text = format!(
            r#"(module
                (memory (export "memory") 1)
                (global $free (mut i32) (i32.const 1024))
                (func (export "alloc") (param $length i32) (result i32)
                    (local $at i32)
                    (local.set $at (global.get $free))
                    (global.set $free (i32.add (global.get $free) (local.get $length)))
                    (local.get $at))
                {body})"#
        );
        ::wat::parse_str(text).unwrap()
    }

    /// Returns a plugin whose `metric` and `reward` are 1 if the response has an even number of bytes, and else 0, and whose `filter`
    /// keeps records with a prompt of at most `longest` bytes.
    pub(crate) fn even(longest: usize) -> Vec<u8> {
        let texts = "(param i32 i32 i32 i32 i32 i32) (result f64)";
        let body = "(f64.convert_i32_u (i32.xor (i32.const 1) (i32.and (i32.const 1) (local.get 3))))";
        wat(&format!(
            r#"(func (export "codex_plugin_v1"))
            (func (export "metric") {texts} {body})
            (func (export "reward") {texts} {body})
            (func (export "filter") (param i32 i32 i32 i32) (result i32) (i32.le_u (local.get 1) (i32.const {longest})))"#
        ))
    }
}

#[cfg(test)]
mod tests;
