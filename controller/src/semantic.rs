//! Comparing what is wanted with what the API server holds, and a pod with its template. Pure.
//!
//! The API server fills in defaults, writes quantities in its own form and leaves out zero values; admission adds a few
//! fields to pods. So a child holds what is wanted if every wanted field is there; and two pod specs are the same if
//! their canonical forms are equal, which leave out defaults and whatever says only where a pod runs and with how much.
//! That comparison is strict, because a pod that differs from its template could say anything in the template's name.

use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value};

/// Where two objects differ, for a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, such as `spec.template.spec.containers[trainer].image`.
    pub path: String,
    /// What is there.
    pub found: String,
    /// What should be there.
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} where {} is planned", self.path, self.found, self.wanted)
    }
}

/// What the canonical form of a pod spec leaves out.
#[derive(Clone, Copy)]
enum Extra {
    /// This value, in JSON: the API server's default.
    Default(&'static str),
    /// Anything: where a pod runs and with how much does not matter to whoever trusts its reports.
    Free,
}

/// Paths below a pod spec. `[]` stands for every element of a list.
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

/// Booleans that the API server leaves out where they are false. Of others, absence can mean true.
const OMITTED_FALSE: &[&str] = &["readOnly", "hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty"];

/// Fields of a child's spec in which nothing else may be: with one more label a selector selects other pods, or none.
const WHOLE: &[&str] = &["selector", "podSelector", "ingress", "egress"];
/// Fields of a child's spec that are there only where they are wanted: a limit that was lifted, and a pause that somebody
/// ordered.
const ONLY_WANTED: &[&str] = &["activeDeadlineSeconds", "paused"];

/// The first place where `live` does not hold what `wanted` says. In the pod template, if there is one, nothing else may
/// be there either, but for what the canonical form leaves out; nor in selectors, nor where a field more would stop what
/// is wanted.
pub fn difference(wanted: &Value, live: &Value) -> Option<Difference> {
    let template = |object: &Value| object.pointer("/spec/template/spec").map(canonical);
    holds(wanted, live, "")
        .or_else(|| WHOLE.iter().find_map(|name| more(wanted, live, name)))
        .or_else(|| ONLY_WANTED.iter().find_map(|name| unwanted(wanted, live, name)))
        .or_else(|| equal(&template(wanted)?, &template(live)?, "spec.template.spec"))
}

/// Where a field of the spec that is wanted holds anything else.
fn more(wanted: &Value, live: &Value, name: &str) -> Option<Difference> {
    equal(wanted["spec"].get(name)?, live["spec"].get(name)?, &join("spec", name))
}

/// That a field of the spec is there and is not wanted, if that is so.
fn unwanted(wanted: &Value, live: &Value, name: &str) -> Option<Difference> {
    let found = live["spec"].get(name).filter(|found| wanted["spec"].get(name).is_none() && !is_zero(found))?;
    Some(differs(&join("spec", name), Some(found), None))
}

/// The first place where the spec of a pod is not that of its template.
pub fn pod_difference(template: &Value, pod: &Value) -> Option<Difference> {
    equal(&canonical(template), &canonical(pod), "spec")
}

/// The merge patch (RFC 7396) that takes away what [`difference`] finds and an apply leaves, because somebody else owns it:
/// with `template` also in the pod template. None where there is no such thing.
pub fn correction(wanted: &Value, live: &Value, template: bool) -> Option<Value> {
    let (all, there) = (&wanted["spec"], &live["spec"]);
    let (new, old) = (&all["template"], &there["template"]);
    let mut spec = Map::new();
    if template && (holds(new, old, "").is_some() || canonical(&new["spec"]) != canonical(&old["spec"])) {
        spec.insert("template".to_owned(), only(new, old));
    }
    let held = WHOLE.iter().filter(|name| more(wanted, live, name).is_some());
    spec.extend(held.map(|name| ((*name).to_owned(), only(&all[*name], &there[*name]))));
    let goes = ONLY_WANTED.iter().filter(|name| unwanted(wanted, live, name).is_some());
    spec.extend(goes.map(|name| ((*name).to_owned(), Value::Null)));
    (!spec.is_empty()).then(|| serde_json::json!({ "spec": spec }))
}

/// The merge patch that leaves of `live` nothing but what is wanted; the API server fills in defaults again.
fn only(wanted: &Value, live: &Value) -> Value {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            let goes = live.keys().filter(|name| !wanted.contains_key(*name)).map(|name| (name.clone(), Value::Null));
            let stays = wanted.iter().map(|(name, wanted)| {
                let corrected = live.get(name).map_or_else(|| wanted.clone(), |live| only(wanted, live));
                (name.clone(), corrected)
            });
            Value::Object(goes.chain(stays).collect())
        }
        _ => wanted.clone(),
    }
}

