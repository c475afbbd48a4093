//! The pod template of all three kinds: `restricted`, without API access, with a token that only the report endpoint accepts.
//! Pure.

use std::collections::BTreeMap;

use codex_crds::WorkerPod;
use codex_reports::AUDIENCE;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    KeyToPath, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, PodSpec, Probe, ProjectedVolumeSource,
    SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, Toleration, Volume, VolumeMount,
    VolumeProjection,
};

use crate::{
    metadata::{Component, Owner},
    settings::Settings,
};

/// The lifetime of a token in seconds; the kubelet renews it earlier.
const TOKEN_SECONDS: i64 = 3_600;
/// The mount path of the object's own ConfigMap.
pub(crate) const CONFIG: &str = "/etc/codex";
/// The key of the resolved configuration in it.
pub const CONFIG_FILE: &str = "config.yaml";
/// The key of the CA certificates in it.
pub(crate) const CA: &str = "ca.crt";
const TOKEN: &str = "/var/run/secrets/codex";

/// The parts of a pod that differ between the three kinds.
pub(crate) struct Template<'a> {
    pub(crate) owner: &'a Owner,
    pub(crate) component: Component,
    pub(crate) settings: &'a Settings,
    pub(crate) image: &'a str,
    pub(crate) args: Vec<String>,
    /// Environment variables besides those that all pods have.
    pub(crate) env: Vec<EnvVar>,
    pub(crate) worker: &'a WorkerPod,
    /// The ConfigMap for [`CONFIG`].
    pub(crate) config_map: String,
    pub(crate) mounts: Mounts,
    /// `Never` for the pods of a Job; `None` for the default, `Always`.
    pub(crate) restart_policy: Option<&'static str>,
    /// Seconds from SIGTERM to SIGKILL.
    pub(crate) grace_seconds: i64,
    pub(crate) ports: Vec<Port>,
    pub(crate) probes: Probes,
}

/// The name of [`Port::Admin`].
pub(crate) const ADMIN: &str = "admin";

/// A port of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port {
    /// Requests.
    Http(i32),
    /// Probes, `/metrics` and the status, for the cluster only.
    Admin(i32),
    /// `/metrics` only.
    Metrics(i32),
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Admin(_) => ADMIN,
            Self::Metrics(_) => "metrics",
        }
    }

    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Http(number) | Self::Admin(number) | Self::Metrics(number) => number,
        }
    }

    fn declared(self) -> ContainerPort {
        ContainerPort { name: Some(self.name().to_owned()), container_port: self.number(), ..ContainerPort::default() }
    }

    /// Returns its number if it has `/metrics`.
    fn scraped(self) -> Option<i32> {
        match self {
            Self::Http(_) => None,
            Self::Admin(number) | Self::Metrics(number) => Some(number),
        }
    }
}

/// The probes of a pod.
#[derive(Default)]
pub(crate) struct Probes {
    pub(crate) startup: Option<Probe>,
    pub(crate) liveness: Option<Probe>,
    pub(crate) readiness: Option<Probe>,
}

/// Volumes and their mounts. A claim becomes one volume however often it is mounted, because a pod with two volumes of the
/// same claim may never start.
#[derive(Default)]
pub(crate) struct Mounts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

/// The access of a pod to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads and writes.
    Writable,
    /// Reads, while other pods may write.
    ReadOnly,
    /// Reads; the kubelet changes neither owner nor group of the user's files.
    Untouched,
}

