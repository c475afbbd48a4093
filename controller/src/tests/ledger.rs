//! The ledger of reads against a mocked API.

use codex_crds::{Evaluation, Reason};
use codex_plan::Read;
use codex_provenance::{DataDigest, Sha256};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;

use super::world::{World, path};
use crate::ledger::{Ledger, LedgerError};

fn problems() -> DataDigest {
    DataDigest(Sha256::of("problems"))
}

fn read(key: &str, number: i64) -> Read {
    Read { problems: problems(), key: key.to_owned(), number, evaluation: format!("team/{key}") }
}

fn collection() -> String {
    "/api/v1/namespaces/codex-system/configmaps".to_owned()
}

fn sheet() -> String {
    let digest = problems().to_string();
    format!("{}/codex-reads-{}", collection(), &digest[..32])
}

#[tokio::test]
async fn a_read_keeps_its_number_over_restarts() {
    let world = World::new().await;
    let (context, ledger) = (&world.context, Ledger::default());
    assert_eq!(ledger.number(context, problems(), "a").await.unwrap(), 1);
    assert_eq!(ledger.number(context, problems(), "b").await.unwrap(), 2);
    for (key, number) in [("b", 2), ("a", 1), ("a", 1)] {
        ledger.record(context, &read(key, number)).await.unwrap();
    }
    let writes: Vec<_> = world.api.requests().into_iter().filter(|line| !line.starts_with("GET")).collect();
    assert_eq!(writes.len(), 2, "{writes:?}");
    let again = Ledger::default();
    for (key, number) in [("c", 3), ("a", 1), ("b", 2)] {
        assert_eq!(again.number(context, problems(), key).await.unwrap(), number);
    }
    // Recorded already, so nothing is written.
    world.api.requests();
    again.record(context, &read("a", 1)).await.unwrap();
    assert!(world.api.requests().is_empty());
}

#[tokio::test]
async fn a_failed_write_records_nothing_and_a_read_that_another_process_recorded_keeps_its_number() {
    let world = World::new().await;
    let (context, ledger, other) = (&world.context, Ledger::default(), Ledger::default());
    assert_eq!(ledger.number(context, problems(), "a").await.unwrap(), 1);
    world.api.fail(&format!("POST {}", collection()), Some(500));
    ledger.record(context, &read("a", 1)).await.unwrap_err();
    world.api.fail(&format!("POST {}", collection()), None);
    assert!(world.api.object(&sheet()).is_none());
    // Another process takes the number.
    assert_eq!(ledger.number(context, problems(), "a").await.unwrap(), 1);
    assert_eq!(other.number(context, problems(), "b").await.unwrap(), 1);
    other.record(context, &read("b", 1)).await.unwrap();
    let moved = ledger.record(context, &read("a", 1)).await.unwrap_err();
    assert!(matches!(moved, LedgerError::Moved { number: 1, .. }) && moved.needs_attention().is_none(), "{moved}");
    assert_eq!(ledger.number(context, problems(), "a").await.unwrap(), 2);
    ledger.record(context, &read("a", 2)).await.unwrap();
    assert_eq!(Ledger::default().number(context, problems(), "b").await.unwrap(), 1);
}

#[tokio::test]
async fn a_changed_ledger_counts_nothing() {
    let world = World::new().await;
    let (context, ledger) = (&world.context, Ledger::default());
    ledger.number(context, problems(), "a").await.unwrap();
    ledger.record(context, &read("a", 1)).await.unwrap();
    let mut changed = world.api.object(&sheet()).unwrap();
    let text = changed["data"]["reads.json"].as_str().unwrap().replace("\"number\":1", "\"number\":9");
    changed["data"]["reads.json"] = json!(text);
    world.api.put(&sheet(), changed);
    // This process knows better than to write over it.
    assert_eq!(ledger.number(context, problems(), "b").await.unwrap(), 2);
    ledger.record(context, &read("b", 2)).await.unwrap_err();
    let broken = ledger.number(context, problems(), "b").await.unwrap_err();
    assert_eq!(broken.needs_attention(), Some(Reason::ReadUncounted));
    assert!(broken.to_string().contains("restore it from a backup, or delete it"), "{broken}");
}

#[tokio::test]
async fn a_deleted_ledger_counts_on_from_sealed_statuses() {
    let world = World::new().await;
    let (context, ledger) = (&world.context, Ledger::default());
    ledger.number(context, problems(), "a").await.unwrap();
    ledger.record(context, &read("a", 1)).await.unwrap();
    let evaluation = |name: &str, number: i64| {
        json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": name, "uid": format!("{name}-uid")},
            "spec": {"trainingRun": "a", "preset": "cot-lite", "gates": [{"metric": "exact_match", "min": "0.95"}]},
            "status": {"reads": {"dataDigest": problems(), "number": number}},
        })
    };
    world.api.put(&path("evaluations", "e"), world.sealed::<Evaluation>(evaluation("e", 7)));
    world.api.put(&path("evaluations", "forged"), evaluation("forged", 70));
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), "codex-system");
    let (_, name) = sheet().rsplit_once('/').map(|(folder, name)| (folder.to_owned(), name.to_owned())).unwrap();
    maps.delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    assert_eq!(Ledger::default().number(context, problems(), "b").await.unwrap(), 8);
}
