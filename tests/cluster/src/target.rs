//! The target cluster: the local one, or that of a kubeconfig context with a registry from which it pulls.

use crate::{Error, Result};

/// The cluster that tests, demo and benchmarks run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The cluster of this machine, started if necessary.
    Local,
    /// An existing cluster.
    Current {
        /// The kubeconfig context; `None` is the current one.
        context: Option<String>,
        /// `host:port` (and path) of a registry that this machine pushes to and the cluster pulls from.
        registry: String,
    },
}

impl Target {
    /// Reads `CLUSTER` (`local`, the default; `current`; or `context:NAME`) and `REGISTRY`.
    ///
    /// # Errors
    /// If `CLUSTER` has another value, or a cluster that is not local has no registry.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self::parse(&variable("CLUSTER"), &variable("REGISTRY"))
    }

    fn parse(cluster: &str, registry: &str) -> Result<Self> {
        let context = match cluster {
            "" | "local" => return Ok(Self::Local),
            "current" => None,
            other => {
                Some(other.strip_prefix("context:").filter(|name| !name.is_empty()).map(String::from).ok_or_else(
                    || Error::Input {
                        field: "CLUSTER",
                        value: other.into(),
                        expected: "`local`, `current` or `context:NAME`".into(),
                    },
                )?)
            }
        };
        let registry = registry.trim_end_matches('/');
        if registry.is_empty() || registry.contains("://") || registry.contains(char::is_whitespace) {
            return Err(Error::Input {
                field: "REGISTRY",
                value: registry.into(),
                expected: "host:port of a registry that this machine pushes to and the cluster pulls from".into(),
            });
        }
        Ok(Self::Current { context, registry: registry.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_cluster_is_the_default() {
        assert_eq!(Target::parse("", "").unwrap(), Target::Local);
        assert_eq!(Target::parse("local", "ignored:5000").unwrap(), Target::Local);
    }

    #[test]
    fn another_cluster_needs_a_registry() {
        let current = Target::Current { context: None, registry: "r:5000".into() };
        assert_eq!(Target::parse("current", "r:5000/").unwrap(), current);
        let named = Target::Current { context: Some("a".into()), registry: "r:5000".into() };
        assert_eq!(Target::parse("context:a", "r:5000").unwrap(), named);
        for (cluster, registry) in
            [("current", ""), ("current", "http://r"), ("kind", "r:5000"), ("context:", "r:5000")]
        {
            let error = Target::parse(cluster, registry).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}
