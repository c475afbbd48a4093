//! The children of a rollout: Deployment, Service, PodDisruptionBudget, NetworkPolicy and what pods mount. Pure.

use std::collections::{BTreeMap, BTreeSet};

use codex_crds::{annotation, bundle, child, label};
use codex_provenance::{ModelDigest, Sha256};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            ConfigMap, HTTPGetAction, PodSpec, PodTemplateSpec, Probe, Service, ServicePort, ServiceSpec,
            TopologySpreadConstraint,
        },
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicySpec,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use kube::ResourceExt;

use super::{
    agreement, autoscaling,
    canary::{self, Planned},
    endpoints, idle,
    observed::HeldProof,
    route,
    servers::{Servers, TEMPLATE_HASH, digests},
    shadow,
    stage::Stage,
    target::Target,
    view::View,
};
use crate::{
    metadata::{Component, label_value, our_annotations, ring_label},
    network_policy::{in_cluster, port},
    plan::{Desired, Kept, KeptKind},
    pod_template::{ADMIN, Access, CA, Mounts, Port, Probes, Template},
    settings::Settings,
};

/// The argument of servers that names a key that they accept.
pub(crate) const KEY_FINGERPRINT: &str = "--key-fingerprint";
/// The argument of servers that names the trusted root that they accept.
pub(crate) const ROOT_DIGEST: &str = "--trusted-root-digest";
/// The key of the trusted root in its ConfigMap, and its file.
const ROOT: &str = "trusted_root.json";
/// The port of servers.
pub(crate) const PORT: i32 = 8000;
/// The port of servers that no Service has, with probes, metrics and the status. Trainers have their metrics on the same one.
pub(super) const ADMIN_PORT: i32 = 9464;
/// The keys of a Secret of the type `kubernetes.io/tls`.
const TLS_KEYS: [&str; 2] = ["tls.crt", "tls.key"];
/// Seconds from SIGTERM to SIGKILL: the server becomes unready for 5 s, then finishes the requests in progress within 50 s.
const GRACE_SECONDS: i64 = 60;
/// Seconds until a server must answer its probes.
const STARTUP_SECONDS: i32 = 600;

pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let mut desired = Desired::default();
    let former = if let Stage::Canary(_) = stage { &view.restorable } else { &view.former };
    // A dry run creates nothing, and turning it on stops the servers.
    if view.spec().dry_run {
        return desired;
    }
    match stage {
        Stage::DryRun => return desired,
        // Conditions gate new rollouts; they do not stop running servers.
        // A denied model drains: the same servers, scaled to zero.
        Stage::Blocked | Stage::Revoked | Stage::Signing(_) | Stage::Canary(_) => match (&view.servers, former) {
            (Some(servers), _) => desired.deployments.push(kept(view, servers)),
            // A modified template must not run: the recorded one is restored.
            (None, Some(former)) => {
                let restored = deployment(view, former);
                desired.deployments.push(scaled(restored, view.kept_replicas()));
            }
            // What serves a denied model goes, if it cannot be restored.
            (None, None) if *stage == Stage::Revoked => return desired,
            // The status records no template to restore. The servers stay available, and the status asks for attention.
            (None, None) if view.observed.tampered => {
                desired.kept.push(Kept { kind: KeptKind::Deployment, name: server(view) });
            }
            (None, None) => return desired,
        },
        Stage::RollingOut(target) | Stage::Refused(target, ..) | Stage::Serving(target) => {
            desired.deployments.push(deployment(view, target));
        }
    }
    desired.horizontal_pod_autoscalers.extend(autoscaling::autoscaler(view));
    desired.deployments.extend(canary::planned(view, stage).map(|planned| of_canary(view, planned)));
    desired.kept.extend(endpoints::kept(view));
    let mounted_bundles: BTreeSet<String> = desired.deployments.iter().flat_map(mounted_bundles).collect();
    let (roots, kept) = roots(view, &desired.deployments);
    desired.deployments.extend(idle::deployment(view));
    desired.kept.extend(kept);
    Desired {
        endpoint_slices: endpoints::slices(view, stage),
        foreign_slices: endpoints::foreign(view),
        config_maps: std::iter::once(config_map(view)).chain(roots).collect(),
        services: services(view, stage),
        http_routes: route::planned(view, stage).into_iter().collect(),
        pod_disruption_budgets: vec![budget(view)],
        network_policies: std::iter::once(policy(view)).chain(idle::policy(view)).collect(),
        released_bundles: released_bundles(view, stage, &mounted_bundles),
        mounted_bundles,
        ..desired
    }
}

