//! Tools of other projects that verify our files, installed into the cache by version. Does I/O.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result, install, process::output};

/// OpenSSF Model Signing, and a package that it needs and does not require.
const MODEL_SIGNING: [&str; 2] = ["model-signing==1.1.1", "pyOpenSSL==26.4.0"];

/// Returns the `model_signing` command from PyPI, and installs it if necessary.
///
/// # Errors
/// If Python cannot create a virtual environment or the packages cannot be installed.
pub fn model_signing() -> Result<PathBuf> {
    let folder = install::cache().join("venvs").join(MODEL_SIGNING[0].replace("==", "-"));
    let command = folder.join("bin/model_signing");
    // This file marks a complete environment.
    let complete = folder.join("complete");
    if !complete.is_file() {
        output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/pip"));
        output(pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(MODEL_SIGNING))?;
        touch(&complete)?;
    }
    Ok(command)
}

fn touch(file: &Path) -> Result<()> {
    std::fs::write(file, "").map_err(Error::io(format!("writing {}", file.display())))
}
