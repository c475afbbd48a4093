//! `reproduce`: the manifest of a TrainingRun that trains another one again. Pure.

use codex_crds::{Reproduces, TrainingRun};
use kube::{ResourceExt, core::ObjectMeta};

/// The most characters of the name of a TrainingRun.
const MAX_NAME: usize = 52;
/// The end of the name without `--name`.
const AGAIN: &str = "-again";

/// Returns the TrainingRun that reproduces `run`, with its spec but for the image. `name` is its name; without one, it is that of the
/// run and `-again`.
pub(crate) fn reproduction(run: &TrainingRun, name: Option<String>) -> TrainingRun {
    let original = run.name_any();
    let begin: String = original.chars().take(MAX_NAME - AGAIN.len()).collect();
    let name = name.unwrap_or_else(|| format!("{}{AGAIN}", begin.trim_end_matches('-')));
    let mut spec = run.spec.clone();
    spec.reproduces = Some(Reproduces { name: original });
    spec.pod.image = None;
    spec.suspend = false;
    let mut again = TrainingRun::new(&name, spec);
    again.metadata = ObjectMeta { namespace: run.namespace(), ..again.metadata };
    again
}

#[cfg(test)]
mod tests {
    use codex_crds::TrainingRun;
    use kube::ResourceExt;
    use serde_json::json;

    use super::reproduction;

    #[test]
    fn the_spec_is_that_of_the_run_without_its_image_and_status() {
        let run: TrainingRun = serde_json::from_value(json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun",
            "metadata": {"name": "cot", "namespace": "team", "uid": "u", "resourceVersion": "7"},
            "spec": {
                "rolloutRing": "main", "template": "cot-starter", "seed": 7, "suspend": true,
                "data": [{"name": "made", "source": {"synthetic": {"task": "arithmetic", "seed": 1, "count": 10}}}],
                "output": {"persistentVolumeClaim": {"claimName": "models"}},
                "pod": {"image": "mine:1", "nodeSelector": {"class": "a"}},
            },
            "status": {"phase": "Succeeded"},
        }))
        .unwrap();
        let mut expected = serde_json::to_value(&run).unwrap();
        expected["metadata"] = json!({"name": "cot-again", "namespace": "team"});
        expected["spec"]["reproduces"] = json!({"name": "cot"});
        expected["spec"]["suspend"] = json!(false);
        expected["spec"]["pod"].as_object_mut().unwrap().remove("image");
        expected.as_object_mut().unwrap().remove("status");
        assert_eq!(serde_json::to_value(reproduction(&run, None)).unwrap(), expected);
        assert_eq!(reproduction(&run, Some("second".to_owned())).name_any(), "second");
        let mut long = run;
        long.metadata.name = Some(format!("{}-b", "a".repeat(45)));
        let name = reproduction(&long, None).name_any();
        assert_eq!(name, format!("{}-again", "a".repeat(45)), "no two dashes");
    }
}
