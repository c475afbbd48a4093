//! `logs`: the logs of all pods of an object, in the order in which they were created: first attempts, then retries. I/O.

use std::{collections::BTreeSet, io::Write, time::Duration};

use codex_provenance::text::Printable;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream::SelectAll};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{ListParams, LogParams},
};

use crate::{
    cluster::{Cluster, Found},
    error::CommandError,
    subject::Kind,
};

/// How often new pods are looked for while following.
const AGAIN: Duration = Duration::from_secs(2);

/// What to show of the logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) follow: bool,
    /// The most lines of each pod.
    pub(crate) tail: Option<i64>,
    pub(crate) timestamps: bool,
}

/// Writes the logs of the pods of an object.
pub(crate) async fn logs(
    cluster: &Cluster,
    kind: Kind,
    name: &str,
    shown: Shown,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    if kind == Kind::ReasoningPod && shown.follow {
        return servers(cluster, kind, name, shown, out).await;
    }
    let mut done = BTreeSet::new();
    loop {
        // Whether the object has ended is read before its pods: a pod that is created later is then listed.
        let ended = cluster.get(kind, name).await?.as_ref().is_none_or(Found::has_ended);
        let pods = pods(cluster, kind, name).await?;
        if pods.is_empty() && !shown.follow {
            return Err(CommandError::NoPod(format!("{} {name}", kind.name())));
        }
        for (index, pod) in pods.iter().enumerate() {
            let uid = pod.uid().unwrap_or_default();
            if done.contains(&uid) {
                continue;
            }
            if has_log(pod) {
                writeln!(out, "==> {}", heading(pod, index + 1, pods.len()))?;
                one(cluster, kind, pod, shown, out).await?;
            } else if shown.follow {
                // It has not started. Later pods come after it.
                break;
            } else {
                writeln!(out, "==> {} has no log: its container has not started", heading(pod, index + 1, pods.len()))?;
            }
            done.insert(uid);
        }
        if !shown.follow || ended {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Follows all servers at once; each line begins with the name of its pod.
async fn servers(
    cluster: &Cluster,
    kind: Kind,
    name: &str,
    shown: Shown,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    let mut lines = SelectAll::new();
    let mut known = BTreeSet::new();
    loop {
        for pod in pods(cluster, kind, name).await? {
            if has_log(&pod) && known.insert(pod.uid()) {
                let prefix = pod.name_any();
                let stream = stream(cluster, kind, &pod, shown).await?;
                lines.push(stream.map(move |line| (prefix.clone(), line)).boxed());
            }
        }
        let looked = tokio::time::Instant::now() + AGAIN;
        while let Ok(Some((pod, line))) = tokio::time::timeout_at(looked, lines.next()).await {
            match line {
                Ok(line) => writeln!(out, "[{pod}] {}", Printable(&line))?,
                Err(failure) => writeln!(out, "[{pod}] the log ends: {failure}")?,
            }
        }
        out.flush()?;
        // Without servers there is nothing to wait for but time.
        tokio::time::sleep_until(looked).await;
    }
}

/// Returns the pods of an object, oldest first.
async fn pods(cluster: &Cluster, kind: Kind, name: &str) -> Result<Vec<Pod>, CommandError> {
    let mut pods: Vec<Pod> = cluster.list(false, ListParams::default().labels(&kind.pods(name))).await?;
    pods.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
    Ok(pods)
}

/// Whether the pod's container has started.
fn has_log(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().any(|status| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) || status.restart_count > 0
    })
}

fn heading(pod: &Pod, number: usize, all: usize) -> String {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    format!("pod {} ({number} of {all}, {phase}, {node})", Printable(&pod.name_any()))
}

async fn stream(
    cluster: &Cluster,
    kind: Kind,
    pod: &Pod,
    shown: Shown,
) -> Result<impl futures::Stream<Item = Result<String, std::io::Error>> + Send + 'static, CommandError> {
    let name = pod.name_any();
    let params = LogParams {
        container: Some(kind.container().to_owned()),
        follow: shown.follow,
        tail_lines: shown.tail,
        timestamps: shown.timestamps,
        ..LogParams::default()
    };
    let what = format!("reading the log of the pod {name}");
    let log = cluster.api::<Pod>().log_stream(&name, &params).await.map_err(CommandError::request(what))?;
    Ok(log.lines())
}

async fn one(cluster: &Cluster, kind: Kind, pod: &Pod, shown: Shown, out: &mut impl Write) -> Result<(), CommandError> {
    let lines = stream(cluster, kind, pod, shown).await?;
    futures::pin_mut!(lines);
    while let Some(line) = lines.try_next().await? {
        writeln!(out, "{}", Printable(&line))?;
        if shown.follow {
            out.flush()?;
        }
    }
    Ok(())
}