/// A pod spec without what the API server fills in and what says only where the pod runs and with how much.
pub fn canonical(spec: &Value) -> Value {
    reduce("", "", spec).unwrap_or_else(|| Value::Object(Map::new()))
}

fn reduce(path: &str, name: &str, value: &Value) -> Option<Value> {
    match POD_SPEC.iter().find(|(known, _)| *known == path).map(|(_, extra)| *extra) {
        Some(Extra::Free) => return None,
        Some(Extra::Default(json)) if serde_json::from_str(json).is_ok_and(|default: Value| default == *value) => {
            return None;
        }
        Some(Extra::Default(_)) | None => {}
    }
    match value {
        Value::Null => None,
        Value::Bool(false) if OMITTED_FALSE.contains(&name) => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if matches!(name, "sizeLimit" | "divisor") => {
            Some(quantity(text).map_or_else(|| value.clone(), |size| Value::String(size.to_string())))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(value.clone()),
        Value::Array(list) => {
            let inside = format!("{path}[]");
            // An element says something by being there, even an empty one.
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

/// The first place where two values differ.
fn equal(wanted: &Value, found: &Value, path: &str) -> Option<Difference> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
            names.into_iter().find_map(|name| {
                let path = join(path, name);
                match (wanted.get(name), found.get(name)) {
                    (Some(wanted), Some(found)) => equal(wanted, found, &path),
                    (wanted, found) => Some(differs(&path, found, wanted)),
                }
            })
        }
        (Value::Array(wanted), Value::Array(found)) => lists(wanted, found, path, equal),
        (wanted, found) if wanted == found => None,
        (wanted, found) => Some(differs(path, Some(found), Some(wanted))),
    }
}

/// The first place where `live` does not hold what is wanted; it may hold more, but not in lists.
fn holds(wanted: &Value, live: &Value, path: &str) -> Option<Difference> {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().find_map(|(name, wanted)| {
            let path = join(path, name);
            match live.get(name) {
                Some(live) => holds(wanted, live, &path),
                None if is_zero(wanted) => None,
                None => Some(differs(&path, None, Some(wanted))),
            }
        }),
        (Value::Array(wanted), Value::Array(live)) => lists(wanted, live, path, holds),
        (Value::String(a), Value::String(b))
            if is_quantity(path) && quantity(a).is_some() && quantity(a) == quantity(b) =>
        {
            None
        }
        (wanted, live) if wanted == live => None,
        (wanted, live) => Some(differs(path, Some(live), Some(wanted))),
    }
}

/// Elements that carry distinct names are paired by name, all others by position.
fn lists(
    wanted: &[Value],
    live: &[Value],
    path: &str,
    compare: fn(&Value, &Value, &str) -> Option<Difference>,
) -> Option<Difference> {
    let names = |list: &[Value]| {
        let names: Option<Vec<_>> = list.iter().map(|value| Some(value.get("name")?.as_str()?.to_owned())).collect();
        names.filter(|names| names.iter().collect::<BTreeSet<_>>().len() == names.len())
    };
    let paired = names(wanted).zip(names(live));
    let label = |index: usize, names: Option<&Vec<String>>| {
        let label = names.map_or_else(|| index.to_string(), |names| names[index].clone());
        format!("{path}[{label}]")
    };
    for (index, wanted) in wanted.iter().enumerate() {
        let found = match &paired {
            Some((names, live)) => live.iter().position(|name| *name == names[index]),
            None => Some(index),
        };
        let path = label(index, paired.as_ref().map(|(wanted, _)| wanted));
        let differs = match found.and_then(|found| live.get(found)) {
            Some(live) => compare(wanted, live, &path),
            None => Some(differs(&path, None, Some(wanted))),
        };
        if differs.is_some() {
            return differs;
        }
    }
    let added = match &paired {
        Some((wanted, live)) => live.iter().position(|name| !wanted.contains(name)),
        None => (live.len() > wanted.len()).then_some(wanted.len()),
    }?;
    Some(differs(&label(added, paired.as_ref().map(|(_, live)| live)), live.get(added), None))
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn differs(path: &str, found: Option<&Value>, wanted: Option<&Value>) -> Difference {
    let found = found.map_or_else(|| "absent".to_owned(), brief);
    let wanted = wanted.map_or_else(|| "nothing".to_owned(), brief);
    Difference { path: path.to_owned(), found, wanted }
}

/// A value, shortened.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 120 { text } else { format!("{}…", text.chars().take(120).collect::<String>()) }
}

