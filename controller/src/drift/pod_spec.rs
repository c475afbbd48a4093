//! The canonical form of a pod spec.

use std::{collections::HashMap, sync::LazyLock};

use codex_checklist::Quantity;
use serde_json::{Map, Value};

/// Which values of a field the canonical form of a pod spec leaves out.
#[derive(Clone, Copy)]
enum Extra {
    /// This value, in JSON: the API server's default.
    Default(&'static str),
    /// Any value: the field only decides where the pod runs or with which resources, which its reports do not depend on.
    Free,
}

/// Fields by their path in a pod spec. `[]` stands for every element of a list.
const POD_SPEC: &[(&str, Extra)] = &[
    ("restartPolicy", Extra::Default("\"Always\"")),
    ("dnsPolicy", Extra::Default("\"ClusterFirst\"")),
    ("serviceAccountName", Extra::Default("\"default\"")),
    ("serviceAccount", Extra::Default("\"default\"")),
    ("terminationGracePeriodSeconds", Extra::Default("30")),
    ("enableServiceLinks", Extra::Default("true")),
    ("nodeName", Extra::Free),
    ("nodeSelector", Extra::Free),
    ("affinity", Extra::Free),
    ("tolerations", Extra::Free),
    ("topologySpreadConstraints", Extra::Free),
    ("schedulerName", Extra::Free),
    ("schedulingGates", Extra::Free),
    ("priority", Extra::Free),
    ("priorityClassName", Extra::Free),
    ("preemptionPolicy", Extra::Free),
    ("overhead", Extra::Free),
    ("imagePullSecrets", Extra::Free),
    ("resources", Extra::Free),
    ("containers[].resources", Extra::Free),
    ("containers[].imagePullPolicy", Extra::Free),
    ("containers[].terminationMessagePath", Extra::Default("\"/dev/termination-log\"")),
    ("containers[].terminationMessagePolicy", Extra::Default("\"File\"")),
    ("containers[].ports[].protocol", Extra::Default("\"TCP\"")),
    ("containers[].env[].valueFrom.fieldRef.apiVersion", Extra::Default("\"v1\"")),
    ("containers[].env[].valueFrom.resourceFieldRef.divisor", Extra::Default("\"0\"")),
    ("containers[].env[].valueFrom.fileKeyRef.optional", Extra::Default("false")),
    ("containers[].livenessProbe.timeoutSeconds", Extra::Default("1")),
    ("containers[].livenessProbe.periodSeconds", Extra::Default("10")),
    ("containers[].livenessProbe.successThreshold", Extra::Default("1")),
    ("containers[].livenessProbe.failureThreshold", Extra::Default("3")),
    ("containers[].livenessProbe.httpGet.scheme", Extra::Default("\"HTTP\"")),
    ("containers[].readinessProbe.timeoutSeconds", Extra::Default("1")),
    ("containers[].readinessProbe.periodSeconds", Extra::Default("10")),
    ("containers[].readinessProbe.successThreshold", Extra::Default("1")),
    ("containers[].readinessProbe.failureThreshold", Extra::Default("3")),
    ("containers[].readinessProbe.httpGet.scheme", Extra::Default("\"HTTP\"")),
    ("containers[].startupProbe.timeoutSeconds", Extra::Default("1")),
    ("containers[].startupProbe.periodSeconds", Extra::Default("10")),
    ("containers[].startupProbe.successThreshold", Extra::Default("1")),
    ("containers[].startupProbe.failureThreshold", Extra::Default("3")),
    ("containers[].startupProbe.httpGet.scheme", Extra::Default("\"HTTP\"")),
    ("volumes[].configMap.defaultMode", Extra::Default("420")),
    ("volumes[].secret.defaultMode", Extra::Default("420")),
    ("volumes[].projected.defaultMode", Extra::Default("420")),
    ("volumes[].projected.sources[].serviceAccountToken.expirationSeconds", Extra::Default("3600")),
    ("volumes[].projected.sources[].downwardAPI.items[].fieldRef.apiVersion", Extra::Default("\"v1\"")),
];

/// Booleans that the API server omits if they are false. The default of other booleans may be true.
const OMITTED_FALSE: &[&str] = &["readOnly", "hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty"];

/// The fields of [`POD_SPEC`] by their path, with the default that is left out; `None` leaves out every value.
static LEFT_OUT: LazyLock<HashMap<&str, Option<Value>>> = LazyLock::new(|| {
    let value = |extra: Extra| match extra {
        Extra::Free => None,
        // Text that is no JSON would never be equal to a value.
        Extra::Default(json) => Some(serde_json::from_str(json).unwrap_or_default()),
    };
    POD_SPEC.iter().map(|(path, extra)| (*path, value(*extra))).collect()
});

/// Returns a pod spec without the API server's defaults and without the fields that only decide where the pod runs and
/// with which resources.
pub fn canonical(spec: &Value) -> Value {
    reduce("", "", spec).unwrap_or_else(|| Value::Object(Map::new()))
}

fn reduce(path: &str, name: &str, value: &Value) -> Option<Value> {
    if LEFT_OUT.get(path).is_some_and(|default| default.as_ref().is_none_or(|default| default == value)) {
        return None;
    }
    match value {
        Value::Null => None,
        Value::Bool(false) if OMITTED_FALSE.contains(&name) => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if matches!(name, "sizeLimit" | "divisor") => {
            Some(Quantity::parse(text).map_or_else(|| value.clone(), |size| Value::String(size.to_string())))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(value.clone()),
        Value::Array(list) => {
            let inside = format!("{path}[]");
            // Empty elements stay: the length of a list matters.
            let reduced = list.iter().map(|element| reduce(&inside, "", element).unwrap_or(Value::Null));
            (!list.is_empty()).then(|| reduced.collect())
        }
        Value::Object(fields) => {
            let reduced: Map<_, _> = fields
                .iter()
                .filter_map(|(name, value)| {
                    let inside = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    Some((name.clone(), reduce(&inside, name, value)?))
                })
                .collect();
            (!reduced.is_empty()).then_some(Value::Object(reduced))
        }
    }
}
