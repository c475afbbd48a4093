//! The included tasks. Pure.

/// An included task: its name, the text of its file, and its data by name.
type Included = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// All of them.
const TASKS: &[Included] = &[
    (
        "tiny_wikitext",
        include_str!("tasks/tiny_wikitext.yaml"),
        &[("tiny_wikitext.jsonl", include_str!("tasks/tiny_wikitext.jsonl"))],
    ),
    (
        "toy_copy_task",
        include_str!("tasks/toy_copy_task.yaml"),
        &[("toy_copy_task.jsonl", include_str!("tasks/toy_copy_task.jsonl"))],
    ),
];

/// Returns the task of this name.
pub(super) fn included(name: &str) -> Option<Included> {
    TASKS.iter().find(|(known, ..)| *known == name).copied()
}

/// Returns the names of all of them.
pub(super) fn names() -> Vec<&'static str> {
    TASKS.iter().map(|(name, ..)| *name).collect()
}