/// Whether the API server may leave out a wanted value.
fn is_zero(wanted: &Value) -> bool {
    match wanted {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Whether a text here is a quantity, which the API server writes in its own form.
fn is_quantity(path: &str) -> bool {
    path.contains(".resources.") || path.ends_with(".sizeLimit") || path.ends_with(".resourceFieldRef.divisor")
}

/// A quantity such as `500m`, `1Gi` or `2e3`, in billionths.
fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || fraction.len() > 9 {
        return None;
    }
    let billionths: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    let small = |divisor: i128| (billionths % divisor == 0).then_some(billionths / divisor);
    let scale: i128 = match suffix {
        "n" => return small(1_000_000_000),
        "u" => return small(1_000_000),
        "m" => return small(1000),
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => 10i128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    billionths.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{correction, difference, only, pod_difference, quantity};

    /// The field that a change is found in, and the change.
    type Forgery = (&'static str, fn(&mut Value));

    fn template() -> Value {
        json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "trainer",
                "image": "codex:1",
                "command": ["/codex"],
                "args": ["train", "--output", "/output"],
                "env": [
                    {"name": "CODEX_REPORT_URL", "value": "https://r/v1/reports"},
                    {"name": "CODEX_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                ],
                "resources": {"limits": {"cpu": "1000m", "memory": "1Gi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "output", "mountPath": "/output", "readOnly": false}, {"name": "tmp", "mountPath": "/tmp"}],
            }],
            "volumes": [
                {"name": "output", "persistentVolumeClaim": {"claimName": "runs"}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "config", "configMap": {"name": "a-train"}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "x", "path": "token"}}]}},
            ],
        })
    }

    /// The pod as an API server makes it of the template.
    fn pod() -> Value {
        let mut pod = template();
        let also = json!({
            "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "serviceAccountName": "default",
            "serviceAccount": "default", "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
            "nodeName": "node-a", "priority": 0, "preemptionPolicy": "PreemptLowerPriority",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "imagePullSecrets": [{"name": "from-the-service-account"}],
        });
        pod.as_object_mut().unwrap().extend(also.as_object().unwrap().clone());
        let container = pod["containers"][0].as_object_mut().unwrap();
        container.insert("imagePullPolicy".into(), json!("IfNotPresent"));
        container.insert("terminationMessagePath".into(), json!("/dev/termination-log"));
        container.insert("terminationMessagePolicy".into(), json!("File"));
        container["resources"] =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        container["volumeMounts"][0].as_object_mut().unwrap().remove("readOnly");
        container["env"][1]["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        pod["volumes"][2]["configMap"]["defaultMode"] = json!(420);
        pod["volumes"][3]["projected"]["defaultMode"] = json!(420);
        pod["volumes"][3]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] = json!(3600);
        pod
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        assert_eq!(pod_difference(&template(), &pod()), None);
        let child = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        assert_eq!(difference(&child(template()), &child(pod())), None);
    }

    #[test]
    fn what_the_api_server_fills_into_variables_is_no_difference() {
        let child = |env: Value| json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "env": env}]}}}});
        let variable = |source: Value| json!([{"name": "N", "valueFrom": source}]);
        let memory = |divisor: Option<&str>| {
            let mut source = json!({"resourceFieldRef": {"resource": "limits.memory"}});
            if let Some(divisor) = divisor {
                source["resourceFieldRef"]["divisor"] = json!(divisor);
            }
            child(variable(source))
        };
        assert_eq!(difference(&memory(None), &memory(Some("0"))), None);
        assert_eq!(difference(&memory(Some("1024Ki")), &memory(Some("1Mi"))), None);
        let changed = difference(&memory(None), &memory(Some("1Mi"))).unwrap();
        assert!(changed.path.ends_with("resourceFieldRef.divisor"), "{changed}");
        let file = json!({"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}});
        let mut filled = file.clone();
        filled["fileKeyRef"]["optional"] = json!(false);
        assert_eq!(difference(&child(variable(file.clone())), &child(variable(filled.clone()))), None);
        filled["fileKeyRef"]["optional"] = json!(true);
        assert!(difference(&child(variable(file)), &child(variable(filled))).is_some());
        let key = json!({"configMapKeyRef": {"name": "c", "key": "k"}});
        let mut optional = key.clone();
        optional["configMapKeyRef"]["optional"] = json!(false);
        assert!(
            difference(&child(variable(key)), &child(variable(optional))).is_some(),
            "no default of the API server"
        );
    }

    #[test]
    fn every_other_change_of_a_pod_is_found_and_named() {
        let forgeries: &[Forgery] = &[
            ("spec.containers[trainer].image", |pod| pod["containers"][0]["image"] = json!("evil:1")),
            ("spec.containers[trainer].command[0]", |pod| pod["containers"][0]["command"] = json!(["/bin/sh"])),
            ("spec.containers[trainer].args[3]", |pod| {
                pod["containers"][0]["args"].as_array_mut().unwrap().push(json!("--lie"));
            }),
            ("spec.containers[trainer].args[2]", |pod| {
                pod["containers"][0]["args"].as_array_mut().unwrap().pop();
            }),
            ("spec.containers[trainer].env[LD_PRELOAD]", |pod| {
                pod["containers"][0]["env"].as_array_mut().unwrap().push(json!({"name": "LD_PRELOAD", "value": "/x"}));
            }),
            // The later of two equal names would win.
            ("spec.containers[trainer].env[2]", |pod| {
                let again = json!({"name": "CODEX_REPORT_URL", "value": "https://evil"});
                pod["containers"][0]["env"].as_array_mut().unwrap().push(again);
            }),
            ("spec.containers[trainer].env[CODEX_REPORT_URL].value", |pod| {
                pod["containers"][0]["env"][0]["value"] = json!("https://evil");
            }),
            ("spec.containers[trainer].envFrom", |pod| {
                pod["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "x"}}]);
            }),
            ("spec.containers[trainer].lifecycle", |pod| {
                pod["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["/x"]}}});
            }),
            ("spec.containers[trainer].volumeMounts[output].subPath", |pod| {
                pod["containers"][0]["volumeMounts"][0]["subPath"] = json!("elsewhere");
            }),
            ("spec.containers[trainer].securityContext.runAsUser", |pod| {
                pod["containers"][0]["securityContext"]["runAsUser"] = json!(0);
            }),
            ("spec.containers[trainer].securityContext.allowPrivilegeEscalation", |pod| {
                pod["containers"][0]["securityContext"].as_object_mut().unwrap().remove("allowPrivilegeEscalation");
            }),
            ("spec.automountServiceAccountToken", |pod| {
                pod.as_object_mut().unwrap().remove("automountServiceAccountToken");
            }),
            ("spec.containers[sidecar]", |pod| {
                pod["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar", "image": "x"}));
            }),
            ("spec.initContainers", |pod| pod["initContainers"] = json!([{"name": "x", "image": "x"}])),
            ("spec.ephemeralContainers", |pod| pod["ephemeralContainers"] = json!([{"name": "x", "image": "x"}])),
            ("spec.volumes[output].persistentVolumeClaim.claimName", |pod| {
                pod["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("other");
            }),
            ("spec.volumes[host]", |pod| {
                pod["volumes"].as_array_mut().unwrap().push(json!({"name": "host", "hostPath": {"path": "/"}}));
            }),
            ("spec.volumes[tmp].hostPath", |pod| pod["volumes"][1]["hostPath"] = json!({"path": "/"})),
            ("spec.hostNetwork", |pod| pod["hostNetwork"] = json!(true)),
            ("spec.hostAliases", |pod| pod["hostAliases"] = json!([{"ip": "1.2.3.4", "hostnames": ["x"]}])),
            ("spec.shareProcessNamespace", |pod| pod["shareProcessNamespace"] = json!(true)),
            ("spec.serviceAccountName", |pod| pod["serviceAccountName"] = json!("admin")),
            ("spec.restartPolicy", |pod| pod["restartPolicy"] = json!("Always")),
            ("spec.runtimeClassName", |pod| pod["runtimeClassName"] = json!("own")),
            ("spec.securityContext.runAsUser", |pod| pod["securityContext"]["runAsUser"] = json!(0)),
        ];
        for (path, forge) in forgeries {
            let mut forged = pod();
            forge(&mut forged);
            let found = pod_difference(&template(), &forged).unwrap_or_else(|| panic!("{path} passed"));
            assert_eq!(&found.path, path, "{found}");
        }
    }

    #[test]
    fn a_correction_takes_away_what_nobody_wants() {
        let wanted = json!({"containers": [{"name": "a", "env": []}], "securityContext": {"runAsUser": 1}});
        let live = json!({
            "containers": [{"name": "a", "env": [{"name": "LD_PRELOAD"}]}], "hostNetwork": true,
            "securityContext": {"runAsUser": 1, "sysctls": []},
        });
        let expected = json!({
            "containers": [{"name": "a", "env": []}], "hostNetwork": null,
            "securityContext": {"runAsUser": 1, "sysctls": null},
        });
        assert_eq!(only(&wanted, &live), expected);
    }

    #[test]
    fn what_would_stop_or_divert_what_is_wanted_is_found_and_taken_away() {
        type Change = fn(&mut Value);
        let wanted = json!({"spec": {
            "selector": {"a": "b"}, "podSelector": {"matchLabels": {"a": "b"}}, "egress": [{"ports": [{"port": 53}]}],
        }});
        let cases: &[(&str, Change, Value)] = &[
            ("spec.selector.c", |spec| spec["selector"]["c"] = json!("d"), json!({"selector": {"a": "b", "c": null}})),
            (
                "spec.podSelector.matchLabels.c",
                |spec| spec["podSelector"]["matchLabels"]["c"] = json!("d"),
                json!({"podSelector": {"matchLabels": {"a": "b", "c": null}}}),
            ),
            (
                "spec.podSelector.matchExpressions",
                |spec| spec["podSelector"]["matchExpressions"] = json!([{"key": "c", "operator": "Exists"}]),
                json!({"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": null}}),
            ),
            (
                "spec.egress[0].to",
                |spec| spec["egress"][0]["to"] = json!([{}]),
                json!({"egress": wanted["spec"]["egress"]}),
            ),
            ("spec.paused", |spec| spec["paused"] = json!(true), json!({"paused": null})),
            (
                "spec.activeDeadlineSeconds",
                |spec| spec["activeDeadlineSeconds"] = json!(600),
                json!({"activeDeadlineSeconds": null}),
            ),
        ];
        for (path, change, spec) in cases {
            let mut live = wanted.clone();
            change(&mut live["spec"]);
            let found = difference(&wanted, &live).unwrap_or_else(|| panic!("{path} passed"));
            assert_eq!(&found.path, path, "{found}");
            assert_eq!(correction(&wanted, &live, false), Some(json!({"spec": spec})), "{path}");
        }
        let mut live = wanted.clone();
        live["spec"]["paused"] = json!(false);
        assert_eq!((difference(&wanted, &live), correction(&wanted, &live, true)), (None, None));
    }

    #[test]
    fn a_child_may_hold_more_than_is_wanted_outside_its_template() {
        let wanted =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 2, "paused": false, "selector": {}}});
        let live = json!({"metadata": {"labels": {"a": "b", "c": "d"}, "uid": "x"}, "spec": {"replicas": 2, "strategy": {"type": "X"}}});
        assert_eq!(difference(&wanted, &live), None);
        let mut other = live.clone();
        other["spec"]["replicas"] = json!(3);
        assert_eq!(difference(&wanted, &other).unwrap().to_string(), "spec.replicas is 3 where 2 is planned");
        let mut other = live;
        other["metadata"]["labels"] = json!({});
        assert_eq!(difference(&wanted, &other).unwrap().path, "metadata.labels.a");
    }

    #[test]
    fn resources_differ_in_a_child_and_not_in_a_pod() {
        let child = |cpu: &str| {
            let resources = json!({"limits": {"cpu": cpu}});
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "resources": resources}]}}}})
        };
        assert_eq!(difference(&child("1000m"), &child("1")), None);
        assert!(difference(&child("2"), &child("1")).is_some());
        let spec = |cpu: &str| child(cpu)["spec"]["template"]["spec"].clone();
        assert_eq!(pod_difference(&spec("2"), &spec("1")), None);
        // A text that only looks like a quantity is a text.
        let env = |value: &str| json!({"containers": [{"name": "a", "env": [{"name": "N", "value": value}]}]});
        assert!(pod_difference(&env("1"), &env("1.0")).is_some());
    }

    #[test]
    fn quantities_are_equal_in_every_form() {
        for (a, b) in [
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("0.5", "500m"),
            ("2e3", "2k"),
            ("1.5Gi", "1536Mi"),
            ("100000u", "100m"),
        ] {
            assert_eq!(quantity(a).unwrap(), quantity(b).unwrap(), "{a} {b}");
        }
        assert_ne!(quantity("1G"), quantity("1Gi"));
        for bad in ["", "x", "1x", "1.1.1", "--1"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }
}