/// Returns the names of the bundles that the pods of a Deployment mount.
fn mounted_bundles(deployment: &Deployment) -> BTreeSet<String> {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let volumes = pod.and_then(|pod| pod.volumes.as_deref()).unwrap_or_default();
    let names = volumes.iter().filter_map(|volume| volume.config_map.as_ref());
    names.map(|source| source.name.clone()).filter(|name| bundle::is_mounted(name)).collect()
}

/// Returns the bundles that no server mounts any more. While a rollout is in progress, former servers may. The newest promotion of
/// another model stays, which proves that model if its run is created again.
fn released_bundles(view: &View<'_>, stage: &Stage, mounted: &BTreeSet<String>) -> BTreeSet<String> {
    if !matches!(stage, Stage::Serving(_)) || view.candidate.is_some() || view.trial.is_some() {
        return BTreeSet::new();
    }
    let proof = former_proof(&view.observed.held_proofs, mounted);
    view.observed.held_bundles.difference(mounted).filter(|name| Some(*name) != proof).cloned().collect()
}

/// Returns the name of the newest promotion of a model that no server serves.
fn former_proof<'a>(held: &'a BTreeMap<String, HeldProof>, mounted: &BTreeSet<String>) -> Option<&'a String> {
    let served: BTreeSet<ModelDigest> = mounted.iter().filter_map(|name| Some(held.get(name)?.model)).collect();
    let former = held.iter().filter(|(_, proof)| !served.contains(&proof.model));
    former.max_by_key(|(name, proof)| (proof.since, *name)).map(|(name, _)| name)
}

fn metadata(view: &View<'_>, name: String) -> ObjectMeta {
    view.owner.child(name, Component::Server, &view.observed.settings.version)
}

pub(super) fn server(view: &View<'_>) -> String {
    child::server(&view.owner.name)
}

/// Which servers a Deployment is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Track {
    /// Those that serve what the status records.
    Stable,
    /// Those that try what is to replace it.
    Canary,
}

impl Track {
    fn deployment(self, view: &View<'_>) -> String {
        match self {
            Self::Stable => server(view),
            Self::Canary => child::canary(&view.owner.name),
        }
    }

    /// Returns the label that only these servers have.
    fn label(self) -> Option<(String, String)> {
        (self == Self::Canary).then(|| (label::TRACK.to_owned(), "canary".to_owned()))
    }
}

fn selector(view: &View<'_>) -> LabelSelector {
    LabelSelector { match_labels: Some(view.owner.selector(Component::Server)), match_expressions: None }
}

