//! `docs/architecture.md` is what the workspace and the plans of the controller give.
//!
//! The first diagram comes from `cargo metadata`, the second one from the stories of `controller/plan`, whose snapshots its own tests
//! compare with the code: a child is drawn if a plan of some story wants one. Other tests here read sources, too: which programs they start,
//! and whether the tests that `docs/models.md` names exist.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const REGENERATE: &str = "UPDATE=1 cargo test --release --locked --workspace --test architecture";
/// Fields of `Desired` that hold no children to create.
const NO_CHILDREN: [&str; 4] = ["expired", "foreign_slices", "kept", "shared_policies"];
/// Children that no story has: the shadow of a cycle, which `controller/plan/tests/plans/redeployed/` plans.
const OTHERS: [(&str, &str); 1] = [("ReasoningPod", "reasoning_pods")];

/// Sources of the programs that pods run.
const IN_PODS: [&str; 5] =
    ["trainer-image/src", "trainer-image/engine/src", "trainer-image/wasm/src", "controller/src", "http/src"];
/// Files among them that start a program: this one again, to prove that a training resumes, and to measure its memory in a test.
const STARTERS: [&str; 2] = ["trainer-image/src/model/loading.rs", "trainer-image/src/training/checks/prove_resume.rs"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A crate of the workspace.
#[derive(Debug)]
struct Crate {
    /// The directory, relative to the repository.
    place: String,
    /// Its programs.
    programs: BTreeSet<String>,
    /// Crates of the workspace that it needs to be built, without those of tests.
    needs: BTreeSet<String>,
}

/// Returns the crates of the workspace by name.
fn crates() -> BTreeMap<String, Crate> {
    let cargo = env::var_os("CARGO").unwrap();
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"];
    let ended = Command::new(cargo).args(arguments).current_dir(repository()).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let metadata: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let root = text(&metadata["workspace_root"]);
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let one = |package: &Value| {
        let manifest = text(&package["manifest_path"]);
        let place = Path::new(&manifest).parent().unwrap().strip_prefix(&root).unwrap().display().to_string();
        let targets = package["targets"].as_array().unwrap().iter();
        let programs =
            targets.filter(|target| target["kind"][0] == "bin").map(|target| text(&target["name"])).collect();
        let all = package["dependencies"].as_array().unwrap().iter().filter(|it| it["kind"].is_null());
        let needs = all.map(|it| text(&it["name"])).filter(|name| names.contains(name)).collect();
        (text(&package["name"]), Crate { place, programs, needs })
    };
    packages.iter().map(one).collect()
}

/// Returns the crates that `name` needs through others.
fn indirect(crates: &BTreeMap<String, Crate>, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&String> = crates[name].needs.iter().flat_map(|needed| &crates[needed].needs).collect();
    while let Some(needed) = open.pop() {
        if found.insert(needed.clone()) {
            open.extend(&crates[needed].needs);
        }
    }
    found
}

fn crates_diagram(crates: &BTreeMap<String, Crate>) -> String {
    let mut lines = vec!["flowchart TD".to_owned()];
    for (name, Crate { place, programs, .. }) in crates {
        let all: Vec<&str> = programs.iter().map(String::as_str).collect();
        let shown = if all.is_empty() { String::new() } else { format!("<br/><i>{}</i>", all.join(", ")) };
        lines.push(format!("    {name}[\"{name}<br/>{place}/{shown}\"]"));
    }
    for (name, Crate { needs, .. }) in crates {
        let implied = indirect(crates, name);
        lines.extend(needs.difference(&implied).map(|needed| format!("    {name} --> {needed}")));
    }
    let programs: Vec<&str> =
        crates.iter().filter(|(_, it)| !it.programs.is_empty()).map(|(name, _)| name.as_str()).collect();
    lines.push("    classDef program stroke-width:3px".to_owned());
    lines.push(format!("    class {} program", programs.join(",")));
    lines.join("\n")
}

/// Returns the kind of the objects in a field of `Desired`: `network_policies` holds `NetworkPolicy` objects.
fn kind(field: &str) -> String {
    let one =
        field.strip_suffix("ies").map_or_else(|| field.trim_end_matches('s').to_owned(), |stem| format!("{stem}y"));
    let word = |word: &str| match word {
        "http" => "HTTP".to_owned(),
        _ => word[..1].to_uppercase() + &word[1..],
    };
    one.split('_').map(word).collect()
}

/// Returns the fields of `Desired` with children to create.
fn fields() -> BTreeSet<String> {
    let source = fs::read_to_string(repository().join("controller/plan/src/plan.rs")).unwrap();
    let (_, body) = source.split_once("pub struct Desired {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let names =
        body.lines().filter_map(|line| Some(line.trim().strip_prefix("pub ")?.split_once(": Vec<")?.0.to_owned()));
    names.filter(|name| !NO_CHILDREN.contains(&name.as_str())).collect()
}

/// Returns the kinds of children of each reconciled kind: a story shows the plan at its beginning, and then what changes in it, in the form
/// of diff. An empty list stands on the line of its field.
fn children() -> BTreeMap<&'static str, BTreeSet<String>> {
    let (folder, fields) = (repository().join("controller/plan/tests/plans/snapshots"), fields());
    let owners = [("run_", "TrainingRun"), ("evaluation_", "Evaluation"), ("pod_", "ReasoningPod")];
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(story) = name.strip_prefix("plans__stories__") else { continue };
        let owner = owners.iter().find(|(prefix, _)| story.starts_with(prefix));
        let (_, owner) = owner.unwrap_or_else(|| panic!("{name} is about none of {owners:?}"));
        for line in fs::read_to_string(&path).unwrap().lines() {
            let added = ["+  ", "   ", "  "].into_iter().find_map(|before| line.strip_prefix(before));
            let Some(field) = added.and_then(|field| field.strip_suffix(':')).filter(|it| fields.contains(*it)) else {
                continue;
            };
            found.entry(*owner).or_default().insert(kind(field));
        }
    }
    for (owner, field) in OTHERS {
        assert!(found.entry(owner).or_default().insert(kind(field)), "a story has {field}: remove it from OTHERS");
    }
    for field in fields {
        let child = kind(&field);
        assert!(
            found.values().any(|kinds| kinds.contains(&child)),
            "no story has {field} of Desired: add one, or name it in OTHERS"
        );
    }
    assert_eq!(found.len(), owners.len(), "{found:?}");
    found
}

