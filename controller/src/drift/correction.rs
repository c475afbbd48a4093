//! Merge patches that remove what an apply leaves.

use serde_json::{Map, Value};

use super::{
    child::{WHOLE, more, only_wanted, unwanted},
    compare::holds,
    pod_spec::canonical,
};

/// Returns the merge patch (RFC 7396) that removes the differences that an apply leaves because another field manager
/// owns the fields, or `None` if there are no such differences. With `template`, it covers the pod template too.
pub fn correction(wanted: &Value, live: &Value, template: bool) -> Option<Value> {
    let (all, there) = (&wanted["spec"], &live["spec"]);
    let (new, old) = (&all["template"], &there["template"]);
    let mut spec = Map::new();
    if template && (holds(new, old, "").is_some() || canonical(&new["spec"]) != canonical(&old["spec"])) {
        spec.insert("template".to_owned(), only(new, old));
    }
    let held = WHOLE.iter().filter(|name| more(wanted, live, name).is_some());
    spec.extend(held.map(|name| ((*name).to_owned(), only(&all[*name], &there[*name]))));
    let goes = only_wanted(wanted).filter(|name| unwanted(wanted, live, name).is_some());
    spec.extend(goes.map(|name| (name.to_owned(), Value::Null)));
    (!spec.is_empty()).then(|| serde_json::json!({ "spec": spec }))
}

/// Returns the merge patch that reduces `live` to the planned fields. The API server fills in its defaults again.
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
#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{correction, only};
    use crate::drift::difference;

    #[test]
    fn a_correction_removes_unplanned_fields() {
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
    fn fields_that_stop_or_divert_traffic_are_found_and_removed() {
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
        let bare = json!({"kind": "Service", "spec": {}});
        let mut live = bare.clone();
        live["spec"]["selector"] = json!({"a": "b"});
        assert_eq!(difference(&bare, &live).unwrap().path, "spec.selector");
        assert_eq!(correction(&bare, &live, false), Some(json!({"spec": {"selector": null}})));
        (live["kind"], live["spec"]["paused"]) = (json!("Job"), json!(false));
        let job = json!({"kind": "Job", "spec": {}});
        assert_eq!(difference(&job, &live), None, "the API server sets the selector of a Job");
        let mut live = wanted.clone();
        live["spec"]["paused"] = json!(false);
        assert_eq!((difference(&wanted, &live), correction(&wanted, &live, true)), (None, None));
    }
}