/// Returns the label selector of the pods, in the form of the scale subresource.
pub(crate) fn selector_text(view: &View<'_>) -> String {
    let labels = view.owner.selector(Component::Server);
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn scaled(mut deployment: Deployment, replicas: Option<i32>) -> Deployment {
    if let Some(spec) = &mut deployment.spec {
        spec.replicas = replicas;
    }
    deployment
}

/// Returns the Deployment of a canary.
fn of_canary(view: &View<'_>, planned: Planned<'_>) -> Deployment {
    let (deployment, servers) = match planned {
        Planned::For(target, servers) => (deployment_of(view, target, Track::Canary), servers),
        Planned::Kept(live, servers) => (unchanged(view, live, Track::Canary), servers),
    };
    scaled(deployment, Some(servers))
}

/// Returns the live Deployment with the wanted number of replicas and nothing else changed.
fn kept(view: &View<'_>, servers: &Servers<'_>) -> Deployment {
    scaled(unchanged(view, servers, Track::Stable), view.kept_replicas())
}

/// Returns the live Deployment.
fn unchanged(view: &View<'_>, servers: &Servers<'_>, track: Track) -> Deployment {
    let template = servers.live.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut metadata = metadata(view, track.deployment(view));
    metadata.annotations = Some(our_annotations(servers.live));
    let ring = servers.live.labels().get_key_value(label::RING);
    metadata.labels.get_or_insert_default().extend(ring.map(|(key, value)| (key.clone(), value.clone())));
    around(view, metadata, template, track)
}

fn around(view: &View<'_>, metadata: ObjectMeta, template: PodTemplateSpec, track: Track) -> Deployment {
    let mut selector = selector(view);
    selector.match_labels.get_or_insert_default().extend(track.label());
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: autoscaling::replicas(view),
            selector,
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // A verified server is stopped only after another one is ready.
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// Returns the Deployment of a rollout. A Deployment that another controller version made for the same rollout keeps its
/// template: a controller upgrade restarts no server.
fn deployment(view: &View<'_>, target: &Target) -> Deployment {
    deployment_of(view, target, Track::Stable)
}

fn deployment_of(view: &View<'_>, target: &Target, track: Track) -> Deployment {
    let digest = settings_digest(&view.observed.settings);
    let live = if track == Track::Stable { &view.servers } else { &view.canary };
    if let Some(servers) = live
        && servers.are_for(target)
        && shadow::fits(view, servers.live)
        && idle::fits(view, servers.live)
        && (track == Track::Stable || agreement::fits(view, servers.live))
        && our_annotations(servers.live).get(annotation::SETTINGS_DIGEST) != Some(&digest)
    {
        return scaled(unchanged(view, servers, track), autoscaling::replicas(view));
    }
    let annotations = BTreeMap::from([
        (annotation::MODEL_DIGEST.to_owned(), target.model.to_string()),
        (annotation::PROMOTION_DIGEST.to_owned(), target.promotion.to_string()),
    ]);
    let mut labels = view.owner.labels(Component::Server, &view.observed.settings.version);
    labels.extend(std::iter::once(ring_label(target.ring)).chain(track.label()));
    let mut metadata = metadata(view, track.deployment(view));
    metadata.annotations = Some(annotations.clone());
    let ours = metadata.annotations.get_or_insert_default();
    ours.insert(annotation::SETTINGS_DIGEST.to_owned(), digest);
    // Also without spec.rollout, which may be added together with what a canary has to try.
    ours.insert(annotation::ATTEMPT.to_owned(), canary::made_from(view, target));
    metadata.labels.get_or_insert_default().extend([ring_label(target.ring)]);
    let template = template(view, target, track);
    let annotations = Some(annotations.into_iter().chain(template.scraped().unwrap_or_default()).collect());
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() }),
        spec: Some(PodSpec { topology_spread_constraints: Some(spread(view)), ..template.spec() }),
    };
    around(view, metadata, template, track)
}

/// Returns the constraints that spread servers over zones and nodes where there is room. Without any, the scheduler of the cluster
/// applies its own, which tolerate three servers more on a node than on another.
fn spread(view: &View<'_>) -> Vec<TopologySpreadConstraint> {
    let over = |key: &str| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(view)),
        ..TopologySpreadConstraint::default()
    };
    ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].map(over).into()
}

/// Returns the digest of the settings that are part of the template.
pub(super) fn settings_digest(settings: &Settings) -> String {
    let Settings { version, worker_image, cuda_image, report_url, run_as, .. } = settings;
    let cuda = cuda_image.as_ref().map(|image| format!("\n{image}")).unwrap_or_default();
    let run_as = if run_as.is_default() { String::new() } else { format!("\n{run_as}") };
    Sha256::of(format!("{version}\n{worker_image}\n{report_url}{cuda}{run_as}")).short()
}

