//! Ids that a platform fills in where the template of a pod names none, as `SecurityContextConstraints` of `OpenShift` do.

use serde_json::{Map, Value};

/// The ids of a pod's security context.
const OF_POD: &[&str] = &["runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"];
/// The ids of a container's security context. They go before those of the pod.
const OF_CONTAINER: &[&str] = &["runAsUser", "runAsGroup"];
const CONTEXT: &str = "securityContext";
const NON_ROOT: &str = "runAsNonRoot";
const SELINUX: &str = "seLinuxOptions";

/// Removes from a pod what a platform may fill in: ids that its template leaves open, the level of `SELinux`, and for containers that
/// they are not root, where the template says that of the pod. The root user is never removed.
pub(super) fn tolerate_ids(template: &Value, pod: &mut Value) {
    let of_template = template.get(CONTEXT);
    if let Some(context) = pod.get_mut(CONTEXT).and_then(Value::as_object_mut) {
        remove_ids(context, OF_POD, &[of_template]);
    }
    for list in ["containers", "initContainers"] {
        for container in pod.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let planned = template[list].as_array().into_iter().flatten().find(|it| it["name"] == container["name"]);
            let Some(planned) = planned.map(|planned| planned.get(CONTEXT)) else { continue };
            let Some(context) = container.get_mut(CONTEXT).and_then(Value::as_object_mut) else { continue };
            remove_ids(context, OF_CONTAINER, &[of_template, planned]);
            let says = |context: Option<&Value>| context.and_then(|context| context.get(NON_ROOT)?.as_bool());
            if says(of_template) == Some(true)
                && says(planned).is_none()
                && context.get(NON_ROOT) == Some(&Value::Bool(true))
            {
                context.remove(NON_ROOT);
            }
        }
    }
}

/// Removes from a security context the ids that none of the `planned` ones names, and a level of `SELinux` that none of them sets.
fn remove_ids(context: &mut Map<String, Value>, ids: &[&str], planned: &[Option<&Value>]) {
    let open = |name: &str| planned.iter().all(|planned| planned.is_none_or(|planned| planned.get(name).is_none()));
    for name in ids {
        let is_root = *name == "runAsUser" && context.get(*name).and_then(Value::as_i64).is_none_or(|user| user < 1);
        if open(name) && !is_root {
            context.remove(*name);
        }
    }
    // The level only separates the files of pods. A type or a role could lift the confinement.
    let is_level = |options: &Map<String, Value>| options.keys().all(|name| name == "level");
    if open(SELINUX) && context.get(SELINUX).and_then(Value::as_object).is_some_and(is_level) {
        context.remove(SELINUX);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::drift::{Role, pod_difference};

    fn template(ids: &Value) -> Value {
        let mut context = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        context.as_object_mut().unwrap().extend(ids.as_object().unwrap().clone());
        let drop = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        json!({"securityContext": context, "containers": [{"name": "server", "image": "codex:1", "securityContext": drop}]})
    }

    /// Returns what `restricted-v2` of `OpenShift` makes of a pod of this template.
    fn under_restricted_v2(template: &Value) -> Value {
        let mut pod = template.clone();
        let context = pod["securityContext"].as_object_mut().unwrap();
        context.insert("seLinuxOptions".to_owned(), json!({"level": "s0:c26,c5"}));
        context.entry("fsGroup").or_insert(json!(1_000_650_000));
        if context.get("runAsUser").is_none() {
            let container = &mut pod["containers"][0]["securityContext"];
            (container["runAsUser"], container["runAsNonRoot"]) = (json!(1_000_650_000), json!(true));
        }
        pod
    }

    fn difference(template: &Value, pod: &Value) -> Option<String> {
        let both = [Role::Trainer, Role::Strict].map(|role| pod_difference(template, pod, role).map(|it| it.path));
        assert_eq!(both[0], both[1]);
        both[0].clone()
    }

    #[test]
    fn ids_that_the_template_leaves_open_may_be_filled_in() {
        let open = template(&json!({}));
        assert_eq!(difference(&open, &open), None);
        assert_eq!(difference(&open, &under_restricted_v2(&open)), None);
        let fixed = template(&json!({"runAsUser": 65_532, "runAsGroup": 65_532, "fsGroup": 65_532}));
        assert_eq!(difference(&fixed, &under_restricted_v2(&fixed)), None, "the level alone");
        let mut pod = open.clone();
        for (name, id) in [("runAsUser", json!(7)), ("runAsGroup", json!(0)), ("supplementalGroups", json!([5]))] {
            pod["securityContext"][name] = id;
        }
        assert_eq!(difference(&open, &pod), None);
    }

    #[test]
    fn nothing_else_may_be_filled_in() {
        type Change = fn(&mut Value);
        let changes: &[(&str, Change)] = &[
            ("spec.securityContext.runAsUser", |pod| pod["securityContext"]["runAsUser"] = json!(0)),
            ("spec.containers[server].securityContext.runAsUser", |pod| {
                pod["containers"][0]["securityContext"]["runAsUser"] = json!(0);
            }),
            ("spec.containers[server].securityContext.runAsNonRoot", |pod| {
                pod["containers"][0]["securityContext"]["runAsNonRoot"] = json!(false);
            }),
            ("spec.securityContext.seLinuxOptions", |pod| {
                pod["securityContext"]["seLinuxOptions"]["type"] = json!("spc_t");
            }),
            ("spec.containers[server].securityContext.seLinuxOptions", |pod| {
                pod["containers"][0]["securityContext"]["seLinuxOptions"] = json!({"role": "system_r"});
            }),
            ("spec.securityContext.sysctls", |pod| {
                pod["securityContext"]["sysctls"] = json!([{"name": "a", "value": "b"}]);
            }),
            ("spec.containers[server].securityContext.privileged", |pod| {
                pod["containers"][0]["securityContext"]["privileged"] = json!(true);
            }),
        ];
        let open = template(&json!({}));
        for (path, change) in changes {
            let mut pod = under_restricted_v2(&open);
            change(&mut pod);
            assert_eq!(difference(&open, &pod).as_deref(), Some(*path));
        }
    }

    #[test]
    fn ids_that_the_template_names_must_be_those() {
        let named = template(&json!({"runAsUser": 1_000, "fsGroup": 2_000, "supplementalGroups": [5]}));
        let cases = [
            ("/securityContext/runAsUser", "spec.securityContext.runAsUser", json!(1_001)),
            ("/securityContext/fsGroup", "spec.securityContext.fsGroup", json!(1_001)),
            ("/securityContext/supplementalGroups", "spec.securityContext.supplementalGroups[1]", json!([5, 6])),
        ];
        for (pointer, path, value) in cases {
            let mut pod = named.clone();
            *pod.pointer_mut(pointer).unwrap() = value;
            assert_eq!(difference(&named, &pod).as_deref(), Some(path));
        }
        let mut pod = named.clone();
        pod["containers"][0]["securityContext"]["runAsUser"] = json!(1_001);
        let path = "spec.containers[server].securityContext.runAsUser";
        assert_eq!(difference(&named, &pod).as_deref(), Some(path), "it goes before that of the pod");
        let mut pod = named.clone();
        pod["securityContext"]["runAsGroup"] = json!(3_000);
        assert_eq!(difference(&named, &pod), None, "the template leaves the group open");
    }
}
