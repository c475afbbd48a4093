//! Comparing a child with its plan, and a pod with its template.

use serde_json::Value;

use super::{
    compare::{Difference, differs, equal, holds, is_zero, join},
    ids::tolerate_ids,
    pod_spec::canonical,
};

/// Fields of a child's spec that must equal the plan. One more label would make a selector select other pods, or none.
pub(super) const WHOLE: &[&str] = &["selector", "podSelector", "ingress", "egress"];
/// Fields of a child's spec that must be absent unless planned: a deadline that the spec no longer sets, and a pause that
/// another client set.
const ONLY_WANTED: &[&str] = &["activeDeadlineSeconds", "paused"];
/// The same for a Service: a selector would make the cluster add unverified pods. The selector of a Job is the API
/// server's.
const ONLY_WANTED_IN_SERVICES: &[&str] = &["selector"];

/// Returns the fields of a child's spec that must be absent unless planned.
pub(super) fn only_wanted(wanted: &Value) -> impl Iterator<Item = &'static str> + use<> {
    let more: &[&str] = if wanted["kind"] == "Service" { ONLY_WANTED_IN_SERVICES } else { &[] };
    ONLY_WANTED.iter().chain(more).copied()
}

/// Returns the first difference between a live child and its plan. `live` may hold further fields, except in the pod
/// template (see [`canonical`]), in selectors and rules of network policies, and where a further field would stop the
/// child's pods.
pub fn difference(wanted: &Value, live: &Value) -> Option<Difference> {
    let template = |object: &Value| object.pointer("/spec/template/spec").map(canonical);
    holds(wanted, live, "")
        .or_else(|| WHOLE.iter().find_map(|name| more(wanted, live, name)))
        .or_else(|| only_wanted(wanted).find_map(|name| unwanted(wanted, live, name)))
        .or_else(|| equal(&template(wanted)?, &template(live)?, "spec.template.spec"))
}

/// Returns the difference in a planned field of the spec that must equal the plan.
pub(super) fn more(wanted: &Value, live: &Value, name: &str) -> Option<Difference> {
    equal(wanted["spec"].get(name)?, live["spec"].get(name)?, &join("spec", name))
}

/// Returns a field of the spec that is present although it is not planned.
pub(super) fn unwanted(wanted: &Value, live: &Value, name: &str) -> Option<Difference> {
    let found = live["spec"].get(name).filter(|found| wanted["spec"].get(name).is_none() && !is_zero(found))?;
    Some(differs(&join("spec", name), Some(found), None))
}

/// How much a pod may differ from its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A trainer: what it says about its training is the word of an image that the user chooses. Containers may stand beside
    /// it, and its name resolution may be configured.
    Trainer,
    /// An evaluator or a server: its report is evidence.
    Strict,
}

/// Returns the first difference between the spec of a pod and its template that the role does not tolerate.
pub fn pod_difference(template: &Value, pod: &Value, role: Role) -> Option<Difference> {
    let mut pod = pod.clone();
    if role == Role::Trainer {
        tolerate_additions(template, &mut pod);
    }
    tolerate_mirror(template, &mut pod);
    tolerate_ids(template, &mut pod);
    equal(&canonical(template), &canonical(&pod), "spec")
}

/// Removes the fields that may be added to a trainer's pod: `dnsConfig`, debugging containers, and containers and volumes with
/// names that the template does not have.
fn tolerate_additions(template: &Value, pod: &mut Value) {
    let Some(spec) = pod.as_object_mut() else { return };
    spec.remove("dnsConfig");
    spec.remove("ephemeralContainers");
    for list in ["containers", "initContainers", "volumes"] {
        let planned: Vec<_> =
            template[list].as_array().into_iter().flatten().map(|element| element["name"].clone()).collect();
        if let Some(found) = spec.get_mut(list).and_then(Value::as_array_mut) {
            found.retain(|element| planned.contains(&element["name"]));
        }
    }
}

