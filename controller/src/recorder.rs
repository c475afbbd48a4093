//! Records Events. An Event that repeats within six minutes counts as one of a series. kube's recorder keeps whole Events for that and
//! reads all of them for each new one; this one keeps a hash, a name and a count.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

use codex_plan::{Event, EventType, text::truncate_bytes};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::json;

use crate::{MANAGER, error::answered};

/// How long after an Event an equal one counts as one of its series.
const SERIES: SignedDuration = SignedDuration::from_mins(6);
/// How often Events that are older are forgotten.
const FORGET: SignedDuration = SignedDuration::from_secs(60);
/// An Event's note has at most so many bytes.
const NOTE: usize = 1024;

/// The latest Event of a series.
#[derive(Debug)]
struct Recorded {
    name: Box<str>,
    count: i32,
    at: Timestamp,
}

/// The Events of the last minutes, by a hash of what makes them equal.
#[derive(Debug, Default)]
struct Series {
    latest: HashMap<u64, Recorded>,
    forgotten_at: Timestamp,
}

impl Series {
    /// Returns the name of the Event that an equal one continues now, and how many that makes.
    fn next(&mut self, key: u64, now: Timestamp) -> Option<(Box<str>, i32)> {
        let lasts = |recorded: &Recorded| now.duration_since(recorded.at) < SERIES;
        if now.duration_since(self.forgotten_at) >= FORGET {
            self.latest.retain(|_, recorded| lasts(recorded));
            self.forgotten_at = now;
        }
        let recorded = self.latest.get(&key).filter(|recorded| lasts(recorded))?;
        Some((recorded.name.clone(), recorded.count.saturating_add(1)))
    }
}

/// Records Events in the name of this controller.
pub struct Recorder {
    client: Client,
    /// The identity of this process.
    instance: String,
    series: Mutex<Series>,
    hasher: RandomState,
}

impl Recorder {
    /// Creates a recorder for the process with this identity.
    pub fn new(client: Client, identity: &str) -> Self {
        let instance = identity.chars().take(128).collect();
        Self { client, instance, series: Mutex::default(), hasher: RandomState::new() }
    }

    /// Records an Event about an object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn record(&self, event: &Event, about: &ObjectReference, now: Timestamp) -> kube::Result<()> {
        let kind = match event.type_ {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        let key = self.hasher.hash_one((kind, &event.reason, &event.action, &about.uid, &about.kind));
        // A thread that panicked while it held the lock left whole entries, so the poison is ignored.
        let series = || self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let former = series().next(key, now);
        let continues = match &former {
            Some((name, count)) => self.continued(about, name, *count, now).await?,
            None => false,
        };
        let (name, count) = match former.filter(|_| continues) {
            Some(former) => former,
            None => (self.created(event, kind, about, now).await?, 1),
        };
        series().latest.insert(key, Recorded { name, count, at: now });
        Ok(())
    }

    fn request(about: &ObjectReference) -> Request {
        Request::new(v1::Event::url_path(&(), Some(about.namespace.as_deref().unwrap_or("default"))))
    }

    /// Counts an Event once more. Returns false if it no longer exists.
    async fn continued(&self, about: &ObjectReference, name: &str, count: i32, now: Timestamp) -> kube::Result<bool> {
        let patch = Patch::Merge(json!({ "series": { "count": count, "lastObservedTime": MicroTime(now) } }));
        let request = Self::request(about).patch(name, &PatchParams::default(), &patch);
        match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
            Err(source) if answered(&source, 404) => Ok(false),
            counted => counted.map(|_| true),
        }
    }

    /// Creates an Event and returns its name.
    async fn created(
        &self,
        event: &Event,
        kind: &str,
        about: &ObjectReference,
        now: Timestamp,
    ) -> kube::Result<Box<str>> {
        let name = format!("{}.{:x}", about.name.as_deref().unwrap_or(MANAGER), now.as_nanosecond());
        let recorded = v1::Event {
            action: Some(event.action.clone()),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: about.namespace.clone(),
                ..ObjectMeta::default()
            },
            note: Some(truncate_bytes(&event.note, NOTE)),
            reason: Some(event.reason.clone()),
            regarding: Some(about.clone()),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(kind.to_owned()),
            ..v1::Event::default()
        };
        let body = serde_json::to_vec(&recorded).map_err(kube::Error::SerdeError)?;
        let request = Self::request(about).create(&PostParams::default(), body);
        self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
        Ok(name.into())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Recorded, Series};

    #[test]
    fn a_series_ends_six_minutes_after_its_latest_event() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut series = Series::default();
        assert_eq!(series.next(1, at(0)), None);
        series.latest.insert(1, Recorded { name: "a".into(), count: 1, at: at(0) });
        assert_eq!(series.next(1, at(359)), Some(("a".into(), 2)));
        assert_eq!(series.next(2, at(359)), None);
        assert_eq!(series.next(1, at(360)), None);
        assert_eq!(series.next(1, at(420)), None);
        assert!(series.latest.is_empty(), "it is forgotten");
    }
}
