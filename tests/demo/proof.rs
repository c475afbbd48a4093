//! What anyone can check without the operator: `codex verify` over the served model, and over a changed copy of it. Does I/O.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use codex_crds::{ReasoningPod, TrainingRun};
use codex_provenance::attestation::AttestationKind;
use codex_tests::{
    Error, Result,
    install::{NAMESPACE, SIGNING_KEY, program},
    process::output,
};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use kube::Api;

use crate::{guards::SERVED, tour::Tour};

impl Tour<'_> {
    /// Verifies the served model with `codex verify`, which explains each attestation, and shows that it refuses a changed file.
    pub(crate) async fn verify(&self) -> Result<()> {
        let show = &self.show;
        show.heading(
            "Check the model yourself: codex verify needs its files, the bundles and the key, and no operator",
        );
        let pod = self.api::<ReasoningPod>().get(SERVED).await?;
        let Some(model) = self.model_directory(&pod.spec.training_run).await? else {
            println!(
                "   Left out: the files of this cluster's volumes cannot be read here. README.md says how to verify them in a pod."
            );
            return Ok(());
        };
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let fingerprint = self.evidence(&pod, folder.path()).await?;
        let told = verify(&model, folder.path(), &fingerprint)?;
        println!("   {}", told.trim_end().replace('\n', "\n   "));
        let attested = told.lines().filter(|line| line.starts_with("attested ")).count();
        if attested != AttestationKind::ALL.len() {
            return Err(surprised(&format!("it explains {attested} of {} attestations", AttestationKind::ALL.len())));
        }

        println!("\n   The same with one byte of the weights changed:\n");
        let copy = folder.path().join("changed");
        copy_changed(&model, &copy)?;
        match verify(&copy, folder.path(), &fingerprint) {
            Ok(_) => Err(surprised("it accepts a changed file")),
            Err(Error::Command { output, status, .. }) => {
                println!("   {}\n   ({status})", output.trim_end().replace('\n', "\n   "));
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// Returns the directory of a run's model on this machine; `None` if the volumes of the cluster cannot be read here.
    async fn model_directory(&self, run: &str) -> Result<Option<PathBuf>> {
        let run = self.api::<TrainingRun>().get(run).await?;
        let location = run.status.and_then(|status| status.model).map(|model| model.location).unwrap_or_default();
        let Some((claim, path)) = location.split_once('/') else {
            return Err(surprised("status.model.location names no claim and path"));
        };
        let claim = self.api::<PersistentVolumeClaim>().get(claim).await?;
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        Ok(self.installation.cluster.volume_directory(&volume).map(|directory| directory.join(path)))
    }

    /// Writes the bundles, the attestations and the pinned key into a folder, and returns the fingerprint of the key.
    async fn evidence(&self, pod: &ReasoningPod, folder: &Path) -> Result<String> {
        let status = pod.status.as_ref();
        let manifest = status.and_then(|status| status.manifest.as_ref()).map(|manifest| &manifest.bundle);
        let promotion = status.and_then(|status| status.promotion.as_ref()).map(|promotion| &promotion.bundle);
        let (Some(manifest), Some(promotion)) = (manifest, promotion) else {
            return Err(surprised("the status names no bundles"));
        };
        let entries = AttestationKind::ALL.map(|kind| (kind.entry(), kind.entry()));
        let sources =
            [(manifest, vec![("bundle.json", "oms.json")]), (promotion, vec![("bundle.json", "promotion.json")])];
        for (name, mut files) in sources {
            if name == promotion {
                files.extend(entries);
            }
            write(&self.api::<ConfigMap>().get(name).await?, &files, folder)?;
        }
        let keys: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pinned = keys.get(SIGNING_KEY).await?;
        write(&pinned, &[("key.pem", "key.pem")], folder)?;
        entry(&pinned, "fingerprint").map(str::to_owned)
    }
}

/// Writes entries of a ConfigMap as files.
fn write(map: &ConfigMap, files: &[(&str, &str)], folder: &Path) -> Result<()> {
    for (name, file) in files {
        let path = folder.join(file);
        fs::write(&path, entry(map, name)?).map_err(Error::io(format!("writing {}", path.display())))?;
    }
    Ok(())
}

fn entry<'a>(map: &'a ConfigMap, name: &str) -> Result<&'a str> {
    let found = map.data.as_ref().and_then(|data| data.get(name)).map(String::as_str);
    found.ok_or_else(|| surprised(&format!("a ConfigMap has no entry {name}")))
}

/// Prints the line of `codex verify` for a model, runs it, and returns what it prints.
fn verify(model: &Path, folder: &Path, fingerprint: &str) -> Result<String> {
    let mut words = vec!["--bundle", "oms.json", "--key", "key.pem", "--fingerprint", fingerprint];
    words.extend(["--promotion", "promotion.json", "--ring", "0D_base_"]);
    words.extend(AttestationKind::ALL.into_iter().flat_map(|kind| ["--attestation", kind.entry()]));
    println!("$ codex verify {} {}\n", model.file_name().unwrap_or_default().display(), words.join(" "));
    output(Command::new(program("codex")?).arg("verify").arg(model).args(words).current_dir(folder))
}

/// Copies a model directory, and changes one byte of its weights.
fn copy_changed(model: &Path, copy: &Path) -> Result<()> {
    let failed = || Error::io(format!("copying {}", model.display()));
    fs::create_dir(copy).map_err(failed())?;
    for file in fs::read_dir(model).map_err(failed())? {
        let file = file.map_err(failed())?;
        let mut bytes = fs::read(file.path()).map_err(failed())?;
        let middle = bytes.len() / 2;
        if file.path().extension().is_some_and(|extension| extension == "safetensors")
            && let Some(byte) = bytes.get_mut(middle)
        {
            *byte ^= 1;
        }
        fs::write(copy.join(file.file_name()), bytes).map_err(failed())?;
    }
    Ok(())
}

fn surprised(why: &str) -> Error {
    Error::Impossible {
        what: "codex verify accepts the served model and explains its attestations".to_owned(),
        why: why.to_owned(),
        state: format!("kubectl describe reasoningpod {SERVED}"),
    }
}
