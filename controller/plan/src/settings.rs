//! The settings of the controller that plans depend on. Pure.

use std::str::FromStr;

use codex_crds::WorkerPod;
use codex_provenance::Sha256;
use serde::{Deserialize, Serialize};

use crate::{device::NeedsGpu, metadata::Component, run_as::RunAs};

/// The settings of the controller that plans depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The version of the controller, for `app.kubernetes.io/version`.
    pub version: String,
    /// The image of trainers whose TrainingRun does not set one.
    pub trainer_image: String,
    /// The image of all evaluators and servers.
    pub worker_image: String,
    /// The image for pods with a GPU, built with CUDA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_image: Option<String>,
    /// The ids of pods whose object names none.
    #[serde(default, skip_serializing_if = "RunAs::is_default")]
    pub run_as: RunAs,
    /// The images whose word about a training a statement calls attested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attested_images: Vec<ImagePattern>,
    /// The URL that pods report to, such as `https://codex-controller.codex-system.svc:8443/v1/reports`.
    pub report_url: String,
    /// The certificates, in PEM, with which pods verify the report endpoint.
    pub report_ca: String,
    /// The namespace of the report endpoint, for the servers' NetworkPolicy.
    pub controller_namespace: String,
    /// The port of the report endpoint in the controller's pods, for the servers' NetworkPolicy.
    pub report_port: i32,
}

impl Settings {
    /// Returns the image of a pod of this component: the one with CUDA if the pod gets a device. `needs` is the setting that needs a GPU.
    ///
    /// # Errors
    /// The sentence that says which setting is missing, or that the pod gets no GPU.
    pub(crate) fn image(&self, component: Component, pod: &WorkerPod, needs: Option<NeedsGpu>) -> Result<&str, String> {
        needs.map_or(Ok(()), |needs| needs.check(pod))?;
        if pod.has_device() {
            let asked = pod.gpu().map_or_else(
                || "spec.pod.resourceClaims names devices".to_owned(),
                |gpu| format!("spec.pod.resources asks for {gpu}"),
            );
            return self.cuda_image.as_deref().ok_or_else(|| {
                format!(
                    "{asked}, but the controller has no image with CUDA, so the device would be idle: an administrator sets \
                     CODEX_CUDA_IMAGE; or remove the request"
                )
            });
        }
        Ok(match component {
            Component::Trainer => &self.trainer_image,
            _ => &self.worker_image,
        })
    }
}

/// Images by digest: `REPOSITORY@sha256:DIGEST`, `sha256:DIGEST` in any repository, or `REPOSITORY@*` for all of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePattern {
    repository: Option<String>,
    digest: Option<Sha256>,
}

impl ImagePattern {
    /// Whether an image that a node reported, such as `registry.example.com/codex@sha256:…`, is one of these.
    pub fn matches(&self, image_id: &str) -> bool {
        // Some runtimes put a scheme before it.
        let image = image_id.split_once("://").map_or(image_id, |(_, image)| image);
        let (repository, digest) = image.rsplit_once('@').map_or((None, image), |(name, digest)| (Some(name), digest));
        let Some(digest) = digest.strip_prefix("sha256:").and_then(|digest| Sha256::from_str(digest).ok()) else {
            return false;
        };
        self.digest.is_none_or(|wanted| wanted == digest)
            && self.repository.as_deref().is_none_or(|wanted| repository == Some(wanted))
    }
}

impl FromStr for ImagePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} does not name images by digest: write REPOSITORY@sha256:DIGEST, sha256:DIGEST or REPOSITORY@*"
            )
        };
        let (repository, digest) = text.rsplit_once('@').map_or((None, text), |(name, digest)| (Some(name), digest));
        let is_name = |name: &str| {
            !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || "@*,".contains(c))
        };
        if !repository.is_none_or(is_name) {
            return Err(wrong());
        }
        let digest = match digest {
            "*" if repository.is_some() => None,
            digest => Some(digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok()).ok_or_else(wrong)?),
        };
        Ok(Self { repository: repository.map(str::to_owned), digest })
    }
}

impl TryFrom<String> for ImagePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ImagePattern> for String {
    fn from(pattern: ImagePattern) -> Self {
        let digest = pattern.digest.map(|digest| format!("sha256:{digest}"));
        match (pattern.repository, digest) {
            (Some(repository), digest) => format!("{repository}@{}", digest.unwrap_or_else(|| "*".to_owned())),
            (None, digest) => digest.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_digest() {
        let (one, other) = ("1".repeat(64), "2".repeat(64));
        let exact = format!("registry.example.com:5000/codex@sha256:{one}");
        let matches = |pattern: &str, image: &str| pattern.parse::<ImagePattern>().unwrap().matches(image);
        assert!(matches(&exact, &exact));
        assert!(matches(&exact, &format!("docker-pullable://{exact}")));
        assert!(
            matches(&format!("sha256:{one}"), &exact) && matches(&format!("sha256:{one}"), &format!("sha256:{one}"))
        );
        assert!(matches("registry.example.com:5000/codex@*", &exact));
        for image in [
            format!("registry.example.com:5000/codex@sha256:{other}"),
            format!("other.example.com/codex@sha256:{one}"),
            format!("evil.example.com/registry.example.com:5000/codex@sha256:{one}"),
            format!("sha256:{one}"),
            "registry.example.com:5000/codex:1".to_owned(),
            String::new(),
        ] {
            assert!(!matches(&exact, &image), "{image}");
        }
        assert!(!matches("registry.example.com:5000/codex@*", "registry.example.com:5000/codex:1"));
        for wrong in
            ["", "*", "codex", "codex:1", "@*", "codex@", "codex@sha256:1", "a*@*", "a b@*", "sha256:", "a@b@*"]
        {
            assert!(wrong.parse::<ImagePattern>().unwrap_err().contains("REPOSITORY@sha256:DIGEST"), "{wrong}");
        }
        for text in [exact, format!("sha256:{one}"), "codex@*".to_owned()] {
            assert_eq!(String::from(text.parse::<ImagePattern>().unwrap()), text);
        }
    }
}
