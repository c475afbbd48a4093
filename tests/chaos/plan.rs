//! Which fault happens when, and how long it lasts: a function of the seed. Pure.

use std::{fmt, ops::RangeInclusive, time::Duration};

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    ControllerKilled,
    ControllerPaused,
    ControllerDeleted,
    ApiServerKilled,
    ApiServerPaused,
    EtcdKilled,
    EtcdPaused,
    KubeletKilled,
    ControllerManagerPaused,
    SchedulerPaused,
    NodeCordoned,
    NodeDeleted,
    TrainerDeleted,
    EvaluatorDeleted,
    ServerDeleted,
    TrainerKilled,
    EvaluatorKilled,
    ServerKilled,
    WatchesCut,
    Conflicts,
    TooManyRequests,
    ServerErrors,
    SlowAnswers,
    LostAnswers,
    ReportsFlooded,
    ReportsSlow,
    ReportsCut,
    PodLies,
    DiskFull,
}

impl Fault {
    /// All kinds.
    pub(crate) const ALL: [Self; 29] = [
        Self::ControllerKilled,
        Self::ControllerPaused,
        Self::ControllerDeleted,
        Self::ApiServerKilled,
        Self::ApiServerPaused,
        Self::EtcdKilled,
        Self::EtcdPaused,
        Self::KubeletKilled,
        Self::ControllerManagerPaused,
        Self::SchedulerPaused,
        Self::NodeCordoned,
        Self::NodeDeleted,
        Self::TrainerDeleted,
        Self::EvaluatorDeleted,
        Self::ServerDeleted,
        Self::TrainerKilled,
        Self::EvaluatorKilled,
        Self::ServerKilled,
        Self::WatchesCut,
        Self::Conflicts,
        Self::TooManyRequests,
        Self::ServerErrors,
        Self::SlowAnswers,
        Self::LostAnswers,
        Self::ReportsFlooded,
        Self::ReportsSlow,
        Self::ReportsCut,
        Self::PodLies,
        Self::DiskFull,
    ];

    /// Returns the name on the command line and in the output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ControllerKilled => "controller-killed",
            Self::ControllerPaused => "controller-paused",
            Self::ControllerDeleted => "controller-deleted",
            Self::ApiServerKilled => "api-server-killed",
            Self::ApiServerPaused => "api-server-paused",
            Self::EtcdKilled => "etcd-killed",
            Self::EtcdPaused => "etcd-paused",
            Self::KubeletKilled => "kubelet-killed",
            Self::ControllerManagerPaused => "controller-manager-paused",
            Self::SchedulerPaused => "scheduler-paused",
            Self::NodeCordoned => "node-cordoned",
            Self::NodeDeleted => "node-deleted",
            Self::TrainerDeleted => "trainer-deleted",
            Self::EvaluatorDeleted => "evaluator-deleted",
            Self::ServerDeleted => "server-deleted",
            Self::TrainerKilled => "trainer-killed",
            Self::EvaluatorKilled => "evaluator-killed",
            Self::ServerKilled => "server-killed",
            Self::WatchesCut => "watches-cut",
            Self::Conflicts => "conflicts",
            Self::TooManyRequests => "too-many-requests",
            Self::ServerErrors => "server-errors",
            Self::SlowAnswers => "slow-answers",
            Self::LostAnswers => "lost-answers",
            Self::ReportsFlooded => "reports-flooded",
            Self::ReportsSlow => "reports-slow",
            Self::ReportsCut => "reports-cut",
            Self::PodLies => "pod-lies",
            Self::DiskFull => "disk-full",
        }
    }

    /// Finds a kind by its name.
    ///
    /// # Errors
    /// If no kind has this name; the sentence lists all names.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("`{name}` is not a fault; use {}", names.join(", "))
        })
    }

    /// Returns how many seconds it lasts. A paused controller stands still so long after another one leads.
    fn lasts(self) -> RangeInclusive<u64> {
        match self {
            Self::ControllerKilled
            | Self::ControllerDeleted
            | Self::TrainerDeleted
            | Self::EvaluatorDeleted
            | Self::ServerDeleted
            | Self::TrainerKilled
            | Self::EvaluatorKilled
            | Self::ServerKilled
            | Self::PodLies => 0..=0,
            Self::NodeDeleted => 2..=6,
            Self::ControllerPaused | Self::EtcdKilled | Self::ApiServerKilled => 3..=8,
            // Shorter than a Lease of 30 s. The holder of one of 7 s always loses it without the API server, because it stops after 5 s.
            Self::ApiServerPaused | Self::EtcdPaused | Self::WatchesCut => 5..=12,
            Self::KubeletKilled
            | Self::ControllerManagerPaused
            | Self::SchedulerPaused
            | Self::NodeCordoned
            | Self::Conflicts
            | Self::TooManyRequests
            | Self::ServerErrors
            | Self::SlowAnswers
            | Self::LostAnswers
            | Self::ReportsFlooded
            | Self::ReportsSlow
            | Self::ReportsCut
            | Self::DiskFull => 8..=18,
        }
    }
}

