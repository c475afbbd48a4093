//! `codex repo-map`, `codex reasoning-templates` and `codex reasoning-pod`: which settings control a chain, what the templates of runs
//! set, and a ReasoningPod by a deployment preset. Reads a file of objects; prints.

mod deployment;
mod map;
mod templates;

pub use deployment::ReasoningPod;
pub use map::RepoMap;
pub use templates::ReasoningTemplates;
