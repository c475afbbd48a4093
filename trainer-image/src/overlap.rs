//! Refuses outputs that would change an input: a file inside the model that is evaluated, a plot in place of its ledger. Links are
//! resolved. Reads directory entries only.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// Links that are followed before a path counts as unresolvable, as in Linux.
const MAX_LINKS: usize = 40;

/// A path of the command line with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The role in messages, such as `--output` or `data problems`.
    pub(crate) role: String,
    /// The path.
    pub(crate) path: PathBuf,
}

impl Named {
    pub(crate) fn new(role: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { role: role.into(), path: path.into() }
    }

    /// Returns data files, as `--data NAME=FILE` names them.
    pub(crate) fn data(files: &[(String, PathBuf)]) -> impl Iterator<Item = Self> + '_ {
        files.iter().map(|(name, path)| Self::new(format!("data {name}"), path))
    }
}

/// An output would change an input or another output.
#[derive(Debug, thiserror::Error)]
#[error("{}: {} {relation} {} ({}): choose another path", output.role, output.path.display(), other.role, other.path.display())]
pub struct Overlap {
    output: Named,
    relation: &'static str,
    other: Named,
}

/// Checks that no output is an input, is inside one, or is the same as another output. Outputs are files, or directories that are
/// replaced as a whole.
///
/// # Errors
/// The first output that overlaps.
pub(crate) fn check(outputs: &[Named], inputs: &[Named]) -> Result<(), Overlap> {
    for (index, output) in outputs.iter().enumerate() {
        let found = inputs
            .iter()
            .find_map(|input| Some((relation(&output.path, &input.path)?, input)))
            .or_else(|| outputs[..index].iter().find_map(|other| Some((same(&output.path, &other.path)?, other))));
        if let Some((relation, other)) = found {
            return Err(Overlap { output: output.clone(), relation, other: other.clone() });
        }
    }
    Ok(())
}

/// Checks that no input is inside a directory that a command replaces or cleans up.
///
/// # Errors
/// The first input that is.
pub(crate) fn check_inputs_outside(outputs: &[Named], inputs: &[Named]) -> Result<(), Overlap> {
    for input in inputs {
        for output in outputs {
            if relation(&input.path, &output.path).is_some() {
                return Err(Overlap { output: output.clone(), relation: "would replace", other: input.clone() });
            }
        }
    }
    Ok(())
}

/// Returns whether `path` is `whole`, or is inside it.
fn relation(path: &Path, whole: &Path) -> Option<&'static str> {
    same(path, whole).or_else(|| {
        let (path, whole) = (resolve(path)?, resolve(whole)?);
        // A directory has several names below bind mounts, and where case does not matter, so its inode counts too.
        let is_whole =
            |parent: &Path| parent == whole || identity(parent).is_some_and(|it| identity(&whole) == Some(it));
        path.ancestors().skip(1).any(is_whole).then_some("is inside")
    })
}

fn same(path: &Path, other: &Path) -> Option<&'static str> {
    // Two names of one device or pipe are no conflict: nothing is replaced.
    let replaced = !fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir());
    (replaced && resolve(path)? == resolve(other)?).then_some("is the same as")
}

/// Returns the device and inode of a directory.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().filter(fs::Metadata::is_dir).map(|it| (it.dev(), it.ino()))
}

/// Returns the absolute path without links. The last components need not exist. `None` for a loop of links.
fn resolve(path: &Path) -> Option<PathBuf> {
    let mut resolved = std::env::current_dir().unwrap_or_default();
    let mut waiting: Vec<PathBuf> = parts(path);
    let mut links = 0;
    while let Some(part) = waiting.pop() {
        match part.components().next()? {
            Component::RootDir | Component::Prefix(_) => resolved = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => drop(resolved.pop()),
            Component::Normal(name) => match fs::read_link(resolved.join(name)) {
                Ok(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    waiting.extend(parts(&target));
                }
                // It is not a link, or does not exist.
                Err(_) => resolved.push(name),
            },
        }
    }
    Some(resolved)
}

/// Returns the components in reverse order.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components().rev().map(|part| PathBuf::from(part.as_os_str())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn refused(output: &Path, input: &Path) -> Option<String> {
        let named = |role: &str, path: &Path| [Named::new(role, path)];
        check(&named("--output", output), &named("--model", input)).err().map(|error| error.to_string())
    }

    #[test]
    fn an_output_inside_an_input_is_refused_through_links_and_dots() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("model/deep")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink(at("model"), at("link")).unwrap();
        symlink("model/not-yet", at("dangling")).unwrap();
        symlink("file", at("alias")).unwrap();
        for inside in
            ["model", "model/x", "model/deep/a/b", "link", "link/x", "dangling", "dangling/x", "other/../model/x"]
        {
            let told = refused(&at(inside), &at("model")).unwrap_or_else(|| panic!("{inside} was allowed"));
            assert!(told.starts_with("--output: ") && told.ends_with("): choose another path"), "{told}");
            assert!(refused(&at(inside), &at("link")).is_some(), "{inside}, the input by its link");
        }
        assert!(refused(&at("alias"), &at("file")).unwrap().contains(" is the same as --model ("));
        for outside in ["models", "model.partial", "model/../x", "deep", "link/../x", "."] {
            assert_eq!(refused(&at(outside), &at("model")), None, "{outside}");
        }
    }

    #[test]
    fn relative_paths_count_from_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        assert!(refused(Path::new("src/x"), &here.join("src")).is_some());
        assert!(refused(Path::new("src/x"), Path::new("./src/.")).is_some());
        assert_eq!(refused(Path::new("srcs"), Path::new("src")), None);
    }

    #[test]
    fn two_outputs_cannot_be_one_file_but_may_be_one_device() {
        let place = tempfile::tempdir().unwrap();
        let twice = |path: &Path| check(&["--output", "--record-baseline"].map(|role| Named::new(role, path)), &[]);
        let told = twice(&place.path().join("a")).unwrap_err().to_string();
        assert!(told.starts_with("--record-baseline: ") && told.contains(" is the same as --output ("), "{told}");
        twice(Path::new("/dev/null")).unwrap();
    }

    #[test]
    fn an_input_inside_a_replaced_directory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let check = |input: &str| {
            let outputs = [Named::new("--output", place.path().join("run/model"))];
            check_inputs_outside(&outputs, &[Named::new("data mine", place.path().join(input))])
        };
        let told = check("run/model/mine.jsonl").unwrap_err().to_string();
        assert!(told.starts_with("--output: ") && told.contains(" would replace data mine ("), "{told}");
        check("run/mine.jsonl").unwrap();
    }

    #[test]
    fn a_loop_of_links_does_not_hang() {
        let place = tempfile::tempdir().unwrap();
        symlink("b", place.path().join("a")).unwrap();
        symlink("a", place.path().join("b")).unwrap();
        assert_eq!(resolve(&place.path().join("a")), None);
        assert_eq!(refused(&place.path().join("a"), &place.path().join("c")), None);
    }
}
