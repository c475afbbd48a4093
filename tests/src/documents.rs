//! The YAML and the metric names in documents and samples, so that tests can check them. Reads files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;

use crate::{Error, Result, install::repository};

/// A piece of YAML and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// The file; in Markdown with the line.
    pub place: String,
    /// The text. May hold several YAML documents.
    pub text: String,
}

impl Snippet {
    /// Parses the objects in the text.
    ///
    /// # Errors
    /// If the text is not valid YAML.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let unreadable =
            |error: serde_yaml::Error| Error::Unreadable { path: PathBuf::from(&self.place), why: error.to_string() };
        serde_yaml::Deserializer::from_str(&self.text).map(|it| Value::deserialize(it).map_err(unreadable)).collect()
    }
}

/// Folders of `manifests/` with objects that users change and apply themselves.
const EXAMPLES: [&str; 3] = ["samples", "autoscaling", "argocd"];
/// Files and folders in them that hold no objects of a cluster: input of kustomize, values of a Helm chart of others, and the sources of
/// `customizations.yaml`.
const OTHER: [&str; 3] = ["kustomization.yaml", "prometheus-adapter.yaml", "resource_customizations"];

/// Returns every YAML of the README, of `docs/`, and of [`EXAMPLES`].
///
/// # Errors
/// If a file cannot be read.
pub fn snippets() -> Result<Vec<Snippet>> {
    let mut snippets = Vec::new();
    for path in markdown()? {
        snippets.extend(fenced(&path.display().to_string(), &read(&path)?));
    }
    for folder in EXAMPLES.map(|folder| repository().join("manifests").join(folder)) {
        for path in below(&folder)? {
            let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            let own = path.strip_prefix(&folder).unwrap_or(&path);
            if is_yaml && own.iter().all(|name| OTHER.iter().all(|other| name != *other)) {
                snippets.push(Snippet { place: path.display().to_string(), text: read(&path)? });
            }
        }
    }
    Ok(snippets)
}

/// Returns every metric name of this project that the README or `docs/` mention, with the file.
///
/// # Errors
/// If a file cannot be read.
pub fn metrics() -> Result<BTreeSet<(String, String)>> {
    let mut found = BTreeSet::new();
    for path in markdown()? {
        let place = path.display().to_string();
        found.extend(metric_names(&read(&path)?).into_iter().map(|name| (name, place.clone())));
    }
    Ok(found)
}

/// Returns the metric names in a text: words that begin with `codex_ml_` or `codex_controller_`.
pub fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = |word: &&str| {
        ["codex_ml_", "codex_controller_"].iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix))
    };
    words.filter(ours).map(str::to_owned).collect()
}

/// Lists the README and every page of `docs/`.
fn markdown() -> Result<Vec<PathBuf>> {
    let root = repository();
    let mut pages = vec![root.join("README.md")];
    pages.extend(below(&root.join("docs"))?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "md")));
    Ok(pages)
}

/// Lists the files of a folder and of its subfolders, sorted by name. A missing folder has no files.
fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || Error::io(format!("reading {}", folder.display()));
    let mut files = Vec::new();
    if !folder.is_dir() {
        return Ok(files);
    }
    let mut entries: Vec<_> =
        fs::read_dir(folder).map_err(reading())?.collect::<std::io::Result<_>>().map_err(reading())?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() { files.extend(below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))
}

