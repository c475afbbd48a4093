//! The ids that pods run with. Pure.

use std::{fmt, str::FromStr};

use codex_crds::PodIds;
use k8s_openapi::api::core::v1::{PodSecurityContext, SeccompProfile};
use serde::{Deserialize, Serialize};

/// The largest id of Kubernetes.
const LARGEST: u32 = i32::MAX.unsigned_abs();

/// The ids of pods whose object names none: a setting of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RunAs {
    /// The user, the group and the group of volumes.
    Id(u32),
    /// Pods name no id: the cluster fills them in, or they are those of the image.
    Platform,
}

impl Default for RunAs {
    fn default() -> Self {
        Self::Id(65_532)
    }
}

impl RunAs {
    /// Whether it is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the security context of a pod. Each id that its object names goes before the setting.
    pub(crate) fn security_context(self, named: Option<&PodIds>) -> PodSecurityContext {
        let named = named.cloned().unwrap_or_default();
        let id = match self {
            Self::Id(id) => Some(i64::from(id)),
            Self::Platform => None,
        };
        PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: named.run_as_user.or(id),
            run_as_group: named.run_as_group.or(id),
            fs_group: named.fs_group.or(id),
            // Also where the cluster fills in the group.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            supplemental_groups: Some(named.supplemental_groups).filter(|groups| !groups.is_empty()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
            ..PodSecurityContext::default()
        }
    }
}

impl FromStr for RunAs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "platform" {
            return Ok(Self::Platform);
        }
        let id = text.parse().ok().filter(|id| (1..=LARGEST).contains(id));
        id.map(Self::Id).ok_or_else(|| {
            format!("{text:?} is no user for pods: write a number from 1 to {LARGEST}, or platform to leave the ids to the cluster")
        })
    }
}

impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Platform => f.write_str("platform"),
        }
    }
}

impl TryFrom<String> for RunAs {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RunAs> for String {
    fn from(run_as: RunAs) -> Self {
        run_as.to_string()
    }
}

#[cfg(test)]
mod tests {
    use codex_crds::PodIds;

    use super::RunAs;

    #[test]
    fn the_setting_is_a_number_or_platform() {
        for (text, read) in
            [("65532", RunAs::default()), (" 1000650000 ", RunAs::Id(1_000_650_000)), ("platform", RunAs::Platform)]
        {
            assert_eq!(text.parse(), Ok(read));
            assert_eq!(String::from(read), text.trim());
        }
        for wrong in ["", "0", "-1", "root", "2147483648", "1000:1000", "Platform"] {
            let said = wrong.parse::<RunAs>().unwrap_err();
            assert!(said.contains(&format!("{wrong:?}")) && said.contains("1 to 2147483647, or platform"), "{said}");
        }
    }

    #[test]
    fn an_id_of_the_object_goes_before_the_setting() {
        let ids = |run_as: RunAs, named: Option<&PodIds>| {
            let context = run_as.security_context(named);
            assert_eq!(context.run_as_non_root, Some(true));
            assert!(context.seccomp_profile.is_some());
            (context.run_as_user, context.run_as_group, context.fs_group, context.supplemental_groups)
        };
        assert_eq!(ids(RunAs::default(), None), (Some(65_532), Some(65_532), Some(65_532), None));
        assert_eq!(ids(RunAs::Platform, None), (None, None, None, None));
        assert_eq!(ids(RunAs::Platform, Some(&PodIds::default())), (None, None, None, None));
        let named =
            PodIds { run_as_user: Some(1_000), run_as_group: None, fs_group: Some(0), supplemental_groups: vec![5, 6] };
        assert_eq!(ids(RunAs::Platform, Some(&named)), (Some(1_000), None, Some(0), Some(vec![5, 6])));
        assert_eq!(ids(RunAs::Id(7), Some(&named)), (Some(1_000), Some(7), Some(0), Some(vec![5, 6])));
    }
}
