//! The newest report of every pod, by object. In memory only: what matters is in `status` before a final report is
//! answered. No I/O.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use codex_plan::Received;
use tokio::{sync::watch, time::timeout};

/// The most pods per object whose reports are kept; the oldest reports go first.
const PODS: usize = 32;

/// Whether a report was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is the newest of its pod.
    Taken,
    /// A newer one of the same pod is here already.
    Stale,
}

/// A report that an observation has used: its pod's uid and its `seq`.
pub(super) type Seen = (String, u64);

/// The newest reports.
#[derive(Debug)]
pub struct Inbox {
    objects: Mutex<HashMap<String, HashMap<String, Entry>>>,
    /// Grows whenever something was recorded.
    recorded: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    received: Received,
    /// The newest `seq` that `status` holds.
    recorded: Option<u64>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { objects: Mutex::default(), recorded: watch::Sender::new(0) }
    }
}

impl Inbox {
    /// Takes a report unless a newer one of the same pod is here. The same one again is taken: its answer was lost.
    pub fn offer(&self, received: Received) -> Offer {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = objects.entry(received.report.object_uid.clone()).or_default();
        match pods.get_mut(&received.report.pod_uid) {
            Some(entry) if received.report.seq < entry.received.report.seq => Offer::Stale,
            Some(entry) if received.report.seq == entry.received.report.seq => Offer::Taken,
            Some(entry) => {
                entry.received = received;
                Offer::Taken
            }
            None => {
                if pods.len() >= PODS
                    && let Some(oldest) =
                        pods.iter().min_by_key(|(_, entry)| entry.received.at).map(|(uid, _)| uid.clone())
                {
                    pods.remove(&oldest);
                }
                pods.insert(received.report.pod_uid.clone(), Entry { received, recorded: None });
                Offer::Taken
            }
        }
    }

    /// The newest reports about an object.
    pub fn of(&self, object: &str) -> Vec<Received> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.get(object).map(|pods| pods.values().map(|entry| entry.received.clone()).collect()).unwrap_or_default()
    }

    /// Says that `status` holds what these reports said.
    pub fn record(&self, object: &str, seen: &[Seen]) {
        {
            let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(pods) = objects.get_mut(object) else { return };
            for (pod, seq) in seen {
                if let Some(entry) = pods.get_mut(pod) {
                    entry.recorded = entry.recorded.max(Some(*seq));
                }
            }
        }
        self.recorded.send_modify(|count| *count += 1);
    }

    /// Waits until `status` holds what a report said; false when that takes longer than `patience`.
    pub async fn is_recorded(&self, object: &str, pod: &str, seq: u64, patience: Duration) -> bool {
        let mut changes = self.recorded.subscribe();
        let holds = || {
            let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = objects.get(object).and_then(|pods| pods.get(pod));
            entry.is_some_and(|entry| entry.recorded >= Some(seq))
        };
        timeout(patience, async {
            while !holds() {
                if changes.changed().await.is_err() {
                    return false;
                }
            }
            true
        })
        .await
        .unwrap_or(false)
    }

    /// Forgets all but these objects.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| alive.contains(uid));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use codex_plan::Received;
    use codex_reports::{Kind, Report, ServingState, State};
    use jiff::Timestamp;

    use super::{Inbox, Offer, PODS};

    fn received(pod: &str, seq: u64) -> Received {
        Received {
            report: Report {
                schema_version: 1,
                kind: Kind::ReasoningPod,
                namespace: "a".into(),
                name: "b".into(),
                object_uid: "object".into(),
                pod_uid: pod.into(),
                attempt: 1,
                seq,
                config_digest: None,
                state: State::Serving(ServingState::default()),
            },
            pod: pod.into(),
            at: Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap(),
        }
    }

    #[test]
    fn a_lower_seq_of_the_same_pod_is_dropped_and_another_pods_is_not() {
        let inbox = Inbox::default();
        assert_eq!(inbox.offer(received("p", 5)), Offer::Taken);
        assert_eq!(inbox.offer(received("p", 4)), Offer::Stale);
        assert_eq!(inbox.offer(received("p", 5)), Offer::Taken);
        assert_eq!(inbox.offer(received("q", 1)), Offer::Taken);
        let mut seqs: Vec<_> = inbox.of("object").iter().map(|received| received.report.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, [1, 5]);
        inbox.retain(&std::collections::HashSet::new());
        assert!(inbox.of("object").is_empty());
    }

    #[test]
    fn a_crowd_of_pods_does_not_fill_the_memory() {
        let inbox = Inbox::default();
        for pod in 0..=PODS as u64 {
            inbox.offer(received(&pod.to_string(), pod));
        }
        let kept = inbox.of("object");
        assert_eq!(kept.len(), PODS);
        assert!(kept.iter().all(|received| received.report.seq > 0));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_hears_when_its_seq_is_recorded_and_not_before() {
        let inbox = Arc::new(Inbox::default());
        inbox.offer(received("p", 7));
        assert!(!inbox.is_recorded("object", "p", 7, Duration::from_secs(1)).await);
        inbox.record("object", &[("p".into(), 6)]);
        assert!(!inbox.is_recorded("object", "p", 7, Duration::from_secs(1)).await);
        let waiting = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.is_recorded("object", "p", 7, Duration::from_secs(5)).await }
        });
        tokio::task::yield_now().await;
        inbox.record("object", &[("p".into(), 7)]);
        assert!(waiting.await.unwrap());
    }
}
