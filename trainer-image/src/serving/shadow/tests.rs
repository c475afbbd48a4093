//! Two servers in one process: one answers, the other one is its shadow.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use codex_provenance::{ModelDigest, Sha256};
use codex_reports::{
    COPIES_PATH, COPY_KEY_HEADER, COPY_SIGNATURE_HEADER, Comparison, CopiedSampling, MirrorFile, MirrorTarget,
    RequestCopy, ShadowFile, Times, Traffic, signed_copy,
};
use prometheus::TextEncoder;
use serde_json::{Value, json};

use super::Mirror;
use crate::{
    serving::{
        batcher::Job,
        metrics::Metrics,
        tests::{Case, Running, request, seeded},
    },
    text::Tokenizer,
};

const UID: &str = "uid-of-the-shadow";

/// A server and its shadow, which have begun to compare.
struct Pair {
    // Their folders are removed with them.
    _cases: [Case; 2],
    incumbent: Running,
    shadow: Running,
    model: ModelDigest,
}

impl Pair {
    /// Starts a server with the weights of one seed, and a shadow with those of another one.
    async fn start(incumbent: u64, shadow: u64) -> Self {
        Self::with(incumbent, shadow, |compares| compares.shadow = Some(compares.path("shadow.json"))).await
    }

    /// Starts a server with the weights of one seed, and a canary with those of another one.
    async fn with_canary(incumbent: u64, canary: u64) -> Self {
        let with = |compares: &mut Case| {
            compares.compare = Some(compares.path("shadow.json"));
            compares.traffic = Some(Duration::from_millis(5));
        };
        Self::with(incumbent, canary, with).await
    }