/// Returns the blocks between "```yaml" and "```".
fn fenced(place: &str, text: &str) -> Vec<Snippet> {
    let mut snippets = Vec::new();
    let mut open: Option<Snippet> = None;
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.trim_end()) {
            (None, "```yaml" | "```yml") => {
                open = Some(Snippet { place: format!("{place}:{}", index + 2), text: String::new() });
            }
            (Some(_), "```") => snippets.extend(open.take()),
            (Some(snippet), line) => {
                snippet.text.push_str(line);
                snippet.text.push('\n');
            }
            (None, _) => {}
        }
    }
    snippets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fenced_yaml_is_found_with_its_line() {
        let text = "# Title\n\n```yaml\na: 1\nb: 2\n```\n\n```sh\nls\n```\n";
        assert_eq!(fenced("R.md", text), [Snippet { place: "R.md:4".into(), text: "a: 1\nb: 2\n".into() }]);
    }

    #[test]
    fn metric_names_are_found_anywhere_in_a_text() {
        let names =
            metric_names("`codex_ml_training_loss`, codex_controller_reconciles_total{kind}; codex_ml_ and codex_mlx");
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["codex_controller_reconciles_total", "codex_ml_training_loss"]
        );
    }

    #[test]
    fn documents_name_only_metrics_of_the_contract() {
        let promised: BTreeSet<_> = codex_metrics::all().map(|metric| metric.name).collect();
        let unknown: Vec<_> = metrics().unwrap().into_iter().filter(|(name, _)| !promised.contains(&**name)).collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
    }

    #[test]
    fn the_readme_has_yaml() {
        assert!(snippets().unwrap().len() >= 3);
    }

    #[test]
    fn every_snippet_holds_kubernetes_objects() {
        for snippet in snippets().unwrap() {
            let objects = snippet.objects().unwrap();
            assert!(!objects.is_empty(), "{}", snippet.place);
            for object in objects {
                assert!(object["apiVersion"].is_string() && object["kind"].is_string(), "{}", snippet.place);
            }
        }
    }

    /// The end-to-end tests apply fenced YAML only, so YAML outside fences would be untested.
    #[test]
    fn no_yaml_stands_outside_fences() {
        const KEYS: [&str; 5] = ["apiVersion:", "kind:", "metadata:", "spec:", "patches:"];
        for path in markdown().unwrap() {
            let (text, mut inside) = (read(&path).unwrap(), false);
            for (index, line) in text.lines().enumerate() {
                match line.trim_end() {
                    "```yaml" | "```yml" => inside = true,
                    "```" => inside = false,
                    line => {
                        let yaml = KEYS.iter().any(|key| line.trim_start().starts_with(key));
                        assert!(inside || !yaml, "{}:{}: {line}", path.display(), index + 1);
                    }
                }
            }
        }
    }

    /// The example of `.pre-commit-config.yaml` is YAML, and every hook in it exists. A test of `codex` runs the entries.
    #[test]
    fn the_example_of_pre_commit_names_hooks_that_exist() {
        let root = repository();
        let hooks: Vec<Value> = serde_yaml::from_str(&read(&root.join(".pre-commit-hooks.yaml")).unwrap()).unwrap();
        let known: Vec<&str> = hooks.iter().map(|hook| hook["id"].as_str().unwrap()).collect();
        let page = read(&root.join("docs/reference.md")).unwrap();
        let lines = page.lines().skip_while(|line| *line != "    repos:").take_while(|line| line.starts_with("    "));
        let example: Value = serde_yaml::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        let repositories = example["repos"].as_array().unwrap();
        assert!(repositories.iter().all(|it| it["repo"].is_string() && it["rev"].is_string()), "{example}");
        let named = repositories.iter().flat_map(|it| it["hooks"].as_array().unwrap());
        let named: Vec<&str> = named.map(|hook| hook["id"].as_str().unwrap()).collect();
        assert_eq!(named, known, "docs/reference.md shows every hook of .pre-commit-hooks.yaml");
    }

    /// Every line names a test, and each test that it names exists.
    #[test]
    fn every_attack_has_its_test() {
        let root = repository();
        let text = read(&root.join("docs/security.md")).unwrap();
        let section = text.split("\n## ").find(|section| section.starts_with("Attacks\n")).unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert!(rows.len() >= 40, "{} attacks", rows.len());
        for row in rows {
            let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
            let (mut file, mut found) = (None, 0);
            for word in tests.split('`').skip(1).step_by(2) {
                if is_rust(Path::new(word)) {
                    file = Some(read(&root.join(word)).unwrap());
                } else {
                    let file = file.as_ref().unwrap_or_else(|| panic!("{row}: a file comes first"));
                    assert!(file.contains(&format!("fn {word}(")), "{row}: {word} does not exist");
                    found += 1;
                }
            }
            assert!(found > 0, "{row}: it names no test");
        }
    }

    /// Every line of the threat model names a file with tests, and each file that it names exists.
    #[test]
    fn every_line_of_the_threat_model_names_its_tests() {
        let root = repository();
        let text = read(&root.join("docs/security.md")).unwrap();
        let (_, table) = text.split_once("\n| Who | Can | Cannot, and the test that shows it |").unwrap();
        let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with("| ")).collect();
        assert!(rows.len() >= 15, "{} lines", rows.len());
        for row in rows {
            let files: Vec<_> = row.split('`').skip(1).step_by(2).map(Path::new).filter(|it| is_rust(it)).collect();
            let missing = files.iter().find(|file| !["", "tests"].iter().any(|it| root.join(it).join(file).is_file()));
            assert!(!files.is_empty() && missing.is_none(), "{row}: {missing:?}");
        }
    }

    fn is_rust(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == "rs")
    }

    #[test]
    fn contributing_names_every_file_with_unsafe_code() {
        let root = repository();
        let text = read(&root.join("CONTRIBUTING.md")).unwrap();
        let paragraph = text.split("\n\n").find(|paragraph| paragraph.starts_with("`unsafe` occurs in")).unwrap();
        let named: BTreeSet<_> =
            paragraph.split('`').filter(|word| is_rust(Path::new(word))).map(str::to_owned).collect();
        let folders = [
            "crds",
            "configs",
            "json",
            "http",
            "metrics",
            "reports",
            "verdict",
            "provenance",
            "controller",
            "trainer-image",
            "tests",
        ];
        let files = folders.iter().flat_map(|folder| below(&root.join(folder)).unwrap());
        let uses = |path: &PathBuf| {
            let markers = ["{", "fn", "impl", "extern"].map(|after| format!("{} {after}", "unsafe"));
            let is_use =
                |line: &str| !line.trim_start().starts_with("//") && markers.iter().any(|it| line.contains(it));
            is_rust(path) && read(path).unwrap().lines().any(is_use)
        };
        let found = files.filter(uses).map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
        assert_eq!(named, found.collect());
    }

    #[test]
    fn the_design_page_lists_every_room() {
        /// Lists the folders below `src` that hold sources, except tests and their files.
        fn rooms(folder: &Path, inside: bool, found: &mut BTreeSet<String>) {
            const OTHER: [&str; 6] = ["tests", "fixtures", "snapshots", "target", "tools", "node_modules"];
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
                let name = entry.file_name().unwrap().to_string_lossy().into_owned();
                if OTHER.contains(&name.as_str()) || name.starts_with('.') {
                    continue;
                }
                if inside && entry.join("mod.rs").is_file() {
                    let relative = entry.strip_prefix(repository()).unwrap();
                    found.insert(format!("{}/", relative.display()));
                }
                rooms(&entry, inside || name == "src", found);
            }
        }
        let text = read(&repository().join("docs/design.md")).unwrap();
        let (_, text) = text.split_once("## The rooms").unwrap();
        let (text, _) = text.split_once("\n## ").unwrap();
        let listed: BTreeSet<_> =
            text.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
        for room in listed.iter().filter(|room| room.contains('/')) {
            assert!(repository().join(room).is_dir(), "docs/design.md lists {room}, which does not exist");
        }
        let mut found = BTreeSet::new();
        rooms(&repository(), false, &mut found);
        let missing: Vec<_> = found.difference(&listed).collect();
        assert!(missing.is_empty(), "docs/design.md does not list {missing:?}");
    }
}