/// Gives containers that run the planned image from another registry its planned name. Only equal digests make images equal.
fn tolerate_mirror(template: &Value, pod: &mut Value) {
    let digest = |image: &Value| {
        image.as_str().and_then(|image| image.split_once("@sha256:")).map(|(_, digest)| digest.to_owned())
    };
    let containers = pod.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten();
    for container in containers {
        let planned =
            template["containers"].as_array().into_iter().flatten().find(|it| it["name"] == container["name"]);
        let Some(planned) = planned.map(|planned| &planned["image"]) else { continue };
        if digest(planned).is_some() && digest(planned) == digest(&container["image"]) {
            container["image"] = planned.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Role, difference};

    fn pod_difference(template: &Value, pod: &Value) -> Option<crate::drift::Difference> {
        super::pod_difference(template, pod, Role::Strict)
    }

    /// The path of the expected difference, and the change that causes it.
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
                {"name": "config", "configMap": {"name": "codex-t-a"}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": "x", "path": "token"}}]}},
            ],
        })
    }

    /// Returns the pod that an API server creates from the template.
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
    fn defaults_of_the_api_server_are_not_a_difference() {
        assert_eq!(pod_difference(&template(), &pod()), None);
        let child = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        assert_eq!(difference(&child(template()), &child(pod())), None);
    }

    #[test]
    fn defaults_in_environment_variables_are_not_a_difference() {
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
            "not a default of the API server"
        );
    }

    #[test]
    fn every_other_change_of_a_pod_is_reported_with_its_path() {
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
            // The later of two equal names takes effect.
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
    fn a_trainer_tolerates_additions_and_no_change() {
        let changes: [fn(&mut Value); 4] = [
            |pod| pod["dnsConfig"] = json!({"options": [{"name": "ndots", "value": "2"}]}),
            |pod| pod["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar", "image": "x"})),
            |pod| pod["ephemeralContainers"] = json!([{"name": "debugger", "image": "x"}]),
            |pod| {
                pod["initContainers"] = json!([{"name": "mesh", "image": "x", "restartPolicy": "Always"}]);
                pod["volumes"].as_array_mut().unwrap().push(json!({"name": "mesh", "emptyDir": {}}));
            },
        ];
        for change in changes {
            let mut changed = pod();
            change(&mut changed);
            assert_eq!(super::pod_difference(&template(), &changed, Role::Trainer), None);
            assert!(pod_difference(&template(), &changed).is_some(), "an evaluator and a server tolerate nothing");
            changed["containers"][0]["env"].as_array_mut().unwrap().push(json!({"name": "A", "value": "b"}));
            let found = super::pod_difference(&template(), &changed, Role::Trainer).unwrap();
            assert_eq!(found.path, "spec.containers[trainer].env[A]");
        }
    }

    #[test]
    fn an_image_from_a_mirror_is_tolerated_at_the_same_digest_only() {
        let (one, other) = ("@sha256:".to_owned() + &"1".repeat(64), "@sha256:".to_owned() + &"2".repeat(64));
        let with = |spec: Value, image: String| {
            let mut spec = spec;
            spec["containers"][0]["image"] = json!(image);
            spec
        };
        let template = with(template(), format!("registry.example.com/codex{one}"));
        for role in [Role::Trainer, Role::Strict] {
            let compare = |image: String| super::pod_difference(&template, &with(pod(), image), role);
            assert_eq!(compare(format!("mirror.internal/codex{one}")), None);
            assert!(compare(format!("mirror.internal/codex{other}")).is_some());
            assert!(compare("mirror.internal/codex:1".to_owned()).is_some());
        }
    }

    #[test]
    fn a_child_may_hold_unplanned_fields_outside_its_template() {
        let wanted =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 2, "paused": false, "selector": {}}});
        let live = json!({"metadata": {"labels": {"a": "b", "c": "d"}, "uid": "x"}, "spec": {"replicas": 2, "strategy": {"type": "X"}}});
        assert_eq!(difference(&wanted, &live), None);
        let mut other = live.clone();
        other["spec"]["replicas"] = json!(3);
        assert_eq!(difference(&wanted, &other).unwrap().to_string(), "spec.replicas is 3, expected 2");
        let mut other = live;
        other["metadata"]["labels"] = json!({});
        assert_eq!(difference(&wanted, &other).unwrap().path, "metadata.labels.a");
    }

    #[test]
    fn resources_are_compared_in_a_child_but_not_in_a_pod() {
        let child = |cpu: &str| {
            let resources = json!({"limits": {"cpu": cpu}});
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "resources": resources}]}}}})
        };
        assert_eq!(difference(&child("1000m"), &child("1")), None);
        assert!(difference(&child("2"), &child("1")).is_some());
        let spec = |cpu: &str| child(cpu)["spec"]["template"]["spec"].clone();
        assert_eq!(pod_difference(&spec("2"), &spec("1")), None);
        // The value of a variable is not a quantity, even if it looks like one.
        let env = |value: &str| json!({"containers": [{"name": "a", "env": [{"name": "N", "value": value}]}]});
        assert!(pod_difference(&env("1"), &env("1.0")).is_some());
    }
}