fn template<'a>(view: &'a View<'_>, target: &Target, track: Track) -> Template<'a> {
    let (settings, worker) = (&view.observed.settings, &view.observed.object.spec.pod);
    let mut mounts = Mounts::default();
    mounts.claim(&target.claim, &target.path, "/model", Access::ReadOnly);
    mounts.config_map(&target.oms_bundle, None, "/bundles/oms");
    mounts.config_map(&target.promotion_bundle, None, "/bundles/promotion");
    let arguments = [
        ("--model", "/model".to_owned()),
        ("--model-digest", target.model.to_string()),
        ("--oms-bundle", "/bundles/oms/bundle.json".to_owned()),
        ("--promotion", "/bundles/promotion/bundle.json".to_owned()),
        ("--promotion-digest", target.promotion.to_string()),
    ];
    let listens = [
        ("--ring", target.ring.to_string()),
        ("--listen", format!("0.0.0.0:{PORT}")),
        ("--admin-listen", format!("0.0.0.0:{ADMIN_PORT}")),
    ];
    let first = signer(view, target.oms_signer, "oms");
    // After a rotation, another key may have signed the promotion. Only keys that signed are named, so that a change of the list of
    // trusted keys restarts no server.
    let second =
        (target.promotion_signer != target.oms_signer).then(|| signer(view, target.promotion_signer, "promotion"));
    let root = target.root.map(|digest| {
        mounts.config_map(&root_name(view, digest), None, "/sigstore");
        [("--trusted-root", format!("/sigstore/{ROOT}")), (ROOT_DIGEST, digest.to_string())]
    });
    // The answers of a canary are not those that a shadow is compared with. It may be compared itself.
    let copies = match track {
        Track::Stable => Some(shadow::argument(view)),
        Track::Canary => agreement::argument(view),
    };
    let arguments = arguments.into_iter().chain(first).chain(listens).chain(second.into_iter().flatten());
    let attestations = target.attestations.iter();
    let attestations =
        attestations.map(|kind| ("--attestation", format!("{kind}=/bundles/promotion/{}", kind.entry())));
    let arguments =
        arguments.chain(attestations).chain(root.into_iter().flatten()).chain(copies).chain(granted(view, &mut mounts));
    let arguments = arguments.flat_map(|(flag, value)| [flag.to_owned(), value]);
    let reports = (track == Track::Canary).then(|| "--report-traffic".to_owned()).or_else(|| idle::argument(view));
    Template {
        owner: &view.owner,
        component: Component::Server,
        settings,
        image: settings.image(Component::Server, worker, None).unwrap_or(&settings.worker_image),
        args: std::iter::once("serve".to_owned()).chain(arguments).chain(reports).collect(),
        env: Vec::new(),
        worker,
        config_map: server(view),
        mounts,
        restart_policy: None,
        grace_seconds: GRACE_SECONDS,
        ports: vec![Port::Http(PORT), Port::Admin(ADMIN_PORT)],
        probes: Probes {
            startup: Some(probe("/health", 1, STARTUP_SECONDS)),
            liveness: Some(probe("/health", 10, 3)),
            // Requests wait for a server that starts from zero.
            readiness: Some(probe("/ready", if idle::argument(view).is_some() { 1 } else { 2 }, 3)),
        },
    }
}

/// Returns the arguments that name who signed the bundle in a folder.
fn signer(view: &View<'_>, signer: Sha256, folder: &str) -> Vec<(&'static str, String)> {
    let fingerprint = (KEY_FINGERPRINT, signer.to_string());
    match view.trust().identity(signer) {
        Some(identity) => vec![
            ("--certificate-identity", identity.subject.clone()),
            ("--certificate-oidc-issuer", identity.issuer.clone()),
            fingerprint,
        ],
        None => vec![("--public-key", format!("/bundles/{folder}/key.pem")), fingerprint],
    }
}

fn root_name(view: &View<'_>, digest: Sha256) -> String {
    child::root(&view.owner.name, &digest.short())
}

