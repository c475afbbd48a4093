//! What keeps a model from being served: a policy that refuses a jump to `main`, a sign-off that a changed digest voids, a rotated
//! key and a revocation. Does I/O.

use std::{fs, path::Path};

use codex_cluster::Target;
use codex_crds::{ConditionType, ReasoningPod, ReasoningPodStatus};
use codex_signing::key::{PrivateKey, PublicKey};
use codex_tests::{
    Error, Result,
    install::{NAMESPACE, SIGNING_KEY},
    team::condition,
    wait::until,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, api::DeleteParams};

use crate::tour::{SERVING, Tour};

/// The ReasoningPod that serves.
pub(crate) const SERVED: &str = "cot-rc";
/// The ConfigMap that lists the trusted keys.
const LIST: &str = "codex-trusted-keys";
/// When the former key ends: any time before now.
const ENDED: &str = "2026-01-01T00:00:00Z";

impl Tour<'_> {
    /// Shows that an object created at `main` is refused by a policy, although its own gates pass.
    pub(crate) async fn jump(&self) -> Result<()> {
        let show = &self.show;
        show.heading("A policy refuses a jump to main: that model was never promoted in the ring before");
        show.kubectl(&["apply", "-f", "manifests/samples/policies/jump-to-main.yaml"])?;
        println!();
        self.trained("cot-jumper").await?;
        self.judged("cot-jumper-lite").await?;
        let blocked = self.reason("cot-main", ConditionType::PolicyMet, "PolicyUnmet").await?;
        show.kubectl(&["get", "evaluation/cot-jumper-lite", "reasoningpod/cot-main"])?;
        self.tell_blocked(&blocked, "no recorded promotion in 0D_base_")?;
        show.kubectl(&["delete", "-f", "manifests/samples/policies/jump-to-main.yaml"])
    }

    /// Shows a sign-off that counts, and that is void with another report.
    pub(crate) async fn sign_off(&self) -> Result<()> {
        let show = &self.show;
        show.heading("A policy demands that a person signs off: for this model and these reports, and for no others");
        show.kubectl(&["apply", "-f", "manifests/samples/demo/sign-off/policy.yaml"])?;
        let asked = self.reason(SERVED, ConditionType::PolicyMet, "PolicyUnmet").await?;
        self.tell_blocked(&asked, "0 of 1 sign-offs")?;
        let status = asked.status.unwrap_or_default();
        let (model, report) = (model_digest(&status)?, status.report_digest.ok_or_else(|| absent("reportDigest"))?);
        show.kubectl_with(
            &["apply", "-f", "-"],
            &format!(
                "apiVersion: codex-ml.dev/v1alpha1\nkind: SignOff\nmetadata: {{ name: ada-cot-rc }}\nspec:\n  reasoningPod: \
                 {SERVED}\n  by: ada@example.com\n  reason: read the report and 40 of its answers\n  modelDigest: \
                 {model}\n  reportDigest: {report}\n"
            ),
        )?;
        self.reason(SERVED, ConditionType::PolicyMet, "PoliciesMet").await?;
        self.served().await?;
        println!("\n   It counts, and the promotion is signed again with it.");

        println!("\n   Another Evaluation is added to the ReasoningPod, so there is another report:\n");
        show.kubectl(&["apply", "-f", "manifests/samples/demo/sign-off/more.yaml"])?;
        self.judged("cot-lite-more").await?;
        let add = r#"{"spec":{"evaluations":["cot-lite","cot-lite-more"]}}"#;
        show.kubectl(&["patch", "reasoningpod", SERVED, "--type=merge", "--patch", add])?;
        let void = self.reason(SERVED, ConditionType::SignedOff, "SignOffVoid").await?;
        let void = void.status.unwrap_or_default();
        let told = condition(Some(&void.conditions), ConditionType::SignedOff);
        println!("\n   void: {}", told.map_or("", |condition| condition.message.as_str()));
        println!("   The server goes on with the promotion that it has ({} ready).", void.ready.unwrap_or_default());
        let back = r#"{"spec":{"evaluations":["cot-lite"]}}"#;
        println!();
        show.kubectl(&["patch", "reasoningpod", SERVED, "--type=merge", "--patch", back])?;
        show.kubectl(&["delete", "-f", "manifests/samples/demo/sign-off/policy.yaml"])?;
        self.served().await
    }

    /// Replaces the signing key while a model is served, lets the former one end, and puts it back.
    pub(crate) async fn rotate(&self) -> Result<()> {
        self.show.heading("Rotate the signing key while the model is served");
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let lists: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let why = if *self.installation.cluster.target() != Target::Local {
            "the cluster is not the local one, and others may rely on its key"
        } else if lists.get_opt(LIST).await?.is_some() {
            "the ConfigMap codex-trusted-keys exists already"
        } else {
            ""
        };
        if !why.is_empty() {
            println!("   Left out: {why}.");
            return Ok(());
        }
        let mut stored = secrets.get(SIGNING_KEY).await?.data.unwrap_or_default();
        let private = stored.remove("private.pem").map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        let former = PrivateKey::from_pem(&private.unwrap_or_default(), b"").map_err(unusable)?;
        let next = PrivateKey::generate().map_err(unusable)?;
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let folder = folder.path();
        let turned = self.turn(folder, &former, &next).await;
        // Whatever happened, the cluster gets back the key that it pins.
        println!("\n   Back to the former key, which this cluster pins:\n");
        self.sign_with(folder, "former", &former)?;
        if turned.is_ok() {
            self.list(folder, former.public(), next.public())?;
            self.signed_by(&former).await?;
        }
        println!("$ kubectl -n {NAMESPACE} delete configmap {LIST}");
        lists.delete(LIST, &DeleteParams::default()).await?;
        turned?;
        self.served().await
    }

    /// Lists both keys, signs with `next`, and lets `former` end.
    async fn turn(&self, folder: &Path, former: &PrivateKey, next: &PrivateKey) -> Result<()> {
        let show = &self.show;
        show.kubectl(&["get", "reasoningpod", SERVED])?;
        println!(
            "\n   Both keys are trusted, and the next one signs from now on. What the former one signed stays valid:\n"
        );
        let write =
            |name: &str, text: &str| fs::write(folder.join(name), text).map_err(Error::io(format!("writing {name}")));
        write("former.pub", former.public().to_pem())?;
        write("next.pub", next.public().to_pem())?;
        let files = ["former.pub", "next.pub"].map(|name| format!("--from-file={}", folder.join(name).display()));
        show.kubectl(&["-n", NAMESPACE, "create", "configmap", LIST, &files[0], &files[1]])?;
        self.sign_with(folder, "next", next)?;
        println!("\n   The former key ends. What is served is signed again, and its server is replaced:\n");
        self.list(folder, next.public(), former.public())?;
        self.signed_by(next).await?;
        show.kubectl(&["get", "reasoningpod", SERVED])
    }

    /// Replaces the Secret of the signing key.
    fn sign_with(&self, folder: &Path, name: &str, key: &PrivateKey) -> Result<()> {
        let [private, public] = [format!("{name}.pem"), format!("{name}.pub")].map(|file| folder.join(file));
        let pem = key.to_pem().map_err(unusable)?;
        for (path, text) in [(&private, pem.as_str()), (&public, key.public().to_pem())] {
            fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))?;
        }
        let private = format!("--from-file=private.pem={}", private.display());
        let public = format!("--from-file=key.pem={}", public.display());
        self.show.kubectl_replace(NAMESPACE, &["create", "secret", "generic", SIGNING_KEY, &private, &public])
    }

    /// Lists two keys, of which one has ended.
    fn list(&self, folder: &Path, trusted: &PublicKey, ended: &PublicKey) -> Result<()> {
        let [good, old] = ["trusted.pub", "ended.pub"].map(|file| folder.join(file));
        let limited = format!("notAfter: {ENDED}\n{}", ended.to_pem());
        for (path, text) in [(&good, trusted.to_pem()), (&old, &limited)] {
            fs::write(path, text).map_err(Error::io(format!("writing {}", path.display())))?;
        }
        let files = [good, old].map(|path| format!("--from-file={}", path.display()));
        self.show.kubectl_replace(NAMESPACE, &["create", "configmap", LIST, &files[0], &files[1]])
    }

    /// Waits until what is served is signed by a key, and its server is ready.
    async fn signed_by(&self, key: &PrivateKey) -> Result<()> {
        let fingerprint = key.public().fingerprint().to_string();
        let what = format!("it is signed by {}", &fingerprint[..12]);
        until(&self.api::<ReasoningPod>(), SERVED, &what, SERVING, |pod| {
            let status = pod.status.as_ref();
            let signer = status.and_then(|status| status.manifest.as_ref()).map(|manifest| &*manifest.signer);
            signer.is_some_and(|signer| fingerprint.starts_with(signer)) && is_ready(pod)
        })
        .await
        .map(drop)
    }

    /// Denies the served model, and lifts that again.
    pub(crate) async fn revoke(&self) -> Result<()> {
        let show = &self.show;
        show.heading("Revoke the model: its servers stop within seconds, and come back when that is lifted");
        let pod = self.api::<ReasoningPod>().get(SERVED).await?;
        let model = model_digest(&pod.status.unwrap_or_default())?;
        let policy = format!(
            "apiVersion: codex-ml.dev/v1alpha1\nkind: PromotionPolicy\nmetadata: {{ name: revoked }}\nspec:\n  denied:\n    \
             models: [{model}]\n"
        );
        show.kubectl_with(&["apply", "-f", "-"], &policy)?;
        let revoked = self.reason(SERVED, ConditionType::Revoked, "Revoked").await?;
        until(&self.api::<ReasoningPod>(), SERVED, "no server is left", SERVING, |pod| {
            pod.status.as_ref().is_some_and(|status| status.ready_replicas.unwrap_or(0) == 0)
        })
        .await?;
        show.kubectl(&["get", "reasoningpod", SERVED])?;
        self.tell_blocked(&revoked, "denied.models")?;
        show.kubectl(&["delete", "promotionpolicy", "revoked"])?;
        self.served().await?;
        show.kubectl(&["get", "reasoningpod", SERVED])
    }

    /// Waits until a condition of a ReasoningPod has a reason for its present spec.
    pub(crate) async fn reason(&self, name: &str, kind: ConditionType, reason: &str) -> Result<ReasoningPod> {
        until(&self.api::<ReasoningPod>(), name, &format!("{kind:?} has the reason {reason}"), SERVING, |pod| {
            let found = condition(pod.status.as_ref().map(|status| &*status.conditions), kind);
            found.is_some_and(|it| it.reason == reason && it.observed_generation == pod.metadata.generation)
        })
        .await
    }

    /// Waits until the model is served, with nothing in the way.
    pub(crate) async fn served(&self) -> Result<()> {
        until(&self.api::<ReasoningPod>(), SERVED, "it serves", SERVING, is_ready).await.map(drop)
    }

    /// Prints what blocks a ReasoningPod, which must say `what`.
    pub(crate) fn tell_blocked(&self, pod: &ReasoningPod, what: &str) -> Result<()> {
        let told = pod.status.iter().flat_map(|status| &status.blocked_by).collect::<Vec<_>>();
        println!();
        for why in &told {
            println!("   blocked by: {}", why.replace("); ", ");\n               "));
        }
        println!();
        if told.iter().any(|why| why.contains(what)) {
            return Ok(());
        }
        Err(Error::Impossible {
            what: format!("status.blockedBy says `{what}`"),
            why: "it says only what is above".to_owned(),
            state: format!("kubectl -n {} describe reasoningpod", self.namespace),
        })
    }
}

/// Whether nothing blocks a ReasoningPod and it is ready for its present spec.
fn is_ready(pod: &ReasoningPod) -> bool {
    let status = pod.status.as_ref();
    let ready = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
    ready.is_some_and(|it| it.status == "True" && it.observed_generation == pod.metadata.generation)
        && status.is_some_and(|status| status.blocked_by.is_empty())
}

/// Returns the digest of the model that a ReasoningPod serves.
fn model_digest(status: &ReasoningPodStatus) -> Result<String> {
    let manifest = status.manifest.as_ref().ok_or_else(|| absent("manifest"))?;
    Ok(manifest.digest.to_string())
}

fn absent(field: &str) -> Error {
    Error::Impossible {
        what: format!("{SERVED} is served"),
        why: format!("status.{field} is absent"),
        state: format!("kubectl describe reasoningpod {SERVED}"),
    }
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::Impossible {
        what: "the signing key is replaced".to_owned(),
        why: error.to_string(),
        state: format!("the Secret {SIGNING_KEY} in the namespace {NAMESPACE}"),
    }
}
