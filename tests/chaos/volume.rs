//! The volume of the models: memory of a fixed size behind a `local` volume, so that it can be full. Needs root.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codex_tests::{
    Error, Result, Team,
    objects::CLAIM,
    process::output,
    wait::{until, until_gone},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

/// Its size; a chain of the workload needs less than one megabyte.
const SIZE: &str = "192M";
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted volume with the claim of the team. It is unmounted when it is dropped.
pub(crate) struct Volume {
    name: String,
    directory: PathBuf,
}

impl Volume {
    /// Mounts the volume and binds the team's claim to it.
    ///
    /// # Errors
    /// If it cannot be mounted, or the claim is not bound in time.
    pub(crate) async fn create(team: &Team, node: &str) -> Result<Self> {
        let name = format!("{}-models", team.namespace);
        let directory = team.installation.cluster.volume_directory(&name).ok_or_else(|| Error::Impossible {
            what: "the volume of the models has a fixed size".to_owned(),
            why: "only the local cluster's node is this machine".to_owned(),
            state: "run `make chaos` without CLUSTER".to_owned(),
        })?;
        fs::create_dir_all(&directory).map_err(Error::io(format!("creating {}", directory.display())))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={SIZE},mode=0777"), &name]).arg(&directory);
        output(&mut mount)?;
        let volume = Self { name, directory };
        volume.bind(team, node).await?;
        Ok(volume)
    }

    async fn bind(&self, team: &Team, node: &str) -> Result<()> {
        let terms = json!([{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
        ]}]);
        let volume: PersistentVolume = read(json!({
            "metadata": { "name": self.name },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": { "storage": "100Mi" },
                "claimRef": { "namespace": team.namespace, "name": CLAIM },
                "persistentVolumeReclaimPolicy": "Retain",
                "local": { "path": self.directory },
                "nodeAffinity": { "required": { "nodeSelectorTerms": terms } },
            },
        }))?;
        // The claim that the team has goes first: the volume names it, and would be bound to it.
        let claims: Api<PersistentVolumeClaim> = team.api();
        claims.delete(CLAIM, &DeleteParams::background()).await?;
        until_gone(&claims, CLAIM, PATIENCE).await?;
        Api::all(team.client.clone()).create(&PostParams::default(), &volume).await?;
        let claim: PersistentVolumeClaim = read(json!({
            "metadata": { "name": CLAIM },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "100Mi" } },
                "storageClassName": "",
                "volumeName": self.name,
            },
        }))?;
        team.create(&claim).await?;
        until(&claims, CLAIM, "it is bound", PATIENCE, |claim| {
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
        })
        .await?;
        Ok(())
    }

    /// Fills it to the last byte. Returns how many bytes were free.
    ///
    /// # Errors
    /// If a write fails for another reason than a full disk.
    pub(crate) fn fill(&self) -> Result<u64> {
        let path = self.ballast();
        let failed = || Error::io(format!("filling {}", path.display()));
        let mut file = File::create(&path).map_err(failed())?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.write(&piece) {
                Ok(_) => {}
                // Smaller pieces may still fit.
                Err(error) if error.kind() == ErrorKind::StorageFull && piece.len() > 1 => {
                    piece.truncate(piece.len() / 2);
                }
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(failed()(error)),
            }
        }
        Ok(file.metadata().map_err(failed())?.len())
    }

    /// Frees what [`Self::fill`] took.
    ///
    /// # Errors
    /// If the file cannot be deleted.
    pub(crate) fn free(&self) -> Result<()> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("emptying the volume")(error)),
            _ => Ok(()),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    /// Deletes the volume. Nothing may use it any more.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub(crate) async fn remove(self, client: Client) -> Result<()> {
        let volumes: Api<PersistentVolume> = Api::all(client);
        volumes.delete(&self.name, &DeleteParams::background()).await?;
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.directory);
    }
}

/// Unmounts as soon as nothing uses it, and deletes the empty directory.
fn unmount(directory: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(directory).output();
    let _ = fs::remove_dir(directory);
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Client(kube::Error::SerdeError(error)))
}
