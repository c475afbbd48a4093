//! The cluster: finds the configuration as kubectl does, and reads objects. I/O.

use std::{collections::BTreeSet, fmt::Debug, path::PathBuf};

use codex_crds::{ConditionType, Evaluation, ReasoningPod, TrainingRun};
use futures::future::join_all;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1::Namespace, events::v1::Event},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use crate::{
    error::CommandError,
    events::{self, Told},
    subject::{Kind, Subject},
    tree::Chain,
    view::View,
};

/// The most bases that a tree goes back: runs can be based on each other in a circle.
const MAX_BASES: usize = 16;
/// The objects of a page of a list.
const PAGE: u32 = 500;

/// Where to look: the flags of kubectl.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) namespace: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A cluster and a namespace of it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

/// An object of one of the three kinds.
pub(crate) enum Found {
    Run(Box<TrainingRun>),
    Evaluation(Box<Evaluation>),
    Pod(Box<ReasoningPod>),
}

impl Found {
    pub(crate) fn view(&self) -> View {
        match self {
            Self::Run(run) => View::of_run(run),
            Self::Evaluation(evaluation) => View::of_evaluation(evaluation),
            Self::Pod(pod) => View::of_pod(pod),
        }
    }

    pub(crate) fn uid(&self) -> String {
        let uid = match self {
            Self::Run(run) => run.uid(),
            Self::Evaluation(evaluation) => evaluation.uid(),
            Self::Pod(pod) => pod.uid(),
        };
        uid.unwrap_or_default()
    }

    /// Returns the name of the run whose model the object is about.
    fn run(&self) -> Option<String> {
        match self {
            Self::Run(run) => Some(run.name_any()),
            Self::Evaluation(evaluation) => evaluation.spec.training_run.clone(),
            Self::Pod(pod) => served(pod),
        }
    }

    /// Whether the object has reached its end: no further pod will work for it.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Run(run) => run.status.as_ref().is_some_and(|status| status.completed_at.is_some()),
            Self::Evaluation(evaluation) => {
                evaluation.status.as_ref().is_some_and(|status| status.completed_at.is_some())
            }
            Self::Pod(_) => false,
        }
    }
}

/// Returns the names of the first objects of a list.
async fn names<K>(api: Api<K>) -> Result<Vec<String>, CommandError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let what = format!("listing objects of the kind {}", K::kind(&()));
    let page = api.list_metadata(&ListParams::default().limit(PAGE)).await.map_err(CommandError::request(what))?;
    Ok(page.items.into_iter().filter_map(|object| object.metadata.name).collect())
}

/// Returns the names of the contexts of the kubeconfig.
pub(crate) fn contexts(place: &Place) -> Result<Vec<String>, CommandError> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        |source| CommandError::KubeconfigFile { path, source }
    };
    let config = match &place.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).map_err(failed(path))?,
        None => Kubeconfig::read()?,
    };
    Ok(config.contexts.into_iter().map(|context| context.name).collect())
}

/// Returns the name of the run whose model a ReasoningPod serves. With `spec.redeploy`, that is the run of the latest promoted cycle,
/// or before it the one in the spec, or that of the cycle at work.
pub(crate) fn served(pod: &ReasoningPod) -> Option<String> {
    let status = pod.status.as_ref();
    let current = status.and_then(|status| Some(status.current.as_ref()?.training_run.clone()));
    let named = || Some(pod.spec.training_run.clone()).filter(|run| !run.is_empty());
    let cycle = || Some(status?.redeploy.as_ref()?.cycle.as_ref()?.training_run.clone());
    current.or_else(named).or_else(cycle)
}

impl Cluster {
    /// Connects as kubectl does: `--kubeconfig`, else `KUBECONFIG`, else `~/.kube/config`, else the service account of a pod.
    pub(crate) async fn connect(place: &Place) -> Result<Self, CommandError> {
        // Installing the provider again fails and changes nothing.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = KubeConfigOptions { context: place.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&place.kubeconfig, &place.context) {
            (Some(path), _) => {
                let failed = |source| CommandError::KubeconfigFile { path: path.clone(), source };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await?,
            (None, None) => Config::infer().await?,
        };
        let namespace = place.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(CommandError::request("connecting to the cluster"))?;
        Ok(Self { client, namespace })
    }

    pub(crate) fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Finds the object that a user named.
    pub(crate) async fn find(&self, subject: &Subject) -> Result<Found, CommandError> {
        let kinds: Vec<Kind> = subject.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
        let mut found = Vec::new();
        for kind in kinds {
            found.extend(self.get(kind, &subject.name).await?.map(|object| (kind, object)));
        }
        let kinds: Vec<Kind> = found.iter().map(|(kind, _)| *kind).collect();
        match found.pop() {
            None => Err(CommandError::NotFound { name: subject.name.clone(), namespace: self.namespace.clone() }),
            Some((_, object)) if kinds.len() == 1 => Ok(object),
            Some(_) => Err(CommandError::Ambiguous { name: subject.name.clone(), kinds }),
        }
    }

