//! Writes the CRDs. Touches the disk.

use std::{fs, io::Write, path::Path};

/// Why they could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdsError {
    /// The folder or a file in it.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A definition that is no YAML.
    #[error("{file} cannot be rendered: {source}")]
    Render {
        /// Which.
        file: &'static str,
        /// Why.
        #[source]
        source: serde_yaml::Error,
    },
}

/// Writes the three definitions into `folder`, each under a temporary name first.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write(folder: &Path) -> Result<(), CrdsError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| CrdsError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (file, definition) in codex_crds::manifests::all() {
        let text = serde_yaml::to_string(&definition).map_err(|source| CrdsError::Render { file, source })?;
        let path = folder.join(file);
        let temporary = folder.join(format!(".{file}.new"));
        fs::File::create(&temporary)
            .and_then(|mut open| {
                open.write_all(text.as_bytes())?;
                open.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed(&path))?;
    }
    Ok(())
}
