//! The clients against a server of a small untrained model, and the arithmetic of the benchmark.

use clap::Parser;

use super::{
    bench::{BenchServe, Percentiles},
    chat::{Chat, Look},
    *,
};
use crate::serving::{Case, chat_model};

#[derive(Parser)]
enum Line {
    Chat(Chat),
    BenchServe(BenchServe),
    Infer(Infer),
}

fn parse(line: &str) -> Line {
    Line::try_parse_from(line.split('|')).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_streamed_with_its_history() {
    let server = Case::of(chat_model("smollm2")).ready().await;
    let url = format!("http://{}", server.address);
    let talk = async |line: String, input: &'static str, look: Look| {
        let work = move || {
            let Line::Chat(chat) = parse(&line) else { panic!() };
            let mut out = Vec::new();
            let result =
                chat.talk(&mut input.as_bytes(), &mut out, look).map_err(|error| (error.exit, error.to_string()));
            (result, String::from_utf8(out).unwrap())
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let plain = Look { prompts: false, colours: false, thinking: true };
    let line = format!("x|chat|--url|{url}|--max-tokens|4");
    let (result, once) = talk(line.clone(), "Hi\n", plain).await;
    assert!(result.is_ok() && once.ends_with('\n') && once.len() > 1, "{once:?}");
    let (_, twice) = talk(line.clone(), "Hi\n/clear\nHi\n\n/exit\nHi\n", plain).await;
    assert_eq!(twice, once.repeat(2), "a cleared conversation begins anew");
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("sessions/chat-1.ndjson");
    let (_, logged) = talk(format!("{line}|--system|Be brief.|--session-log|{}", log.display()), "Hi\n", plain).await;
    let written = std::fs::read_to_string(&log).unwrap();
    let events: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = events.iter().map(|event| (event["role"].as_str().unwrap(), &event["message"])).collect();
    assert_eq!(said[..2], [("system", &Value::from("Be brief.")), ("user", &Value::from("Hi"))]);
    assert!(said[2].0 == "assistant" && logged.contains(said[2].1.as_str().unwrap()) && said.len() == 3, "{written}");
    assert!(events.iter().all(|event| event["session_id"] == "chat-1" && event["ts"].as_f64().unwrap() > 1e9));
    let typed = Look { prompts: true, ..plain };
    let (result, told) = talk(line.replace("--max-tokens|4", "--model|other"), "Hi\n", typed).await;
    assert!(
        result.is_ok() && told.contains("> the server answered 404: the model \"other\" is not served here"),
        "{told}"
    );
    let (result, _) = talk(line.replace("--max-tokens|4", "--model|other"), "Hi\n", plain).await;
    assert_eq!(result.unwrap_err().0, 2);
    let (result, _) = talk("x|chat|--url|http://127.0.0.1:9".to_owned(), "Hi\n", typed).await;
    let (exit, told) = result.unwrap_err();
    assert!(exit == 1 && told.contains("is a server running there?"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_rate_is_counted() {
    let server = Case::new(64).ready().await;
    let line = format!(
        "x|bench-serve|--url|http://{}|--rate|200|--requests|12|--endpoint|completions|--prompt|{{}}+1:|--max-tokens|5",
        server.address
    );
    let measure = async |line: String| {
        let work = move || {
            let Line::BenchServe(bench) = parse(&line) else { panic!() };
            bench.measure(200.0, 0)
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let row = measure(line.clone()).await;
    assert_eq!((row.sent, row.answered, row.refused, row.failed), (12, 12, 0, 0), "{:?}", row.error);
    let (first, whole) = (row.first_token.unwrap(), row.whole.unwrap());
    assert!(first.p50 > 0.0 && whole.p50 >= first.p50 && whole.max >= whole.p99 && row.tokens_per_second > 0.0);
    assert!(row.long_first_token.is_none());
    let row = measure(line.replace("--max-tokens", "--long-prompts|20|--max-tokens")).await;
    // One of the twelve is long, and none of its times is among the others.
    assert_eq!((row.answered, row.failed), (12, 0), "{:?}", row.error);
    assert!(row.long_first_token.is_some_and(|it| it.p50 >= it.max));
    let row = measure(line.replace("--max-tokens", "--model|other|--max-tokens")).await;
    assert_eq!((row.answered, row.failed), (0, 12));
    assert!(row.error.unwrap().contains("404"));
}

/// Starts a server that answers one request after another, each in 10 ms, and refuses a request if `waiting` are there. Returns its URL.
async fn slow_server(waiting: usize) -> String {
    use axum::response::IntoResponse as _;

    let state = std::sync::Arc::new((tokio::sync::Semaphore::new(1), std::sync::atomic::AtomicUsize::new(0)));
    let answer = move || {
        let state = std::sync::Arc::clone(&state);
        async move {
            let (engine, running) = &*state;
            let ahead = running.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let response = if ahead > waiting {
                (axum::http::StatusCode::TOO_MANY_REQUESTS, "{\"error\": {\"message\": \"full\"}}").into_response()
            } else {
                let turn = engine.acquire().await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                drop(turn);
                "data: {\"choices\": [{\"text\": \"x\"}]}\n\ndata: [DONE]\n\n".into_response()
            };
            running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            response
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/v1/completions", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn the_knee_is_the_highest_rate_that_a_server_holds() {
    let find = async |line: String| {
        let work = move || {
            let Line::BenchServe(bench) = parse(&line) else { panic!() };
            let mut out = Vec::new();
            let result = bench.find_knee(&mut out).map_err(|error| (error.exit, error.to_string()));
            (result, String::from_utf8(out).unwrap())
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let last = |told: &str| serde_json::from_str::<Value>(told.lines().last().unwrap()).unwrap();
    let options = "--knee|--endpoint|completions|--rate|40|--requests|30|--min-seconds|0|--arrivals|constant";
    // At most 100 requests/s are answered, so that at 160 the last of 30 requests wait for more than 100 ms.
    let line = format!("x|bench-serve|--url|{}|{options}", slow_server(1000).await);
    let (result, told) = find(format!("{line}|--max-first-token|0.08|--json")).await;
    assert_eq!(result, Ok(0), "{told}");
    let knee = &last(&told)["knee"];
    let (holds, breaks) = (knee["holds"].as_f64().unwrap(), knee["breaks"].as_f64().unwrap());
    assert!(holds < 160.0 && breaks > holds && breaks <= holds * 1.1, "{told}");
    let rows: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() > 3 && rows[..rows.len() - 1].iter().all(|row| row["first_token"]["p95"].is_number()), "{told}");

    // A rate lasts at least so long, whatever the number of requests.
    let longer = line.replace("--min-seconds|0", "--min-seconds|1");
    let (_, told) = find(format!("{longer}|--max-first-token|100|--max-rates|1|--json")).await;
    assert_eq!(serde_json::from_str::<Value>(told.lines().next().unwrap()).unwrap()["sent"], 40, "{told}");
    let (result, told) = find(format!("{line}|--max-first-token|100|--max-rates|2")).await;
    assert!(result == Ok(0) && told.ends_with("or --rate.\n") && told.contains("80 requests/s hold"), "{told}");
    let (result, told) = find(format!("{line}|--max-first-token|0.001|--max-rates|2")).await;
    assert_eq!(result, Err((1, "no rate that was tried holds".to_owned())));
    assert!(told.contains("At 20 requests/s, the first token came after "), "{told}");

    // This one refuses what would wait, so that only the share of refusals says that it is full.
    let line = format!("x|bench-serve|--url|{}|{options}", slow_server(1).await);
    let (result, told) = find(format!("{line}|--max-first-token|100|--max-refused|0.2")).await;
    assert!(result == Ok(0) && told.contains(" % of the requests were refused or failed."), "{told}");

    for (more, said) in [
        ("--rate|3", "--rate: with --knee, give the first rate only"),
        ("--max-first-token|0", "--max-first-token 0: write a number of seconds above 0"),
        ("--max-refused|1.5", "--max-refused 1.5: write a number from 0 to 1"),
    ] {
        assert_eq!(find(format!("{line}|{more}")).await.0, Err((2, said.to_owned())));
    }
    let (result, _) =
        find("x|bench-serve|--knee|--requests|2|--min-seconds|0|--rate|100|--url|http://127.0.0.1:9".to_owned()).await;
    assert_eq!(result, Err((1, "no request was answered".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn infer_prints_or_names_the_reason() {
    let server = Case::new(64).ready().await;
    let run = async |line: String| {
        let work = move || {
            let Line::Infer(infer) = parse(&line) else { panic!() };
            infer.run().map_err(|error| (error.exit, error.to_string()))
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let line = format!("x|infer|1+1:|--max-new-tokens|3|--url|http://{}", server.address);
    assert_eq!(run(line.clone()).await, Ok(0));
    let (exit, told) = run(line.replace("1+1:", "caf\u{e9}")).await.unwrap_err();
    assert!(exit == 2 && told.contains("the server answered 422: prompt: character 'é'"), "{told}");
}

#[test]
fn times_have_the_rate_and_percentiles_the_nearest_rank() {
    let bench = |arrivals: &str| {
        let line = format!("x|bench-serve|--rate|50|--requests|4000|--arrivals|{arrivals}");
        let Line::BenchServe(bench) = parse(&line) else { panic!() };
        bench.times(50.0)
    };
    let (poisson, constant) = (bench("poisson"), bench("constant"));
    assert!((constant[1000] - 20.0).abs() < 1e-9);
    // Five standard errors of the mean.
    assert!((poisson[3999] / 3999.0 * 50.0 - 1.0).abs() < 5.0 / 63.0);
    assert!(poisson.windows(2).all(|pair| pair[0] <= pair[1]) && poisson == bench("poisson"));
    let percentiles = Percentiles::of((1..=100).rev().map(f64::from).collect()).unwrap();
    assert_eq!(percentiles, Percentiles { p50: 50.0, p90: 90.0, p95: 95.0, p99: 99.0, max: 100.0 });
    let one = Percentiles { p50: 3.0, p90: 3.0, p95: 3.0, p99: 3.0, max: 3.0 };
    assert_eq!(Percentiles::of(vec![3.0]), Some(one));
    assert!(Percentiles::of(Vec::new()).is_none());
}

/// A chat template with tools that begins the reasoning.
const TOOLS_AND_REASONING: &str = r#"{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}"#;

const KEY: &str = "sk-clients-0123456789";

/// Runs a script with the arguments `URL`, `KEY` and `TOOLS_URL` against two servers: one without tools, of the model in
/// `CODEX_TEST_MODEL` or else a small untrained one, and one with tools and reasoning.
async fn run_client(mut command: std::process::Command) {
    let files = match std::env::var_os("CODEX_TEST_MODEL") {
        None => chat_model("smollm2"),
        Some(folder) => std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
            .collect(),
    };
    let mut with_tools = chat_model("qwen3");
    with_tools.insert("chat_template.jinja".to_owned(), TOOLS_AND_REASONING.as_bytes().to_vec());
    let [mut plain, mut tools] = [files, with_tools].map(Case::of);
    for case in [&mut plain, &mut tools] {
        let keys = case.path("keys");
        std::fs::create_dir(&keys).unwrap();
        std::fs::write(keys.join("client"), KEY).unwrap();
        case.require_keys(keys);
    }
    let (plain, tools) = (plain.ready().await, tools.ready().await);
    let [url, tools_url] = [plain.address, tools.address].map(|address| format!("http://{address}"));
    let work = move || command.args([&url, KEY, &tools_url]).output().unwrap();
    let output = tokio::task::spawn_blocking(work).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
}

fn script(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients").join(name)
}

/// `make test-clients` installs the package.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CLIENTS_PYTHON, a Python with the package openai: make test-clients"]
async fn the_openai_client_works_unchanged() {
    let python = std::env::var("CLIENTS_PYTHON").expect("CLIENTS_PYTHON names a Python with the package openai");
    let mut command = std::process::Command::new(python);
    command.arg(script("check.py"));
    run_client(command).await;
}

/// `make test-clients` installs the package.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs CLIENTS_NODE_PATH, a node_modules with the package openai: make test-clients"]
async fn the_javascript_openai_client_works_unchanged() {
    let modules = std::env::var("CLIENTS_NODE_PATH").expect("CLIENTS_NODE_PATH names a node_modules with openai");
    let mut command = std::process::Command::new("node");
    command.env("NODE_PATH", modules).arg(script("check.cjs"));
    run_client(command).await;
}
