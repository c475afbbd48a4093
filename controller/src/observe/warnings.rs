//! Events of the cluster about Jobs and pods that do not start. They are read only for those that are late and whose status
//! does not say why, such as a pod that waits for a volume, or a Job whose pods a quota refuses.

use std::time::Duration;

use codex_plan::ClusterWarning;
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};
use tokio::{sync::Mutex, time::Instant};
use tracing::debug;

use crate::{by_uid::ByUid, context::Context, error::chain};

/// The most Events that are read about an object.
const MOST: u32 = 200;
/// The most objects that Events are read about at once.
const MOST_OBJECTS: usize = 4;
/// How long what was read about an object is not read again.
const FRESH: Duration = Duration::from_secs(30);
/// A listing that takes longer is a burden: the API server has no index of Events, and reads all of the namespace for each listing.
const BURDEN: Duration = Duration::from_millis(100);
/// How many times as long as such a listing took no other one is made. Among ten thousand objects of which many are late, this is what
/// keeps the API server free for their Jobs.
const REST: u32 = 20;

/// When Events about an object were last read, and what they said.
type Answer = (Instant, Option<ClusterWarning>);

/// What Events said lately.
#[derive(Debug, Default)]
pub struct Asked {
    answers: ByUid<Answer>,
    /// Until when no Events are read. Locked while some are, so that no two listings are made at once.
    rests: Mutex<Option<Instant>>,
}

impl Asked {
    /// Drops what is no longer fresh.
    pub fn forget(&self) {
        self.answers.lock().retain(|_, (at, _)| at.elapsed() < FRESH);
    }
}

/// Returns, for each of the objects with these uids, the newest Event about it if that is a warning. An older warning may no
/// longer hold. Without the right to read Events, nothing is returned, nor about objects that have to wait for their turn.
pub(super) async fn warnings(context: &Context, namespace: &str, uids: &[String]) -> Vec<ClusterWarning> {
    let api: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let mut found = Vec::new();
    for uid in uids.iter().take(MOST_OBJECTS) {
        if let Some((_, known)) = context.asked.answers.get(uid).filter(|(at, _)| at.elapsed() < FRESH) {
            found.extend(known);
            continue;
        }
        let mut rests = context.asked.rests.lock().await;
        if rests.is_some_and(|until| Instant::now() < until) {
            debug!(uid, "Events are not read, because reading them takes the API server long");
            continue;
        }
        let about = ListParams::default().fields(&format!("regarding.uid={uid}")).limit(MOST);
        let (began, listed) = (Instant::now(), api.list(&about).await);
        *rests = Some(began.elapsed()).filter(|took| *took > BURDEN).map(|took| Instant::now() + took * REST);
        drop(rests);
        match listed {
            Ok(events) => {
                let newest = newest_warning(uid, events.items);
                context.asked.answers.insert(uid, (Instant::now(), newest.clone()));
                found.extend(newest);
            }
            Err(failure) => debug!(uid, error = chain(&failure), "Events cannot be read"),
        }
    }
    found
}

fn newest_warning(uid: &str, events: Vec<Event>) -> Option<ClusterWarning> {
    let newest = events.into_iter().max_by_key(|event| (time(event), event.name_any()))?;
    (newest.type_.as_deref() == Some("Warning")).then(|| ClusterWarning {
        about: uid.to_owned(),
        reason: newest.reason.unwrap_or_default(),
        message: newest.note.unwrap_or_default().trim().to_owned(),
    })
}

/// Returns when an Event last happened.
fn time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let last = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    series.or(last).or(first).or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::events::v1::Event;
    use serde_json::{Value, json};

    use super::{FRESH, Instant, newest_warning, warnings};
    use crate::tests::world::World;

    #[tokio::test]
    async fn events_are_not_read_while_reading_them_is_a_burden() {
        let world = World::new().await;
        let read = async || {
            warnings(&world.context, "team", &["a".to_owned()]).await;
            world.api.requests().len()
        };
        assert_eq!(read().await, 1);
        *world.context.asked.rests.lock().await = Some(Instant::now() + FRESH);
        assert_eq!(read().await, 0);
        *world.context.asked.rests.lock().await = Some(Instant::now());
        assert_eq!(read().await, 1);
    }

    #[test]
    fn only_the_newest_event_counts_however_its_time_is_written() {
        let event = |name: &str, type_: &str, time: Value| -> Event {
            let mut event = json!({
                "metadata": {"name": name, "creationTimestamp": "2027-01-15T08:00:00Z"}, "type": type_, "reason": name,
                "note": format!("{name} happened\n"),
            });
            event.as_object_mut().unwrap().extend(time.as_object().unwrap().clone());
            serde_json::from_value(event).unwrap()
        };
        let mounts = || event("FailedMount", "Warning", json!({"deprecatedLastTimestamp": "2027-01-15T08:00:09Z"}));
        let found = newest_warning("a", vec![mounts(), event("Scheduled", "Normal", json!({}))]).unwrap();
        assert_eq!((found.reason.as_str(), found.message.as_str()), ("FailedMount", "FailedMount happened"));
        let series = json!({"series": {"count": 2, "lastObservedTime": "2027-01-15T08:00:10.000000Z"}});
        assert_eq!(newest_warning("a", vec![mounts(), event("Pulling", "Normal", series)]), None);
        let later = event("FailedCreate", "Warning", json!({"eventTime": "2027-01-15T08:00:11.000000Z"}));
        assert_eq!(newest_warning("a", vec![mounts(), later]).unwrap().reason, "FailedCreate");
        assert_eq!(newest_warning("a", Vec::new()), None);
    }
}