    async fn with(incumbent: u64, shadow: u64, compare: impl FnOnce(&mut Case)) -> Self {
        let mut compares = Case::of(seeded(64, shadow));
        compare(&mut compares);
        let second = compares.ready().await;
        let mut answers = Case::of(seeded(64, incumbent));
        answers.mirror = Some(answers.path("mirror.json"));
        let target =
            MirrorTarget { uid: UID.to_owned(), url: format!("http://{}", second.address), sample_percent: 100 };
        fs::write(answers.path("mirror.json"), serde_json::to_vec(&MirrorFile { shadows: vec![target] }).unwrap())
            .unwrap();
        let first = answers.ready().await;
        let key = first.reporter.state().copies_key.unwrap();
        accept(&compares, &[key]);
        let model = answers.expected.model_digest;
        let pair = Self { _cases: [answers, compares], incumbent: first, shadow: second, model };
        // Copies are refused until the shadow has read the keys.
        for _ in 0..600 {
            pair.ask(1, 2).await;
            if pair.comparison().is_some_and(|it| it.compared > 0) {
                return pair;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing was compared");
    }

    fn comparison(&self) -> Option<Comparison> {
        let known = self.shadow.reporter.state().comparisons;
        known.into_iter().find(|comparison| comparison.model == self.model)
    }

    /// Asks for completions, sampled and not, and with a text that ends them.
    async fn ask(&self, seeds: u64, tokens: usize) {
        for seed in 0..seeds {
            let body = json!({ "prompt": format!("{seed}+86:"), "max_new_tokens": tokens });
            assert_eq!(self.incumbent.infer(body).await.0, 200);
            let bound = json!({ "guided_regex": "[0-9]{1,30}" });
            let thinking =
                json!({ "prompt": "<think>1+1:", "max_tokens": tokens + 20, "thinking_token_budget": tokens });
            for extra in [json!({}), json!({ "seed": seed }), json!({ "stop": ["3"] }), bound, thinking] {
                let mut body = json!({ "prompt": "1+1:", "temperature": 1.5, "top_p": 0.95, "max_tokens": tokens });
                body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
                let answered = request(self.incumbent.address, "/v1/completions", Some(body.to_string())).await;
                assert_eq!(answered.unwrap().0, 200);
            }
        }
    }

    /// Waits until so many more requests are compared, and returns the comparison.
    async fn compared(&self, before: u64, more: u64) -> Comparison {
        for _ in 0..600 {
            if let Some(comparison) = self.comparison().filter(|it| it.compared >= before + more) {
                return comparison;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{more} more requests were not compared: {:?}", self.comparison());
    }
}

/// Writes the keys that a shadow accepts.
fn accept(case: &Case, keys: &[String]) {
    let file = ShadowFile { uid: UID.to_owned(), keys: keys.to_vec() };
    fs::write(case.path("shadow.json"), serde_json::to_vec(&file).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_weights_agree_on_every_request() {
    let pair = Pair::start(11, 11).await;
    let before = pair.comparison().unwrap().compared;
    pair.ask(5, 12).await;
    let comparison = pair.compared(before, 30).await;
    assert_eq!((comparison.identical, comparison.agreed), (comparison.compared, comparison.compared));
    assert_eq!(comparison.first_difference, None);
    let last = comparison.latency.len() - 1;
    assert_eq!((comparison.latency[last], comparison.other_latency[last]), (comparison.compared, comparison.compared));
    // The server has sent what the shadow has compared, and says so.
    let (_, metrics) = pair.incumbent.get("/metrics").await;
    assert!(metrics.contains("codex_ml_inference_copies_total{result=\"dropped\"} 0"), "{metrics}");
    let (_, metrics) = pair.shadow.get("/metrics").await;
    assert!(metrics.contains("codex_ml_shadow_requests_total{result=\"diverged\"} 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_weights_diverge_and_the_first_difference_is_known() {
    let pair = Pair::start(11, 12).await;
    let before = pair.comparison().unwrap().compared;
    pair.ask(5, 12).await;
    let comparison = pair.compared(before, 30).await;
    assert!(comparison.agreed < comparison.compared, "{comparison:?}");
    assert!(comparison.identical <= comparison.agreed, "{comparison:?}");
    assert!(comparison.first_difference.is_some_and(|difference| difference.token < 12), "{comparison:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_answers_nobody() {
    let mut case = Case::new(64);
    case.shadow = Some(case.path("shadow.json"));
    let shadow = case.ready().await;
    for (path, body) in [
        ("/infer", Some("{\"prompt\": \"1+1:\"}")),
        ("/v1/completions", Some("{\"prompt\": \"1+1:\"}")),
        ("/v1/models", None),
        ("/status", None),
    ] {
        let (status, _, text) = request(shadow.address, path, body.map(str::to_owned)).await.unwrap();
        assert_eq!(status, 404, "{path}: {text}");
    }
    // Other servers take no copies.
    let open = Case::new(64).ready().await;
    assert_eq!(request(open.address, COPIES_PATH, Some("{}".to_owned())).await.unwrap().0, 404);
    assert_eq!(open.reporter.state().copies_key, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_answers_clients_and_compares_copies_beside_them() {
    for (seed, differs) in [(11, false), (12, true)] {
        let pair = Pair::with_canary(11, seed).await;
        for _ in 0..3 {
            assert_eq!(pair.shadow.infer(json!({ "prompt": "1+1:", "max_new_tokens": 4 })).await.0, 200);
        }
        // Copies give way, so that some are skipped.
        let before = pair.comparison().unwrap().compared;
        for _ in 0..20 {
            pair.ask(5, 12).await;
            if pair.comparison().unwrap().compared >= before + 20 {
                break;
            }
        }
        let comparison = pair.compared(before, 20).await;
        assert_eq!(comparison.agreed < comparison.compared, differs, "{comparison:?}");
        assert_eq!(comparison.identical == comparison.compared, !differs, "{comparison:?}");
        // Its numbers are those of its clients.
        let of_clients = |it: &Traffic| {
            let responses = |times: &Option<Times>| times.as_ref().map_or(0, |times| times.responses);
            (it.requests, it.completed, responses(&it.first_token), responses(&it.inter_token))
        };
        let mut seen = None;
        for _ in 0..600 {
            seen = pair.shadow.reporter.state().traffic;
            if seen.as_ref().is_some_and(|it| it.completed == 3) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(seen.as_ref().map(of_clients), Some((3, 3, 3, 3)));
        assert_eq!(pair.shadow.reporter.state().copies_key, None, "it sends no copies itself");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_demands_keys_of_clients_and_signatures_of_copies() {
    let known = Ed25519KeyPair::generate().unwrap();
    let public = hex::encode(known.public_key());
    let mut case = Case::new(64);
    let folder = case.path("keys");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("alice"), "sk-alice-0123456789").unwrap();
    case.require_keys(folder);
    case.compare = Some(case.path("shadow.json"));
    accept(&case, std::slice::from_ref(&public));
    let canary = case.ready().await;
    let (status, _, answer) =
        request(canary.address, "/infer", Some("{\"prompt\": \"1+1:\"}".to_owned())).await.unwrap();
    assert_eq!(status, 401, "{answer}");
    let body = serde_json::to_vec(&copy(7)).unwrap();
    let signature = hex::encode(known.sign(&signed_copy(UID, &body)));
    for (key, signature, status) in [
        (None, None, 401),
        (Some("0".repeat(64)), Some(signature.clone()), 403),
        (Some(public.clone()), Some("00".to_owned()), 403),
        (Some(public), Some(signature), 202),
    ] {
        let (found, answer) = send(canary.address, body.clone(), key, signature).await;
        assert_eq!(found, status, "{answer}");
    }
}

/// A body, its key and its signature, and the status and the sentence of the answer.
type Sent<'a> = (&'a [u8], Option<String>, Option<String>, u16, &'a str);

/// Sends a body to a shadow with these headers.
async fn send(address: SocketAddr, body: Vec<u8>, key: Option<String>, signature: Option<String>) -> (u16, Value) {
    let work = move || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut request = agent.post(format!("http://{address}{COPIES_PATH}"));
        for (name, value) in [(COPY_KEY_HEADER, key), (COPY_SIGNATURE_HEADER, signature)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let mut response = request.send(&body[..]).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap())
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn copy(sequence: u64) -> RequestCopy {
    let tokenizer = Tokenizer::characters().unwrap();
    let prompt = tokenizer.encode_prompt("1+1:").unwrap();
    RequestCopy {
        sequence,
        model: ModelDigest(Sha256::of("other")),
        prompt_text: tokenizer.decode(&prompt).unwrap(),
        prompt,
        limit: 4,
        sampling: CopiedSampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 },
        tokens: vec![1, 2, 3, 4],
        bound: None,
        thinking: None,
        stopped: false,
        milliseconds: 5,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_servers_that_the_controller_names_are_believed() {
    let [known, unknown] = [(); 2].map(|()| Ed25519KeyPair::generate().unwrap());
    let public = |pair: &Ed25519KeyPair| hex::encode(pair.public_key());
    let mut case = Case::new(64);
    case.shadow = Some(case.path("shadow.json"));
    accept(&case, &[public(&known)]);
    let shadow = case.ready().await;
    let body = serde_json::to_vec(&copy(7)).unwrap();
    let signed = |pair: &Ed25519KeyPair, uid: &str, body: &[u8]| Some(hex::encode(pair.sign(&signed_copy(uid, body))));
    let other = serde_json::to_vec(&copy(8)).unwrap();
    let mut foreign = copy(9);
    foreign.prompt_text = "other text".to_owned();
    let foreign = serde_json::to_vec(&foreign).unwrap();
    let cases: [Sent<'_>; 9] = [
        (&body, None, None, 401, "needs the headers"),
        (&body, Some(public(&known)), None, 401, "needs the headers"),
        (&body, Some(public(&unknown)), signed(&unknown, UID, &body), 403, "is not one of the servers"),
        (&body, Some(public(&known)), signed(&unknown, UID, &body), 403, "the signature does not fit"),
        (&body, Some(public(&known)), signed(&known, "another", &body), 403, "the signature does not fit"),
        (&body, Some(public(&known)), signed(&known, UID, &other), 403, "the signature does not fit"),
        (b"{}", Some(public(&known)), signed(&known, UID, b"{}"), 400, "the copy has the wrong form"),
        (&body, Some(public(&known)), signed(&known, UID, &body), 202, ""),
        (&body, Some(public(&known)), signed(&known, UID, &body), 409, "copy 7 of this server was taken before"),
    ];
    for (body, key, signature, status, told) in cases {
        let (found, answer) = send(shadow.address, body.to_vec(), key, signature).await;
        assert_eq!(found, status, "{told}: {answer}");
        assert!(status == 202 || answer["error"].as_str().unwrap().contains(told), "{answer}");
    }
    let (status, answer) =
        send(shadow.address, foreign.clone(), Some(public(&known)), signed(&known, UID, &foreign)).await;
    assert_eq!(status, 422, "{answer}");
    for _ in 0..600 {
        let known = shadow.reporter.state().comparisons;
        if known.first().is_some_and(|it| it.compared == 1 && it.skipped == 1) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the copies were not counted: {:?}", shadow.reporter.state().comparisons);
}

#[test]
fn copies_that_find_no_place_are_dropped_and_counted() {
    // The system accepts connections, and no program answers them.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", deaf.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.json");
    let metrics = Arc::new(Metrics::new().unwrap());
    let mirror = Mirror::new(path.clone(), Arc::clone(&metrics)).unwrap();
    mirror.serves(ModelDigest(Sha256::of("model")), Tokenizer::characters().unwrap());
    let job = Job::greedy(vec![1, 2], 4);
    assert!(mirror.begin(&job).is_none(), "without a file nothing is copied");
    let target = MirrorTarget { uid: UID.to_owned(), url, sample_percent: 100 };
    fs::write(&path, serde_json::to_vec(&MirrorFile { shadows: vec![target] }).unwrap()).unwrap();
    mirror.reload().unwrap();
    for _ in 0..100 {
        let mut recording = mirror.begin(&job).unwrap();
        recording.token(3);
        recording.finish(false);
    }
    let text = TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
    let dropped =
        text.lines().find_map(|line| line.strip_prefix("codex_ml_inference_copies_total{result=\"dropped\"} "));
    let dropped: u64 = dropped.unwrap().parse().unwrap();
    // 64 wait, and one may be on its way.
    assert!((35..=36).contains(&dropped), "{text}");
    // An invalid file changes nothing, and one without shadows ends it.
    for (contents, copies) in [("{", true), ("", false)] {
        fs::write(&path, contents).unwrap();
        assert_eq!(mirror.reload().is_err(), copies, "{contents:?}");
        assert_eq!(mirror.begin(&job).is_some(), copies, "{contents:?}");
    }
}

/// A shadow that does not answer costs two seconds for each copy, but only its own: copies for the other one do not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_does_not_answer_delays_no_other() {
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut compares = Case::new(64);
    compares.shadow = Some(compares.path("shadow.json"));
    let shadow = compares.ready().await;
    let metrics = Arc::new(Metrics::new().unwrap());
    let target = |uid: &str, url: String| MirrorTarget { uid: uid.to_owned(), url, sample_percent: 100 };
    let shadows = vec![
        target("deaf", format!("http://{}", deaf.local_addr().unwrap())),
        target(UID, format!("http://{}", shadow.address)),
    ];
    fs::write(compares.path("mirror.json"), serde_json::to_vec(&MirrorFile { shadows }).unwrap()).unwrap();
    let mirror = Mirror::new(compares.path("mirror.json"), Arc::clone(&metrics)).unwrap();
    let tokenizer = Tokenizer::characters().unwrap();
    let prompt = tokenizer.encode_prompt("1+1:").unwrap();
    mirror.serves(ModelDigest(Sha256::of("other")), tokenizer);
    accept(&compares, &[mirror.key().to_owned()]);
    let job = Job::greedy(prompt, 4);
    let compared = || shadow.reporter.state().comparisons.first().map_or(0, |it| it.compared + it.skipped);
    let text = || TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
    let count = |result: &str| -> u64 {
        let name = format!("codex_ml_inference_copies_total{{result=\"{result}\"}} ");
        text().lines().find_map(|line| line.strip_prefix(name.as_str())).unwrap().parse().unwrap()
    };
    // Copies are refused until the shadow has read the key. One counts as sent once it is answered, which may be after it was compared.
    for _ in 0..1_500 {
        let mut recording = mirror.begin(&job).unwrap();
        recording.token(3);
        recording.finish(false);
        tokio::time::sleep(Duration::from_millis(20)).await;
        if compared() >= 40 && count("sent") >= 40 {
            break;
        }
    }
    assert!(compared() >= 40 && count("sent") >= 40 && count("failed") < count("sent") / 2, "{}", text());
    // Those of other tests may have just begun.
    for _ in 0..500 {
        let found = priorities("copies");
        if found.len() >= 2 && found.iter().all(|priority| *priority == 19) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("threads that send copies hold up others: {:?}", priorities("copies"));
}

/// Returns the priorities of this process's threads with a name.
fn priorities(name: &str) -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // One that has ended is none.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (before, after) = stat.rsplit_once(") ")?;
            let named = before.split_once(" (")?.1 == name;
            // The first field after the name is the third one, and the priority the nineteenth.
            named.then(|| after.split(' ').nth(16).unwrap().parse().unwrap())
        })
        .collect()
}

#[test]
fn requests_are_sampled_for_each_shadow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.json");
    let target = |percent: u32| MirrorTarget { uid: UID.to_owned(), url: String::new(), sample_percent: percent };
    fs::write(&path, serde_json::to_vec(&MirrorFile { shadows: vec![target(0), target(30)] }).unwrap()).unwrap();
    let mirror = Mirror::new(path, Arc::new(Metrics::new().unwrap())).unwrap();
    mirror.serves(ModelDigest(Sha256::of("model")), Tokenizer::characters().unwrap());
    let job = Job::greedy(vec![1, 2], 4);
    let sampled = (0..2_000).filter(|_| mirror.begin(&job).is_some()).count();
    // Six standard deviations around 600.
    assert!((478..=722).contains(&sampled), "{sampled}");
}
