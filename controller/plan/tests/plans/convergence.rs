//! Convergence: whatever happens to the children, plans settle in the right state.

use codex_crds::{ReasoningPodPhase, TrainingRunPhase};
use codex_reports::State;
use codex_verdict::{Ring, Verdict};
use proptest::prelude::*;
use serde_json::json;

use crate::{
    make,
    world::{End, World},
};

/// Something that happens to children, or that a user does.
#[derive(Clone, Debug)]
enum Happening {
    Jobs,
    Start,
    Progress(u64),
    Train { reported: bool },
    Evaluate { right: u64, reported: bool },
    Break { job: bool, code: i32 },
    Serve { verifies: bool },
    Suspend(bool),
    Restart,
    DryRun(bool),
    Replicas(i32),
    Ring { run: bool, back: bool },
    Signer(bool),
    Obstruct(bool),
    Tamper,
    Wait(i64),
    Vanish { job: bool },
    Forge,
    Reconcile,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        4 => Just(Jobs),
        4 => Just(Start),
        2 => (1_u64..900).prop_map(Progress),
        3 => any::<bool>().prop_map(|reported| Train { reported }),
        3 => (prop_oneof![Just(500_u64), Just(480), Just(100)], any::<bool>())
            .prop_map(|(right, reported)| Evaluate { right, reported }),
        2 => (any::<bool>(), prop_oneof![Just(1), Just(2), Just(137), Just(143)]).prop_map(|(job, code)| Break { job, code }),
        3 => any::<bool>().prop_map(|verifies| Serve { verifies }),
        1 => any::<bool>().prop_map(Suspend),
        1 => Just(Restart),
        1 => any::<bool>().prop_map(DryRun),
        1 => (0..4).prop_map(Replicas),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(run, back)| Ring { run, back }),
        1 => any::<bool>().prop_map(Signer),
        1 => any::<bool>().prop_map(Obstruct),
        1 => Just(Tamper),
        2 => (1_i64..40).prop_map(Wait),
        1 => any::<bool>().prop_map(|job| Vanish { job }),
        1 => Just(Forge),
        8 => Just(Reconcile),
    ]
}

fn name(trainer: bool) -> &'static str {
    if trainer { "codex-t-cot" } else { "codex-e-lite" }
}

fn happen(world: &mut World, happening: &Happening) {
    match *happening {
        Happening::Jobs => world.sync_jobs(),
        Happening::Start => world.start_pods(),
        Happening::Progress(step) => {
            if let Some(pod) = world.working("codex-t-cot") {
                world.say("codex-t-cot", &pod, State::Training(make::training(step)));
            }
        }
        Happening::Train { reported } => {
            if let Some(pod) = world.working("codex-t-cot") {
                world.end("codex-t-cot", &pod, &End::Finished(Box::new(State::Training(make::trained("a")))), reported);
            }
        }
        Happening::Evaluate { right, reported } => {
            if let Some(pod) = world.working("codex-e-lite") {
                let state = State::Evaluation(make::evaluated("a", right));
                world.end("codex-e-lite", &pod, &End::Finished(Box::new(state)), reported);
            }
        }
        Happening::Break { job, code } => {
            if let Some(pod) = world.working(name(job)) {
                let reason = if code == 137 { "OOMKilled" } else { "Error" };
                world.end(name(job), &pod, &End::Code(code, reason), false);
            }
        }
        Happening::Serve { verifies } => world.sync_servers(verifies),
        Happening::Suspend(suspend) => world.run.spec.suspend = suspend,
        Happening::Restart => world.restart(),
        Happening::DryRun(dry_run) => world.pod.spec.dry_run = dry_run,
        Happening::Replicas(replicas) => world.pod.spec.replicas = replicas,
        Happening::Ring { run, back } => {
            let ring = if back { Ring::Base0C } else { Ring::Base0D };
            if run {
                world.run.spec.rollout_ring = ring;
            } else {
                world.pod.spec.rollout_ring = ring;
            }
        }
        Happening::Signer(there) => world.signer = there,
        Happening::Obstruct(obstructed) => world.obstructed = obstructed,
        Happening::Tamper => world.tampered = world.deployment.is_some(),
        Happening::Wait(seconds) => world.second += seconds,
        Happening::Vanish { job } => {
            world.jobs.remove(name(job));
            world.pods.retain(|pod, _| !pod.starts_with(name(job)));
        }
        Happening::Forge => world.forge(),
        Happening::Reconcile => {
            world.reconcile();
        }
    }
}

/// Reconciles until nothing changes. Only the clock advances.
fn settle(world: &mut World) {
    for _ in 0..20 {
        world.second += 11;
        if !world.reconcile() {
            return;
        }
    }
    panic!("the plans do not settle");
}

/// Lets everything succeed from here on.
fn finish(world: &mut World) {
    finish_within(world, 0);
}

/// The same; every step takes so many seconds.
pub(crate) fn finish_within(world: &mut World, seconds: i64) {
    world.run.spec.suspend = false;
    world.signer = true;
    world.obstructed = false;
    world.pod.spec.dry_run = false;
    world.pod.spec.rollout_ring = world.run.spec.rollout_ring;
    for _ in 0..8 {
        settle(world);
        world.sync_jobs();
        world.second += seconds;
        world.start_pods();
        settle(world);
        world.second += seconds;
        happen(world, &Happening::Train { reported: true });
        happen(world, &Happening::Evaluate { right: 500, reported: true });
        settle(world);
        world.sync_jobs();
        world.sync_servers(true);
    }
    world.second += 120;
    settle(world);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn plans_settle(happenings in prop::collection::vec(happening(), 0..80), based in any::<bool>()) {
        let mut world = World::new();
        if based {
            world.run.spec.base = Some(make::from(json!({"persistentVolumeClaim": {"claimName": "output", "path": "given"}})));
        }
        for happening in &happenings {
            world.second += 1;
            happen(&mut world, happening);
        }
        settle(&mut world);
        finish(&mut world);
        let run = world.run.status.clone().unwrap();
        let evaluation = world.evaluation.status.clone().unwrap();
        let pod = world.pod.status.clone().unwrap();
        match run.phase.unwrap() {
            TrainingRunPhase::Succeeded => {
                prop_assert_eq!(&run.model.unwrap().digest, &make::model("a").digest);
                prop_assert_eq!(run.base.is_some(), based);
            }
            // A run fails only for a reason that no retry can mend.
            TrainingRunPhase::Failed => prop_assert!(run.model.is_none() && evaluation.verdict.is_none()),
            other => prop_assert!(false, "the run settles in {other:?}"),
        }
        prop_assert_eq!(pod.phase == Some(ReasoningPodPhase::Serving), evaluation.verdict == Some(Verdict::Passed));
        prop_assert_eq!(world.deployment.is_some(), evaluation.verdict == Some(Verdict::Passed));
        let writes = world.writes.clone();
        world.second += 1_000;
        prop_assert!(!world.reconcile());
        prop_assert_eq!(world.writes, writes);
    }
}

#[test]
fn a_successful_chain_takes_few_writes() {
    let mut world = World::new();
    finish(&mut world);
    assert_eq!(world.pod.status.as_ref().unwrap().phase, Some(ReasoningPodPhase::Serving));
    insta::assert_snapshot!(world.writes.join("\n"));
}