impl Mounts {
    /// Mounts a folder of a claim. An empty `sub_path` is the whole volume.
    pub(crate) fn claim(&mut self, claim: &str, sub_path: &str, path: &str, access: Access) {
        let untouched = (access == Access::Untouched).then_some(true);
        let found = self.volumes.iter_mut().find_map(|volume| {
            let name = volume.name.clone();
            volume.persistent_volume_claim.as_mut().filter(|source| source.claim_name == claim).map(|it| (name, it))
        });
        let name = if let Some((name, source)) = found {
            source.read_only = source.read_only.and(untouched);
            name
        } else {
            let name = format!("claim-{}", self.volumes.len());
            self.volumes.push(Volume {
                name: name.clone(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.to_owned(),
                    read_only: untouched,
                }),
                ..Volume::default()
            });
            name
        };
        let sub_path = Some(sub_path).filter(|sub| !sub.is_empty());
        self.mount(name, path, sub_path, access != Access::Writable);
    }

    /// Mounts a ConfigMap, or one key of it, as a folder.
    pub(crate) fn config_map(&mut self, name: &str, key: Option<&str>, path: &str) {
        let volume = format!("files-{}", self.volumes.len());
        self.volumes.push(Volume {
            name: volume.clone(),
            config_map: Some(ConfigMapVolumeSource {
                name: name.to_owned(),
                items: key
                    .map(|key| vec![KeyToPath { key: key.to_owned(), path: key.to_owned(), ..KeyToPath::default() }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
        self.mount(volume, path, None, true);
    }

    /// Mounts a Secret, or some keys of it, as a folder. The kubelet updates the files when the Secret changes.
    pub(crate) fn secret(&mut self, name: &str, keys: Option<&[&str]>, path: &str) {
        let volume = format!("files-{}", self.volumes.len());
        let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), ..KeyToPath::default() };
        self.volumes.push(Volume {
            name: volume.clone(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(name.to_owned()),
                items: keys.map(|keys| keys.iter().map(item).collect()),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
        self.mount(volume, path, None, true);
    }

    fn mount(&mut self, name: String, path: &str, sub_path: Option<&str>, read_only: bool) {
        self.mounts.push(VolumeMount {
            name,
            mount_path: path.to_owned(),
            sub_path: sub_path.map(str::to_owned),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
    }
}

impl Template<'_> {
    pub(crate) fn spec(self) -> PodSpec {
        let env = self.variables();
        let run_as = self.settings.run_as;
        let Self { component, image, args, worker, config_map, mut mounts, restart_policy, .. } = self;
        mounts.config_map(&config_map, None, CONFIG);
        mounts.volumes.push(token());
        mounts.mount("token".to_owned(), TOKEN, None, true);
        mounts.volumes.push(Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
        mounts.mount("tmp".to_owned(), "/tmp", None, false);
        if let Some(size) = &worker.shared_memory {
            mounts.volumes.push(Volume {
                name: "shm".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(size.clone()),
                }),
                ..Volume::default()
            });
            mounts.mount("shm".to_owned(), "/dev/shm", None, false);
        }
        let container = Container {
            name: component.name().to_owned(),
            image: Some(image.to_owned()),
            args: Some(args),
            env: Some(env),
            resources: worker.resources.clone(),
            volume_mounts: Some(mounts.mounts),
            ports: Some(self.ports.iter().map(|port| port.declared()).collect())
                .filter(|ports: &Vec<_>| !ports.is_empty()),
            startup_probe: self.probes.startup,
            liveness_probe: self.probes.liveness,
            readiness_probe: self.probes.readiness,
            termination_message_path: Some("/dev/termination-log".to_owned()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
                ..SecurityContext::default()
            }),
            ..Container::default()
        };
        PodSpec {
            containers: vec![container],
            volumes: Some(mounts.volumes),
            restart_policy: restart_policy.map(str::to_owned),
            termination_grace_period_seconds: Some(self.grace_seconds),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(run_as.security_context(worker.security_context.as_deref())),
            node_selector: Some(worker.node_selector.clone()).filter(|labels| !labels.is_empty()),
            tolerations: Some(tolerations(worker)).filter(|items| !items.is_empty()),
            affinity: worker.affinity.clone(),
            priority_class_name: worker.priority_class_name.clone(),
            runtime_class_name: worker.runtime_class_name.clone(),
            resource_claims: Some(worker.resource_claims.clone()).filter(|claims| !claims.is_empty()),
            image_pull_secrets: Some(worker.image_pull_secrets.clone()).filter(|items| !items.is_empty()),
            ..PodSpec::default()
        }
    }

    /// Returns the annotations by which Prometheus discovers the metrics port.
    pub(crate) fn scraped(&self) -> Option<BTreeMap<String, String>> {
        let number = self.ports.iter().find_map(|port| port.scraped())?;
        let annotations = [("prometheus.io/scrape", "true".to_owned()), ("prometheus.io/port", number.to_string())];
        Some(annotations.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// Returns the variables of the spec, then ours: the later one of two equal names counts.
    fn variables(&self) -> Vec<EnvVar> {
        let plain = |name: &str, value: &str| EnvVar {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            ..EnvVar::default()
        };
        let field = |name: &str, path: &str| EnvVar {
            name: name.to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        };
        let mut env = self.env.clone();
        env.extend([
            plain("CODEX_REPORT_URL", &self.settings.report_url),
            plain("CODEX_REPORT_CA", &format!("{CONFIG}/{CA}")),
            plain("CODEX_REPORT_TOKEN", &format!("{TOKEN}/token")),
            field("CODEX_POD_UID", "metadata.uid"),
            plain("CODEX_OBJECT_KIND", self.owner.kind),
            plain("CODEX_OBJECT_NAMESPACE", &self.owner.namespace),
            plain("CODEX_OBJECT_NAME", &self.owner.name),
            plain("CODEX_OBJECT_UID", &self.owner.uid),
            plain("CODEX_GRACE_SECONDS", &self.grace_seconds.to_string()),
        ]);
        if self.component == Component::Trainer {
            // The trainer records node and image beside its results.
            env.push(field("CODEX_NODE_NAME", "spec.nodeName"));
            env.extend(self.image.split_once('@').map(|(_, digest)| plain("CODEX_IMAGE_DIGEST", digest)));
        }
        env.extend(self.ports.iter().filter_map(|port| match port {
            Port::Metrics(number) => Some(plain("CODEX_METRICS_ADDRESS", &format!("0.0.0.0:{number}"))),
            Port::Http(_) | Port::Admin(_) => None,
        }));
        env
    }
}

/// Returns the tolerations of the spec, and that of the taint that nodes with the pod's GPU usually have: the name of the resource,
/// with the effect `NoSchedule`.
fn tolerations(worker: &WorkerPod) -> Vec<Toleration> {
    let mut tolerations = worker.tolerations.clone();
    tolerations.extend(worker.gpu().map(|gpu| Toleration {
        key: Some(gpu.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        ..Toleration::default()
    }));
    tolerations
}

fn token() -> Volume {
    Volume {
        name: "token".to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(AUDIENCE.to_owned()),
                    expiration_seconds: Some(TOKEN_SECONDS),
                    path: "token".to_owned(),
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Returns the path of a model in a pod that mounts a whole claim at `mount`. `path` is the folder on the claim.
pub(crate) fn below(mount: &str, path: &str) -> String {
    format!("/{}", join(&[mount, path]))
}

/// Whether the folder `inner` of a claim is the folder `outer` or lies in it. Neither contains `..`.
pub(crate) fn is_within(inner: &str, outer: &str) -> bool {
    fn parts(path: &str) -> Vec<&str> {
        path.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
    }
    parts(inner).starts_with(&parts(outer))
}

/// Joins the parts of a path on a volume. Empty parts and outer slashes are ignored.
pub(crate) fn join(parts: &[&str]) -> String {
    parts.iter().map(|part| part.trim_matches('/')).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}
