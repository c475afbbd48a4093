use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use super::*;

const LOGITS: [f32; 4] = [0.0, 3.0, 1.0, 0.0];

fn settings(path: &Path) -> Settings {
    Settings {
        path: path.to_owned(),
        mode: Mode::Weights,
        sample: 1.0,
        threshold: 0.15,
        top: 2,
        most: 0,
        size: 1 << 20,
    }
}

fn capture(settings: Settings) -> (Arc<Capture>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let store = settings.open().unwrap();
    let weights = "9f".repeat(32).parse().unwrap();
    (Capture::start(settings, store, weights, Arc::clone(&metrics)).unwrap(), metrics)
}

fn count(metrics: &Metrics, result: &str) -> u64 {
    let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
    let name = format!("codex_ml_inference_traces_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

/// Waits until this many traces are counted as written or failed.
fn settled(metrics: &Metrics, expected: u64) {
    for _ in 0..5000 {
        if count(metrics, WRITTEN) + count(metrics, FAILED) >= expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("{expected} traces were not written");
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answer(capture: &Arc<Capture>, logits: &[f32]) {
    if let Some(mut trace) = capture.begin(7) {
        trace.observe(logits, 1);
        trace.observe(&[9.0, 0.0, 0.0, 0.0], 0);
        trace.finish(3, Ended::Generated(Some(End::Stop)));
    }
}

#[test]
fn a_trace_names_the_weights_and_the_most_likely_first_tokens() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("new/traces.ndjson");
    let (capture, metrics) = capture(settings(&path));
    answer(&capture, &LOGITS);
    settled(&metrics, 1);
    let [line] = &lines(&path)[..] else { panic!("one line") };
    assert_eq!((&line["type"], &line["trace_mode"]), (&"reasoning_trace".into(), &"weights".into()));
    assert_eq!(line["weights"], "9f".repeat(32));
    assert_eq!(
        (&line["request"], &line["prompt_tokens"], &line["completion_tokens"]),
        (&1.into(), &7.into(), &3.into())
    );
    assert_eq!((&line["end"], &line["top_tokens"]), (&"stop".into(), &serde_json::json!([1, 2])));
    let expected = 3_f64.exp() / LOGITS.map(|logit| f64::from(logit).exp()).iter().sum::<f64>();
    assert!((line["top_probability"].as_f64().unwrap() - expected).abs() < 1e-6, "{line}");
    assert!(line.get("embedding_norm").is_none(), "{line}");
}

#[test]
fn a_trace_of_activations_has_the_norm_of_their_mean() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("traces.ndjson");
    let (capture, metrics) = capture(Settings { mode: Mode::Activations, ..settings(&path) });
    let mut trace = capture.begin(7).unwrap();
    trace.observe(&LOGITS, 1);
    // Their mean is [3, -4].
    trace.pool(&[1.0, -2.0]);
    trace.pool(&[5.0, -6.0]);
    trace.finish(2, Ended::Generated(None));
    settled(&metrics, 1);
    let [line] = &lines(&path)[..] else { panic!("one line") };
    assert_eq!((&line["trace_mode"], &line["embedding_norm"]), (&"activations".into(), &5.0.into()));
    assert_eq!(line["weights"], "9f".repeat(32));
}

#[test]
fn samples_thresholds_and_caps_hold() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("traces.ndjson");
    let (capture, metrics) = capture(Settings { sample: 0.25, threshold: 0.5, most: 3, ..settings(&path) });
    for _ in 0..4 {
        answer(&capture, &[0.0; 4]);
    }
    assert_eq!(count(&metrics, UNLIKELY), 1, "one of four is sampled, and all four tokens are as likely");
    for _ in 0..40 {
        answer(&capture, &LOGITS);
    }
    settled(&metrics, 3);
    assert_eq!((count(&metrics, WRITTEN), count(&metrics, CAPPED)), (3, 7));
    let requests: Vec<u64> = lines(&path).iter().map(|line| line["request"].as_u64().unwrap()).collect();
    assert_eq!(requests, [5, 9, 13]);
}

#[test]
fn files_stay_bounded_and_keep_whole_lines() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("traces.ndjson");
    fs::write(&path, "{\"torn\": tr").unwrap();
    let (capture, metrics) = capture(Settings { size: 4096, ..settings(&path) });
    for at in 0..100 {
        answer(&capture, &LOGITS);
        settled(&metrics, at + 1);
    }
    let former = place.path().join("traces.ndjson.1");
    for file in [&path, &former] {
        assert!(fs::metadata(file).unwrap().len() <= 4096);
    }
    let requests: Vec<u64> =
        lines(&former).iter().chain(&lines(&path)).map(|line| line["request"].as_u64().unwrap()).collect();
    assert_eq!(requests.last(), Some(&100));
    assert!(requests.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{requests:?}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
}

#[test]
fn a_full_queue_and_a_file_that_fails_are_counted() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("traces.ndjson");
    let (capture, metrics) = capture(Settings { size: 4096, ..settings(&path) });
    // A directory where the full file would be renamed to.
    fs::create_dir_all(place.path().join("traces.ndjson.1/in")).unwrap();
    for at in 0..60 {
        answer(&capture, &LOGITS);
        settled(&metrics, at + 1);
    }
    assert!(count(&metrics, WRITTEN) > 0 && count(&metrics, FAILED) > 0);
    let (queue, traces) = sync_channel(1);
    let stuck = Arc::new(Capture {
        settings: settings(&path),
        weights: "9f".repeat(32).parse().unwrap(),
        metrics: Arc::clone(&metrics),
        queue,
        requests: AtomicU64::new(0),
        minute: Mutex::new((Instant::now(), 0)),
    });
    for _ in 0..3 {
        answer(&stuck, &LOGITS);
    }
    assert_eq!(count(&metrics, DROPPED), 2);
    drop(traces);
    let told = settings(Path::new("/proc/traces")).open().unwrap_err().to_string();
    assert!(told.contains("--trace-store"), "{told}");
    for wrong in ["0", "1.5", "x", "NaN"] {
        assert!(share(wrong).unwrap_err().contains("above 0 and up to 1"), "{wrong}");
    }
}
