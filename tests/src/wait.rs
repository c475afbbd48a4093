//! Waiting for an object to look as it should, by a watch, with a limit; what there was instead is told. Talks to the API
//! server.

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

/// What an object's present shape means for somebody who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// This is what was awaited.
    There,
    /// Not yet.
    NotYet,
    /// It can no longer come, for this reason.
    Impossible(String),
}

impl From<bool> for Sight {
    fn from(there: bool) -> Self {
        if there { Self::There } else { Self::NotYet }
    }
}

/// Waits until the object called `name` exists and `look` sees what it waits for, and returns that object.
///
/// # Errors
/// When `patience` ends first or `look` says that it cannot come; both tell the object's status and Events.
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
                Sight::NotYet => last = Some(object),
                Sight::Impossible(why) => {
                    return Err(Error::Impossible { what: what(), why, state: tell(api, Some(&object)).await });
                }
            },
            Ok(Some(Ok(None))) => last = None,
            // The watcher begins again by itself.
            Ok(Some(Err(error))) => tracing::debug!(%error, "watching"),
            Ok(None) | Err(_) => {
                return Err(Error::Timeout { what: what(), patience, state: tell(api, last.as_ref()).await });
            }
        }
    }
}

/// Waits until no object of that name is left.
///
/// # Errors
/// When `patience` ends first.
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

/// Waits until `look` finds something, asking again and again: for what no watch shows.
///
/// # Errors
/// When `patience` ends first, and whatever `look` fails with.
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
            let state = "nothing of it was found".to_owned();
            return Err(Error::Timeout { what: what.to_owned(), patience, state });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The status of an object, and what Events say about it.
async fn tell<K>(api: &Api<K>, object: Option<&K>) -> String
where
    K: Resource<DynamicType = ()> + Clone + Serialize,
{
    let Some(object) = object else { return "there is no such object".to_owned() };
    let value = serde_json::to_value(object).unwrap_or_default();
    let status = serde_yaml::to_string(&value["status"]).unwrap_or_default();
    let mut text = format!("its status:\n{status}");
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