/// Returns the trusted root that Deployments mount, and those of earlier ones that servers still mount. The name has the digest, so
/// that a server that stays keeps the root that its arguments name.
fn roots(view: &View<'_>, deployments: &[Deployment]) -> (Option<ConfigMap>, Vec<Kept>) {
    let specs = deployments.iter().filter_map(|it| it.spec.as_ref()?.template.spec.as_ref());
    let mounted: BTreeSet<Sha256> = specs.flat_map(|spec| digests(Some(spec), &[ROOT_DIGEST])).collect();
    let current = view.observed.trusted_root.as_ref().filter(|root| mounted.contains(&root.digest));
    let config_map = current.map(|root| ConfigMap {
        metadata: metadata(view, root_name(view, root.digest)),
        immutable: Some(true),
        data: Some(BTreeMap::from([(ROOT.to_owned(), root.text.clone())])),
        ..ConfigMap::default()
    });
    let earlier = mounted.iter().filter(|digest| current.is_none_or(|root| root.digest != **digest));
    let kept = earlier.map(|digest| Kept { kind: KeptKind::ConfigMap, name: root_name(view, *digest) }).collect();
    (config_map, kept)
}

/// Mounts what `spec.serving` names, and returns its arguments.
fn granted(view: &View<'_>, mounts: &mut Mounts) -> Vec<(&'static str, String)> {
    let serving = &view.spec().serving;
    let mut arguments: Vec<_> = serving.device.map(|device| ("--device", device.to_string())).into_iter().collect();
    if let Some(keys) = &serving.api_keys {
        mounts.secret(&keys.secret, None, "/keys");
        arguments.push(("--api-keys", "/keys".to_owned()));
    }
    if let Some(tls) = &serving.tls {
        mounts.secret(&tls.secret, Some(&TLS_KEYS), "/tls");
        let files = TLS_KEYS.map(|key| format!("/tls/{key}"));
        arguments.extend(["--tls-certificate", "--tls-key"].into_iter().zip(files));
    }
    if let Some(safety) = &serving.safety {
        // The whole folder, because the kubelet does not update a single mounted file.
        mounts.config_map(&safety.config_map, None, "/safety");
        // Beside the log, where collectors find what pods say.
        let events = ("--safety-events", "-".to_owned());
        arguments.extend([("--safety-rules", "/safety/rules.yaml".to_owned()), events]);
    }
    let quotas = [("--rate-limit", &serving.rate_limit), ("--token-budget", &serving.token_budget)];
    arguments.extend(quotas.into_iter().filter_map(|(flag, quota)| Some((flag, quota.clone()?))));
    let numbers = [
        ("--request-timeout", serving.request_timeout_seconds),
        ("--thinking-budget", serving.thinking_budget),
        ("--answer-reserve", serving.answer_reserve),
        ("--slots", serving.max_num_seqs),
        ("--queue", serving.max_queued_requests),
        ("--max-num-batched-tokens", serving.max_num_batched_tokens),
    ];
    arguments.extend(numbers.into_iter().filter_map(|(flag, number)| Some((flag, number?.to_string()))));
    let tokens = [("--kv-cache", serving.kv_cache_tokens), ("--prefix-cache", serving.prefix_cache_tokens)];
    arguments.extend(tokens.into_iter().filter_map(|(flag, number)| Some((flag, number?.to_string()))));
    arguments
}

pub(super) fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn config_map(view: &View<'_>) -> ConfigMap {
    ConfigMap {
        metadata: metadata(view, server(view)),
        data: Some(
            std::iter::once((CA.to_owned(), view.observed.settings.report_ca.clone()))
                .chain(shadow::file(view))
                .chain(agreement::file(view))
                .collect(),
        ),
        ..ConfigMap::default()
    }
}

/// Returns the Service of all servers, of those of the canary, or of the activator; with a Gateway or a comparison of answers also that of
/// the canary, and with an activator that of the servers.
fn services(view: &View<'_>, stage: &Stage) -> Vec<Service> {
    let selector = view.owner.selector(Component::Server);
    let canary: BTreeMap<_, _> = selector.clone().into_iter().chain(Track::Canary.label()).collect();
    let of_canary = canary::is_named(view).then(|| service(view, child::canary(&view.owner.name), canary.clone()));
    let selected = if canary::answers_alone(view, stage) {
        canary
    } else if canary::answers_apart(view, stage) {
        // Only the canary has a label of its own. Servers that stay have the one of their ReplicaSet in common.
        let hash = view.servers.as_ref().and_then(Servers::template_hash);
        selector.into_iter().chain(hash.map(|hash| (TEMPLATE_HASH.to_owned(), hash))).collect()
    } else {
        selector
    };
    let of_servers = idle::stops(view).then(|| service(view, child::activator(&view.owner.name), selected.clone()));
    let selected = if idle::holds(view) { view.owner.selector(Component::Activator) } else { selected };
    let all = std::iter::once(service(view, view.owner.name.clone(), selected));
    all.chain(of_canary).chain(of_servers).collect()
}

