//! The end of a pod as the kubelet saw it, compared with what the pod reported. Pure.
//!
//! A report travels over the network and can be sent by anyone who holds the pod's token. The exit code and the termination
//! message come from the kubelet. A result counts only once its pod has ended, and a report that disagrees with the end of
//! its pod, or with another final report of the pod, makes the object fail.

use codex_crds::Reason;
use codex_reports::{Report, Stage, exit};
use k8s_openapi::api::core::v1::ContainerStateTerminated;

use super::failure::WorkFailure;
use crate::{
    metadata::Owner,
    pods::{Facts, Received},
};

/// Exit codes from here on name the signal that killed the process, so the process did not choose them.
const FIRST_SIGNAL: i32 = 128;

/// How a pod that reported a result ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The pod has not ended.
    Pending,
    /// Its termination message confirms the report.
    Confirmed,
    /// It ended, and nothing confirms or contradicts the report. The text says what is missing.
    Unconfirmed(&'static str),
    /// It was killed, or vanished, before it confirmed the report. Another pod reports again.
    Lost,
}

impl Ending {
    /// Returns how the pod with this uid ended. `complete` says whether its Job is complete.
    pub(crate) fn of(owner: &Owner, facts: &[Facts<'_>], pod: &str, complete: bool) -> Self {
        let Some(facts) = facts.iter().find(|facts| facts.uid() == pod) else {
            return if complete {
                Self::Unconfirmed("its pod vanished before its end was observed")
            } else {
                Self::Lost
            };
        };
        let Some(ended) = facts.terminated() else { return Self::Pending };
        match facts.termination_report(owner) {
            Some(message) if message.state.stage() == Stage::Finished => Self::Confirmed,
            _ if ended.exit_code == exit::FINISHED => {
                Self::Unconfirmed("its pod left no termination message that confirms the report")
            }
            _ => Self::Lost,
        }
    }
}

/// Returns a failure if a pod contradicts itself: two final reports, or a final report and the end of the pod, disagree.
pub(crate) fn contradiction(owner: &Owner, facts: &[Facts<'_>], received: &[Received]) -> Option<WorkFailure> {
    let of_owner = |received: &&Received| received.report.object_uid == owner.uid;
    let sentence = received.iter().filter(of_owner).find_map(|received| {
        let pod = &received.pod;
        if let Some(difference) = &received.contradiction {
            return Some(format!("pod {pod} sent two final reports that contradict each other: {difference}"));
        }
        let facts = facts.iter().find(|facts| facts.uid() == received.report.pod_uid)?;
        let message = facts.termination_report(owner);
        against_end(pod, "reported", &received.report, facts.terminated()?).or_else(|| {
            let difference = received.report.contradicts_termination(message.as_ref()?)?;
            let is_final = received.report.state.stage().is_final();
            is_final.then(|| format!("the final report of pod {pod} contradicts its termination message: {difference}"))
        })
    });
    let sentence = sentence.or_else(|| {
        facts.iter().find_map(|facts| {
            let message = facts.termination_report(owner)?;
            against_end(&facts.name(), "wrote in its termination message", &message, facts.terminated()?)
        })
    })?;
    let message = format!("{sentence}. One of them is forged or wrong, so neither counts: create another object");
    Some(WorkFailure::new(Reason::Contradiction, message))
}

/// Returns a sentence if a final report does not fit the exit code of its pod.
fn against_end(pod: &str, said: &str, report: &Report, ended: &ContainerStateTerminated) -> Option<String> {
    let code = ended.exit_code;
    match report.state.stage() {
        Stage::Finished if code != exit::FINISHED && code < FIRST_SIGNAL => {
            Some(format!("pod {pod} {said} that it finished, but exited with code {code}"))
        }
        Stage::Failed if code == exit::FINISHED => {
            Some(format!("pod {pod} {said} that it failed, but exited with code 0"))
        }
        _ => None,
    }
}
