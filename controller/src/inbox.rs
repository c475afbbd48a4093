//! The newest report of every pod, by object. They are kept in memory only: before a final report is answered, its
//! contents are in `status`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use codex_plan::Received;
use codex_reports::State;
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::timeout};

use crate::by_uid::ByUid;

/// The maximum number of pods per object whose reports are kept. The oldest report is dropped first.
const PODS: usize = 128;
/// The age of a report from which on a lower sequence number is accepted. Requests that were delayed are younger.
const SILENCE: SignedDuration = SignedDuration::from_secs(60);

/// The outcome of offering a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The report is the newest of its pod and was stored.
    Accepted,
    /// A newer report of the same pod is stored; this one was dropped.
    Stale,
    /// The report contradicts the final report of the same pod; the text names the first field that differs.
    Contradiction(String),
}

/// A report that a reconciliation has observed: its pod's uid and its `seq`.
pub type Seen = (String, u64);

/// The newest reports, by the uids of object and pod.
#[derive(Debug)]
pub struct Inbox {
    objects: ByUid<HashMap<String, Entry>>,
    /// Counts the calls of [`Inbox::record`], to wake those who wait for one.
    recorded: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    received: Received,
    /// The newest `seq` whose contents are in `status`.
    recorded: Option<u64>,
    moves: Moves,
}

/// When a trainer was first seen at its latest step and with its newest checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moves {
    step: Option<(u64, Timestamp)>,
    checkpoint: Option<(u64, Timestamp)>,
}

impl Moves {
    /// Returns when the latest step was seen.
    pub fn stepped(&self) -> Option<Timestamp> {
        self.step.map(|(_, at)| at)
    }

    /// Returns when the newest checkpoint was seen.
    pub fn saved(&self) -> Option<Timestamp> {
        self.checkpoint.map(|(_, at)| at)
    }

    fn follow(mut self, received: &Received) -> Self {
        if let State::Training(state) = &received.report.state {
            let seen = |known: Option<(u64, Timestamp)>, step: Option<u64>| match (known, step) {
                (Some((before, at)), Some(step)) if before == step => Some((step, at)),
                (known, None) => known,
                (_, Some(step)) => Some((step, received.at)),
            };
            self.step = seen(self.step, state.progress.as_ref().map(|progress| progress.step));
            self.checkpoint = seen(self.checkpoint, state.last_checkpoint.as_ref().map(|checkpoint| checkpoint.step));
        }
        self
    }
}

#[cfg(test)]
impl Moves {
    /// Returns moves at these times.
    pub(crate) fn at(stepped: Option<Timestamp>, saved: Option<Timestamp>) -> Self {
        Self { step: stepped.map(|at| (1, at)), checkpoint: saved.map(|at| (1, at)) }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self { objects: ByUid::default(), recorded: watch::Sender::new(0) }
    }
}

impl Inbox {
    /// Stores a report unless a newer one of the same pod is stored.
    ///
    /// A sequence number cannot silence a pod: the final report of a trainer or an evaluator is stored whatever its number, and
    /// every other report once the stored one is older than [`SILENCE`]. A pod of a Job sends nothing else after its final
    /// report, so another one contradicts it. A repeated report is accepted again, because its answer may have been lost.
    pub fn offer(&self, received: Received) -> Offer {
        let mut objects = self.objects.lock();
        let pods = objects.entry(received.report.object_uid.clone()).or_default();
        let Some(entry) = pods.get_mut(&received.report.pod_uid) else {
            if pods.len() >= PODS
                && let Some(oldest) = pods.iter().min_by_key(|(_, entry)| entry.received.at).map(|(uid, _)| uid.clone())
            {
                pods.remove(&oldest);
            }
            let moves = Moves::default().follow(&received);
            pods.insert(received.report.pod_uid.clone(), Entry { received, recorded: None, moves });
            return Offer::Accepted;
        };
        let (known, new) = (&entry.received, &received);
        let (older, is_final) = (new.report.seq < known.report.seq, new.report.state.stage().is_final());
        let restarts = matches!(new.report.state, State::Serving(_));
        if known.report.state.stage().is_final() && !restarts {
            return match known.report.contradicts(&new.report) {
                None => {
                    // The pod waits until this number is recorded.
                    entry.received.report.seq = known.report.seq.max(new.report.seq);
                    Offer::Accepted
                }
                // A delayed report of the time before the final one.
                Some(_) if !is_final && older => Offer::Stale,
                Some(difference) => {
                    entry.received.contradiction.get_or_insert_with(|| difference.clone());
                    Offer::Contradiction(difference)
                }
            };
        }
        let silent = new.at.duration_since(known.at) >= SILENCE;
        if older && !is_final && !silent {
            return Offer::Stale;
        }
        if new.report.seq == known.report.seq && known.report.contradicts(&new.report).is_none() {
            return Offer::Accepted;
        }
        if older {
            entry.recorded = None;
        }
        entry.moves = entry.moves.follow(&received);
        entry.received = received;
        Offer::Accepted
    }

