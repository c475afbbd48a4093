//! Configurations as command lines compose them: with environment variables, and errors that name arguments. Reads variables.

use codex_configs::{ConfigError, Data, Environment, Resolved, Sources, Training, explain_training};

/// Returns the value of an environment variable.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Composes the configuration of a trainer, of the defaults if there is no template. `set` are the arguments of `--set`.
///
/// # Errors
/// [`ConfigError`] names the argument or key that is wrong and what to write instead.
pub(crate) fn compose(
    template: Option<&str>,
    set: &[String],
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Training>, ConfigError> {
    let environment = Environment::of(&variable);
    let sources = Sources { group: template, config: None, overrides: set, environment };
    let explained = explain_training(&sources, seed, Some(data));
    explained.map(|explained| explained.resolved).map_err(|why| why.error.on_command_line(set))
}
