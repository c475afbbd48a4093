//! Events of the cluster about Jobs and pods that do not start. They are read only for those that are late and whose status
//! does not say why, such as a pod that waits for a volume, or a Job whose pods a quota refuses.

use std::time::Duration;

use codex_plan::ClusterWarning;
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::Instant;
use tracing::debug;

use crate::{by_uid::ByUid, context::Context, error::chain};

/// The most Events that are read about an object.
const MOST: u32 = 200;
/// The most objects that Events are read about at once.
const MOST_OBJECTS: usize = 4;
/// How long what was read about an object is not read again.
const FRESH: Duration = Duration::from_secs(30);

/// When Events about an object were last read, and what they said.
type Answer = (Instant, Option<ClusterWarning>);

/// What Events said lately.
#[derive(Debug, Default)]
pub struct Asked(ByUid<Answer>);

impl Asked {
    /// Drops what is no longer fresh.
    pub fn forget(&self) {
        self.0.lock().retain(|_, (at, _)| at.elapsed() < FRESH);
    }
}

/// Returns, for each of the objects with these uids, the newest Event about it if that is a warning. An older warning may no
/// longer hold. Without the right to read Events, nothing is returned.
pub(super) async fn warnings(context: &Context, namespace: &str, uids: &[String]) -> Vec<ClusterWarning> {
    let api: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let mut found = Vec::new();
    for uid in uids.iter().take(MOST_OBJECTS) {
        if let Some((_, known)) = context.asked.0.get(uid).filter(|(at, _)| at.elapsed() < FRESH) {
            found.extend(known);
            continue;
        }
        let about = ListParams::default().fields(&format!("regarding.uid={uid}")).limit(MOST);
        match api.list(&about).await {
            Ok(events) => {
                let newest = newest_warning(uid, events.items);
                context.asked.0.insert(uid, (Instant::now(), newest.clone()));
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

    use super::newest_warning;

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