    /// Returns the newest report of each pod of an object.
    pub fn of(&self, object: &str) -> Vec<Received> {
        let objects = self.objects.lock();
        objects.get(object).map(|pods| pods.values().map(|entry| entry.received.clone()).collect()).unwrap_or_default()
    }

    /// Returns the latest moves of an object, of whichever of its pods made them.
    pub fn moves(&self, object: &str) -> Moves {
        let latest = |one: Option<(u64, Timestamp)>, other: Option<(u64, Timestamp)>| {
            [one, other].into_iter().flatten().max_by_key(|(_, at)| *at)
        };
        let objects = self.objects.lock();
        let moves = objects.get(object).into_iter().flat_map(HashMap::values).map(|entry| entry.moves);
        moves.fold(Moves::default(), |all, one| Moves {
            step: latest(all.step, one.step),
            checkpoint: latest(all.checkpoint, one.checkpoint),
        })
    }

    /// Records that the contents of these reports are in `status`.
    pub fn record(&self, object: &str, seen: &[Seen]) {
        {
            let mut objects = self.objects.lock();
            let Some(pods) = objects.get_mut(object) else { return };
            for (pod, seq) in seen {
                if let Some(entry) = pods.get_mut(pod) {
                    entry.recorded = entry.recorded.max(Some(*seq));
                }
            }
        }
        self.recorded.send_modify(|count| *count += 1);
    }

    /// Waits until the contents of a report are in `status`. Returns false if that takes longer than `limit`.
    pub async fn is_recorded(&self, object: &str, pod: &str, seq: u64, limit: Duration) -> bool {
        let mut changes = self.recorded.subscribe();
        let holds = || {
            let objects = self.objects.lock();
            let entry = objects.get(object).and_then(|pods| pods.get(pod));
            entry.is_some_and(|entry| entry.recorded >= Some(seq))
        };
        timeout(limit, async {
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

    /// Drops the reports about all objects but these.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.objects.retain(alive);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use codex_plan::Received;
    use codex_provenance::Sha256;
    use codex_reports::{
        Checkpoint, EvaluationState, Kind, Progress, Report, ServingState, Stage, State, TrainingState,
    };
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
                digest: None,
                state: State::Serving(ServingState::default()),
            },
            contradiction: None,
            pod: pod.into(),
            at: Timestamp::from_second(i64::try_from(seq).unwrap()).unwrap(),
        }
    }

    #[test]
    fn a_lower_seq_is_dropped_only_for_the_same_pod() {
        let inbox = Inbox::default();
        assert_eq!(inbox.offer(received("p", 5)), Offer::Accepted);
        assert_eq!(inbox.offer(received("p", 4)), Offer::Stale);
        assert_eq!(inbox.offer(received("p", 5)), Offer::Accepted);
        assert_eq!(inbox.offer(received("q", 1)), Offer::Accepted);
        let mut seqs: Vec<_> = inbox.of("object").iter().map(|received| received.report.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, [1, 5]);
        inbox.retain(&std::collections::HashSet::new());
        assert!(inbox.of("object").is_empty());
    }

    fn evaluated(seq: u64, stage: Stage, done: u64) -> Received {
        let mut received = received("p", seq);
        received.report.kind = Kind::Evaluation;
        received.report.state = State::Evaluation(EvaluationState { stage, done, ..EvaluationState::default() });
        received
    }