fn children_diagram(children: &BTreeMap<&str, BTreeSet<String>>) -> String {
    let mut lines = vec!["flowchart LR".to_owned()];
    for (owner, kinds) in children {
        lines.extend(kinds.iter().map(|kind| format!("    {owner} --> {kind}")));
    }
    let owners: Vec<&str> = children.keys().copied().collect();
    lines.push("    classDef ours stroke-width:3px".to_owned());
    lines.push(format!("    class {} ours", owners.join(",")));
    lines.join("\n")
}

fn page() -> String {
    format!(
        "<!-- Generated: {REGENERATE} -->\n\
         # Architecture\n\n\
         Both diagrams are generated from the code, and a test compares them. [design.md](design.md) says what the parts are for.\n\n\
         ## Crates\n\n\
         An arrow goes from a crate to one that it needs to be built. Arrows that others imply are left out, and so are the needs of tests.\n\
         Crates with a thick border have the programs that are named in them.\n\n\
         ```mermaid\n{}\n```\n\n\
         ## Objects\n\n\
         An arrow goes from a kind of `codex-ml.dev` to the kinds of objects that its plan creates. The object is their owner, so deleting it\n\
         deletes them. Pods belong to Jobs and Deployments. Signed bundles are missing here: they are [effects](design.md#the-loop-the-same-for-all-three-kinds)\n\
         of a plan and not children.\n\n\
         ```mermaid\n{}\n```\n",
        crates_diagram(&crates()),
        children_diagram(&children())
    )
}

#[test]
fn the_diagrams_are_those_of_the_code() {
    let (path, expected) = (repository().join("docs/architecture.md"), page());
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/architecture.md is not what the code gives: regenerate it with\n    {REGENERATE}\n"
    );
}

#[test]
fn fields_of_plans_are_kinds() {
    let named = ["config_maps", "jobs", "network_policies", "http_routes", "pod_disruption_budgets"].map(kind);
    assert_eq!(named, ["ConfigMap", "Job", "NetworkPolicy", "HTTPRoute", "PodDisruptionBudget"]);
}

/// Every arrow leads to a known crate, and the crates at both ends of the layers are where they belong.
#[test]
fn arrows_that_others_imply_are_left_out() {
    let crates = crates();
    let drawn = crates_diagram(&crates);
    assert!(crates["codex"].needs.contains("codex-provenance"));
    assert!(!drawn.contains("    codex --> codex-provenance\n"), "codex-signing implies it: {drawn}");
    assert!(
        drawn.contains("    codex --> codex-signing\n") && drawn.contains("    codex-controller --> codex-plan\n"),
        "{drawn}"
    );
}

/// Adds the sources below a folder that are not tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What a model writes, code and calls of tools included, is never run: programs in pods start no others.
#[test]
fn programs_in_pods_start_no_others() {
    let mut files = Vec::new();
    for place in IN_PODS {
        sources(&repository().join(place), &mut files);
    }
    assert!(files.len() > 300, "{} files", files.len());
    let starts = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let imports = |line: &str| line.contains("process::") && line.contains("Command");
        text.split("#[cfg(test)]\nmod tests {").next().is_some_and(|text| text.lines().any(imports))
    };
    let relative = |path: &PathBuf| path.strip_prefix(repository()).unwrap().display().to_string();
    let found: BTreeSet<String> = files.iter().filter(|path| starts(path)).map(relative).collect();
    assert_eq!(found, STARTERS.map(str::to_owned).into());
}

/// Adds the names of the functions in the sources below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    let name = |line: &str| {
        let line = line.trim_start();
        Some(line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?.split(['(', '<']).next()?.to_owned())
    };
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(fs::read_to_string(path).unwrap().lines().filter_map(name));
        }
    }
}

/// Each row about models, formats and devices names a test that shows it, and every test that the page names exists.
#[test]
fn what_models_are_said_to_do_is_tested() {
    let mut known = BTreeSet::new();
    for place in ["controller", "trainer-image"] {
        functions(&repository().join(place), &mut known);
    }
    let is_name = |word: &&str| {
        let of_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        word.matches('_').count() > 1 && word.chars().all(of_name)
    };
    let (mut in_table, mut rows) = (false, 0);
    for line in fs::read_to_string(repository().join("docs/models.md")).unwrap().lines() {
        let named =
            |text: &str| text.split('`').skip(1).step_by(2).filter(is_name).map(str::to_owned).collect::<Vec<_>>();
        for test in named(line) {
            assert!(known.contains(&test), "there is no test {test}: {line}");
        }
        if in_table && line.starts_with('|') {
            let last = line.trim_end_matches('|').rsplit('|').next().unwrap();
            assert!(!named(last).is_empty(), "this row names no test: {line}");
            rows += 1;
        }
        in_table = line.starts_with("|---") || in_table && line.starts_with('|');
    }
    assert!(rows > 15, "{rows} rows");
}