    /// Returns the object of this kind and name.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Option<Found>, CommandError> {
        Ok(match kind {
            Kind::TrainingRun => self.get_opt(name).await?.map(|run| Found::Run(Box::new(run))),
            Kind::Evaluation => self.get_opt(name).await?.map(|evaluation| Found::Evaluation(Box::new(evaluation))),
            Kind::ReasoningPod => self.get_opt(name).await?.map(|pod| Found::Pod(Box::new(pod))),
        })
    }

    /// Returns the object of this name, if it exists.
    pub(crate) async fn get_opt<K>(&self, name: &str) -> Result<Option<K>, CommandError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let what = format!("reading the {} {name}", K::kind(&()));
        self.api::<K>().get_opt(name).await.map_err(CommandError::request(what))
    }

    /// Returns all objects of a kind in the namespace, or everywhere.
    pub(crate) async fn list<K>(&self, everywhere: bool, selector: ListParams) -> Result<Vec<K>, CommandError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = if everywhere { Api::all(self.client.clone()) } else { self.api() };
        let mut params = selector.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let what = format!("listing objects of the kind {}", K::kind(&()));
            let page = api.list(&params).await.map_err(CommandError::request(what))?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// Returns the names of the objects of these kinds in the namespace, as far as they may be listed.
    pub(crate) async fn names(&self, kinds: &[Kind]) -> Vec<(Kind, String)> {
        let of_kind = async |kind: Kind| {
            let names = match kind {
                Kind::TrainingRun => names::<TrainingRun>(self.api()).await,
                Kind::Evaluation => names::<Evaluation>(self.api()).await,
                Kind::ReasoningPod => names::<ReasoningPod>(self.api()).await,
            };
            names.unwrap_or_default().into_iter().map(move |name| (kind, name))
        };
        join_all(kinds.iter().map(|kind| of_kind(*kind))).await.into_iter().flatten().collect()
    }

    /// Returns the names of the namespaces.
    pub(crate) async fn namespaces(&self) -> Result<Vec<String>, CommandError> {
        names::<Namespace>(Api::all(self.client.clone())).await
    }

    /// Returns the chain that an object belongs to.
    pub(crate) async fn chain(&self, found: Found) -> Result<Chain, CommandError> {
        let mut chain = Chain { run: found.run(), ..Chain::default() };
        let mut next = match (found, chain.run.clone()) {
            (Found::Run(run), _) => Some(*run),
            (Found::Evaluation(evaluation), None) => {
                chain.evaluations.push(*evaluation);
                return Ok(chain);
            }
            (_, Some(name)) => self.get_opt(&name).await?,
            (Found::Pod(pod), None) => {
                chain.pods.push(*pod);
                return Ok(chain);
            }
        };
        let mut seen = BTreeSet::new();
        while let Some(run) = next.take() {
            let base = run.spec.base.as_ref().and_then(|base| base.training_run.as_ref()).map(|base| base.name.clone());
            seen.insert(run.name_any());
            chain.runs.push(run);
            if let Some(base) = base.filter(|base| !seen.contains(base) && seen.len() < MAX_BASES) {
                next = self.get_opt(&base).await?;
            }
        }
        let of_run = chain.run.clone();
        chain.evaluations = self.list::<Evaluation>(false, ListParams::default()).await?;
        chain.evaluations.retain(|evaluation| evaluation.spec.training_run == of_run);
        chain.pods = self.list::<ReasoningPod>(false, ListParams::default()).await?;
        chain.pods.retain(|pod| served(pod) == of_run);
        chain.reproductions = self.list::<TrainingRun>(false, ListParams::default()).await?;
        chain.reproductions.retain(|run| {
            run.spec.reproduces.as_ref().is_some_and(|reproduces| Some(&reproduces.name) == of_run.as_ref())
        });
        Ok(chain)
    }

    /// Returns the objects that `found` depends on.
    pub(crate) async fn causes(&self, found: &Found) -> Result<Vec<View>, CommandError> {
        let (runs, evaluations) = match found {
            Found::Run(run) => {
                let base = run.spec.base.as_ref().and_then(|base| base.training_run.as_ref());
                let reproduced = run.spec.reproduces.as_ref().map(|run| run.name.clone());
                (base.map(|base| base.name.clone()).into_iter().chain(reproduced).collect(), Vec::new())
            }
            Found::Evaluation(evaluation) => (Vec::from_iter(evaluation.spec.training_run.clone()), Vec::new()),
            Found::Pod(pod) => {
                let current = pod.status.as_ref().and_then(|status| status.current.as_ref());
                let evaluations = current.map_or(&pod.spec.evaluations, |current| &current.evaluations);
                (served(pod).into_iter().collect(), evaluations.clone())
            }
        };
        let mut causes = Vec::new();
        for run in runs {
            causes.extend(self.get_opt::<TrainingRun>(&run).await?.as_ref().map(View::of_run));
        }
        // An Evaluation of a run without a model says only that it waits for the run.
        if causes.iter().all(|run| run.is(ConditionType::Ready)) {
            for name in evaluations {
                causes.extend(self.get_opt::<Evaluation>(&name).await?.as_ref().map(View::of_evaluation));
            }
        }
        Ok(causes)
    }

    /// Returns the Events about an object and its children, oldest first.
    pub(crate) async fn events(&self, kind: Kind, name: &str, uid: &str) -> Result<Vec<Told>, CommandError> {
        let events = self.list::<Event>(false, ListParams::default()).await?;
        Ok(events::about(&events, kind, name, uid))
    }
}