    #[test]
    fn a_sequence_number_cannot_silence_a_pod() {
        let inbox = Inbox::default();
        let mut forged = evaluated(0, Stage::Running, 9);
        forged.report.seq = u64::MAX;
        assert_eq!(inbox.offer(forged), Offer::Accepted);
        assert_eq!(inbox.offer(evaluated(7, Stage::Running, 1)), Offer::Stale);
        assert_eq!(inbox.offer(evaluated(70, Stage::Running, 2)), Offer::Accepted, "the other report is old");
        assert_eq!(inbox.offer(evaluated(3, Stage::Finished, 3)), Offer::Accepted, "a final report counts at once");
        assert_eq!(inbox.of("object")[0].report.seq, 3);
    }

    #[test]
    fn two_final_reports_of_a_pod_must_be_equal() {
        let inbox = Inbox::default();
        assert_eq!(inbox.offer(evaluated(5, Stage::Finished, 1)), Offer::Accepted);
        assert_eq!(inbox.offer(evaluated(6, Stage::Finished, 1)), Offer::Accepted, "repeated");
        assert_eq!(inbox.of("object")[0].report.seq, 6);
        assert_eq!(inbox.offer(evaluated(4, Stage::Running, 0)), Offer::Stale, "delayed");
        for other in [evaluated(4, Stage::Finished, 2), evaluated(9, Stage::Running, 2), evaluated(9, Stage::Failed, 1)]
        {
            let offered = inbox.offer(other);
            assert!(matches!(&offered, Offer::Contradiction(why) if why.contains("state.evaluation")), "{offered:?}");
        }
        let kept = inbox.of("object");
        assert_eq!(kept.len(), 1);
        let why = kept[0].contradiction.clone().unwrap();
        assert_eq!(why, "state.evaluation.done is 1 in one and 2 in the other");
    }

    #[test]
    fn a_server_that_restarts_contradicts_nothing() {
        let inbox = Inbox::default();
        let served = |seq, stage| {
            let mut received = received("p", seq);
            received.report.state = State::Serving(ServingState { stage, ..ServingState::default() });
            received
        };
        assert_eq!(inbox.offer(served(5, Stage::Failed)), Offer::Accepted);
        assert_eq!(inbox.offer(served(6, Stage::Running)), Offer::Accepted);
        assert_eq!(inbox.offer(served(4, Stage::Failed)), Offer::Accepted, "a failure is never dropped");
    }

    #[test]
    fn a_report_that_repeats_a_step_is_no_progress() {
        let inbox = Inbox::default();
        let report = |pod: &str, seq: u64, step: u64, checkpoint: Option<u64>| {
            let mut received = received(pod, seq);
            let progress = Progress { step, total_steps: 10, ..Progress::default() };
            let last_checkpoint = checkpoint.map(|step| Checkpoint { step, digest: Sha256::of(b"") });
            received.report.state = State::Training(TrainingState {
                progress: Some(progress),
                last_checkpoint,
                ..TrainingState::default()
            });
            received
        };
        let seconds = || {
            let moves = inbox.moves("object");
            (moves.stepped().map(Timestamp::as_second), moves.saved().map(Timestamp::as_second))
        };
        assert_eq!(seconds(), (None, None));
        inbox.offer(report("p", 1, 4, None));
        inbox.offer(report("p", 2, 4, Some(4)));
        assert_eq!(seconds(), (Some(1), Some(2)));
        inbox.offer(report("p", 3, 5, Some(4)));
        assert_eq!(seconds(), (Some(3), Some(2)));
        // The next attempt repeats steps: that is progress, too.
        inbox.offer(report("q", 7, 4, Some(4)));
        assert_eq!(seconds(), (Some(7), Some(7)));
    }

    #[test]
    fn only_the_newest_reports_of_an_object_are_kept() {
        let inbox = Inbox::default();
        for pod in 0..=PODS as u64 {
            inbox.offer(received(&pod.to_string(), pod));
        }
        let kept = inbox.of("object");
        assert_eq!(kept.len(), PODS);
        assert!(kept.iter().all(|received| received.report.seq > 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_returns_when_its_seq_is_recorded_and_not_before() {
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
