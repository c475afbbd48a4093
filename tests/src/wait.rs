//! Waits until an object meets a condition, by a watch with a time limit. A timeout reports the state instead. Talks to the
//! API server.

use std::{
    fmt::{Debug, Write as _},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout_at};

use crate::{Error, Result};

/// The result of looking at an object while waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The condition is met.
    There,
    /// Not yet.
    NotYet,
    /// The condition can no longer be met, for this reason.
    Impossible(String),
}

impl From<bool> for Sight {
    fn from(there: bool) -> Self {
        if there { Self::There } else { Self::NotYet }
    }
}

/// Waits until the object `name` exists and `look` accepts it, and returns that object.
///
/// # Errors
/// If `patience` ends first or `look` returns `Impossible`. Both errors hold the object's status and Events.
pub async fn until<K, S>(
    api: &Api<K>,
    name: &str,
    what: &str,
    patience: Duration,
    mut look: impl FnMut(&K) -> S,
) -> Result<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
    S: Into<Sight>,
{
    let deadline = Instant::now() + patience;
    let mut objects = watcher::watch_object(api.clone(), name).default_backoff().boxed();
    let mut last = None;
    let what = || format!("{} {name}: {what}", K::kind(&()));
    loop {
        match timeout_at(deadline, objects.next()).await {
            Ok(Some(Ok(Some(object)))) => match look(&object).into() {
                Sight::There => return Ok(object),
                // In a box, so that futures that wait stay small.
                Sight::NotYet => last = Some(Box::new(object)),
                Sight::Impossible(why) => {
                    return Err(Error::Impossible { what: what(), why, state: tell(api, Some(&object)).await });
                }
            },
            Ok(Some(Ok(None))) => last = None,
            // The watcher restarts by itself.
            Ok(Some(Err(error))) => tracing::debug!(%error, "watching"),
            Ok(None) | Err(_) => {
                return Err(Error::Timeout { what: what(), patience, state: tell(api, last.as_deref()).await });
            }
        }
    }
}

/// Waits until no object of that name exists.
///
/// # Errors
/// If `patience` ends first.
pub async fn until_gone<K>(api: &Api<K>, name: &str, patience: Duration) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let deadline = Instant::now() + patience;
    let mut objects = watcher::watch_object(api.clone(), name).default_backoff().boxed();
    let mut last = None;
    loop {
        match timeout_at(deadline, objects.next()).await {
            Ok(Some(Ok(None))) => return Ok(()),
            Ok(Some(Ok(object))) => last = object,
            Ok(Some(Err(error))) => tracing::debug!(%error, "watching"),
            Ok(None) | Err(_) => {
                let what = format!("{} {name}: gone", K::kind(&()));
                return Err(Error::Timeout { what, patience, state: tell(api, last.as_ref()).await });
            }
        }
    }
}

/// Polls until `look` finds something, for conditions that no watch shows.
///
/// # Errors
/// If `patience` ends first, or `look` fails.
pub async fn until_found<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let state = "nothing was found".to_owned();
            return Err(Error::Timeout { what: what.to_owned(), patience, state });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Formats the status of an object and its Events.
async fn tell<K>(api: &Api<K>, object: Option<&K>) -> String
where
    K: Resource<DynamicType = ()> + Clone + Serialize,
{
    let Some(object) = object else { return "the object does not exist".to_owned() };
    let value = serde_json::to_value(object).unwrap_or_default();
    let status = serde_yaml::to_string(&value["status"]).unwrap_or_default();
    let mut text = format!("status:\n{status}");
    if let Some(namespace) = object.meta().namespace.as_deref() {
        let events: Api<Event> = Api::namespaced(api.clone().into_client(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={}", object.name_any()));
        for event in events.list(&about).await.map(|list| list.items).unwrap_or_default() {
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            let _ = writeln!(text, "Event {reason}: {message}");
        }
    }
    text
}
