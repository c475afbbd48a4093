//! The environment variables of the pod contract: where to report, and for which object. Pure.

use std::path::PathBuf;

use codex_reports::Kind;

use super::{
    endpoint::Endpoint,
    error::ReportingError,
    sender::{Identity, Pace},
    work::Work,
};

const URL: &str = "CODEX_REPORT_URL";
const AUTHORITY: &str = "CODEX_REPORT_CA";
const TOKEN: &str = "CODEX_REPORT_TOKEN";
const POD_UID: &str = "CODEX_POD_UID";
const KIND: &str = "CODEX_OBJECT_KIND";
const NAMESPACE: &str = "CODEX_OBJECT_NAMESPACE";
const NAME: &str = "CODEX_OBJECT_NAME";
const UID: &str = "CODEX_OBJECT_UID";
const TERMINATION_LOG: &str = "CODEX_TERMINATION_LOG";

/// The variables of the pod contract: all or none must be set.
pub const REQUIRED: [&str; 8] = [URL, AUTHORITY, TOKEN, POD_UID, KIND, NAMESPACE, NAME, UID];

/// The settings of a reporter.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) identity: Identity,
    pub(super) endpoint: Endpoint,
    pub(super) termination_log: PathBuf,
    pub(super) pace: Pace,
}

/// Reads the settings; `None` if no variable is set. An empty variable counts as absent.
pub(super) fn read<W: Work>(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Settings>, ReportingError> {
    let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let Some(present) = REQUIRED.into_iter().find(|name| lookup(name).is_some()) else { return Ok(None) };
    let get =
        |name: &'static str| lookup(name).ok_or(ReportingError::Incomplete { present, missing: name, all: &REQUIRED });

    let wrong = |variable, value, right| ReportingError::Variable { variable, value, right };
    let url = get(URL)?;
    if !url.starts_with("https://") {
        return Err(wrong(URL, url, format!("write an https address that ends in {}", codex_reports::PATH)));
    }
    let kind = get(KIND)?;
    if kind != name(W::KIND) {
        return Err(wrong(KIND, kind, format!("this command works for a {}", name(W::KIND))));
    }
    let authority = PathBuf::from(get(AUTHORITY)?);
    let identity = Identity {
        kind: W::KIND,
        namespace: get(NAMESPACE)?,
        name: get(NAME)?,
        object_uid: get(UID)?,
        pod_uid: get(POD_UID)?,
    };
    let endpoint = Endpoint::new(url, authority.clone(), PathBuf::from(get(TOKEN)?))
        .map_err(|source| ReportingError::Authority { path: authority, source })?;
    let termination_log = lookup(TERMINATION_LOG).unwrap_or_else(|| "/dev/termination-log".to_owned()).into();
    Ok(Some(Settings { identity, endpoint, termination_log, pace: Pace { repeat: W::REPEAT, ..Pace::default() } }))
}

/// Returns the value of the variable for a kind.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::TrainingRun => "TrainingRun",
        Kind::Evaluation => "Evaluation",
        Kind::ReasoningPod => "ReasoningPod",
    }
}

#[cfg(test)]
mod tests {
    use codex_reports::TrainingState;

    use super::*;

    fn read_from(variables: &[(&'static str, &str)]) -> Result<Option<Settings>, ReportingError> {
        read::<TrainingState>(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    const FULL: [(&str, &str); 8] = [
        (URL, "https://codex-controller.codex-system.svc/v1/reports"),
        (AUTHORITY, "/nowhere/ca.crt"),
        (TOKEN, "/nowhere/token"),
        (POD_UID, "p"),
        (KIND, "TrainingRun"),
        (NAMESPACE, "ns"),
        (NAME, "run"),
        (UID, "u"),
    ];

    #[test]
    fn no_variables_no_reports() {
        assert!(read_from(&[]).unwrap().is_none());
        assert!(read_from(&[(TERMINATION_LOG, "/dev/null")]).unwrap().is_none());
    }

    #[test]
    fn a_missing_variable_is_named() {
        for left_out in REQUIRED {
            let half: Vec<_> = FULL.into_iter().filter(|(name, _)| *name != left_out).collect();
            let message = read_from(&half).unwrap_err().to_string();
            assert!(message.contains(&format!("is set but {left_out} is not")), "{message}");
        }
    }

    #[test]
    fn invalid_values_are_refused() {
        let with = |name: &str, value: &'static str| {
            let mut variables = FULL;
            for variable in &mut variables {
                if variable.0 == name {
                    variable.1 = value;
                }
            }
            read_from(&variables).unwrap_err().to_string()
        };
        assert!(with(URL, "http://controller/v1/reports").contains("CODEX_REPORT_URL is \"http://"));
        assert!(with(KIND, "Evaluation").contains("works for a TrainingRun"));
        assert!(with(NAME, "").contains("CODEX_OBJECT_NAME is not"));
        assert!(read_from(&FULL).unwrap_err().to_string().contains("/nowhere/ca.crt"));
    }
}