/// The longest delay of a request.
const LATE: Duration = Duration::from_secs(5);

/// Returns how long the Lease of the controllers lasts: with even seeds as in the overlay for high availability, with odd ones as by
/// default.
pub(crate) fn lease(seed: u64) -> Duration {
    Duration::from_secs(if seed.is_multiple_of(2) { 7 } else { 30 })
}

/// Returns the longest delay of a request under a Lease. A leader stops writing a third of the Lease before it expires, so a write that
/// arrives later than that is allowed to violate the first invariant.
pub(crate) fn late(lease: Duration) -> Duration {
    LATE.min(lease / 4)
}

/// A fault with everything that the seed decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// The number, from 1.
    pub(crate) number: usize,
    pub(crate) fault: Fault,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// The pause before the next one.
    pub(crate) then: Duration,
    /// Chooses one of several targets.
    pub(crate) choice: u64,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault {}: {}", self.number, self.fault.name())?;
        if self.lasts.is_zero() { Ok(()) } else { write!(f, " for {} s", self.lasts.as_secs()) }
    }
}

/// The faults of a seed: rounds in which each kind occurs once, in an order of its own.
pub(crate) struct Plan {
    random: ChaCha8Rng,
    kinds: Vec<Fault>,
    /// What is left of this round, the next one last.
    round: Vec<Fault>,
    number: usize,
}

impl Plan {
    /// Plans faults of these kinds.
    pub(crate) fn new(seed: u64, kinds: Vec<Fault>) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), kinds, round: Vec::new(), number: 0 }
    }
}

impl Iterator for Plan {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.round.is_empty() {
            self.round.clone_from(&self.kinds);
            self.round.shuffle(&mut self.random);
        }
        let fault = self.round.pop()?;
        self.number += 1;
        Some(Planned {
            number: self.number,
            fault,
            lasts: Duration::from_secs(self.random.random_range(fault.lasts())),
            then: Duration::from_secs(self.random.random_range(2..=6)),
            choice: self.random.random(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_parse() {
        for fault in Fault::ALL {
            assert_eq!(Fault::parse(fault.name()), Ok(fault));
        }
        assert!(Fault::parse("etcd").unwrap_err().contains("etcd-killed"));
        assert_eq!(BTreeSet::from(Fault::ALL).len(), Fault::ALL.len());
    }

    #[test]
    fn a_seed_always_means_the_same_faults_and_another_one_others() {
        let plan = |seed| Plan::new(seed, Fault::ALL.to_vec()).take(60).collect::<Vec<_>>();
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn each_round_holds_every_kind_once() {
        let plan: Vec<_> = Plan::new(3, Fault::ALL.to_vec()).take(2 * Fault::ALL.len()).map(|it| it.fault).collect();
        for round in plan.chunks(Fault::ALL.len()) {
            assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from(Fault::ALL));
        }
    }

    #[test]
    fn no_fault_outlives_a_long_lease_and_a_plan_without_kinds_is_empty() {
        // A leader writes for two thirds of the Lease without a renewal.
        let writes = lease(1) * 2 / 3;
        assert!(Plan::new(1, Fault::ALL.to_vec()).take(500).all(|planned| planned.lasts < writes));
        assert!(Plan::new(1, Vec::new()).next().is_none());
    }

    #[test]
    fn no_request_is_later_than_the_lease_allows() {
        assert_eq!([lease(4), lease(7)], [Duration::from_secs(7), Duration::from_secs(30)]);
        for lease in [lease(0), lease(1)] {
            assert!(late(lease) < lease / 3, "{lease:?}");
        }
    }
}