/// Returns the scheme of the servers' URLs, which is also the name of the Service's port.
pub(super) fn scheme(view: &View<'_>) -> &'static str {
    if view.spec().serving.tls.is_some() { "https" } else { "http" }
}

/// Returns the protocol of the Service's port for meshes and gateways, if it is not plain HTTP.
pub(super) fn encrypted(view: &View<'_>) -> Option<String> {
    view.spec().serving.tls.as_ref().map(|_| scheme(view).to_owned())
}

fn service(view: &View<'_>, name: String, selector: BTreeMap<String, String>) -> Service {
    let protected = view.observed.unprotected.is_none();
    Service {
        metadata: metadata(view, name),
        spec: Some(ServiceSpec {
            selector: protected.then_some(selector),
            // The name of another host would divert the traffic. Admission policies protect the type, too.
            type_: (!protected).then(|| "ClusterIP".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some(scheme(view).to_owned()),
                app_protocol: encrypted(view),
                port: PORT,
                target_port: Some(IntOrString::String("http".to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn budget(view: &View<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(view, server(view)),
        spec: Some(PodDisruptionBudgetSpec {
            // One at a time; a single server must not prevent a node drain.
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(view)),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// Returns what reports need: names, and the controller.
pub(super) fn reports(view: &View<'_>) -> [NetworkPolicyEgressRule; 2] {
    let settings = &view.observed.settings;
    let namespace = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), settings.controller_namespace.clone())]);
    let controller = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector { match_labels: Some(namespace), match_expressions: None }),
        ..NetworkPolicyPeer::default()
    };
    [
        NetworkPolicyEgressRule { ports: Some(vec![port("UDP", 53), port("TCP", 53)]), to: None },
        NetworkPolicyEgressRule { ports: Some(vec![port("TCP", settings.report_port)]), to: Some(vec![controller]) },
    ]
}

fn policy(view: &View<'_>) -> NetworkPolicy {
    // Only the servers whose requests are copied reach a shadow, and they reach nothing else than their shadows and the canary that is
    // compared.
    let of_pods = |name: &str, track: Option<Track>| {
        let labels = [
            (label::REASONING_POD.to_owned(), label_value(name)),
            ("app.kubernetes.io/component".to_owned(), Component::Server.name().to_owned()),
        ];
        let labels = labels.into_iter().chain(track.and_then(Track::label)).collect();
        NetworkPolicyPeer {
            pod_selector: Some(LabelSelector { match_labels: Some(labels), match_expressions: None }),
            ..NetworkPolicyPeer::default()
        }
    };
    let clients = shadow::incumbent(view).map(|incumbent| vec![of_pods(incumbent, None)]);
    let canary = agreement::is_compared(view).then(|| of_pods(&view.owner.name, Some(Track::Canary)));
    let shadows = view.observed.shadows.iter().map(|shadow| of_pods(&shadow.name, None));
    let shadows: Vec<_> = shadows.chain(canary).collect();
    let copies = (!shadows.is_empty())
        .then(|| NetworkPolicyEgressRule { ports: Some(vec![port("TCP", PORT)]), to: Some(shadows) });
    NetworkPolicy {
        metadata: metadata(view, server(view)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(view)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(vec![port("TCP", PORT)]), from: clients },
                NetworkPolicyIngressRule { ports: Some(vec![port("TCP", ADMIN_PORT)]), from: Some(vec![in_cluster()]) },
            ]),
            egress: Some(reports(view).into_iter().chain(copies).collect()),
        }),
    }
}
