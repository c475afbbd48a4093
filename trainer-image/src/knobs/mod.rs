//! `codex repo-map` and `codex reasoning-templates`: which settings control a chain, and what the templates of runs set. Reads a
//! file of objects; prints.

mod map;
mod templates;

pub use map::RepoMap;
pub use templates::ReasoningTemplates;
