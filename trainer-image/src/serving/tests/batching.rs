//! The engine thread without HTTP: batches, chunks and pre-emption change no token.

use super::*;

fn client() -> Client {
    Client::anonymous(Arc::new(Metrics::new().unwrap()))
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn job(token: u32, limit: usize) -> Job {
    Job::greedy(vec![token], limit)
}

#[tokio::test]
async fn without_a_free_permit_requests_are_refused() {
    let batcher = Batcher::start(
        generator(64, 4),
        Room { running: 2, queue: 3, cache: None, prefixes: 100, batched: None },
        metrics(),
    )
    .unwrap();
    let all = Arc::clone(&batcher.permits).acquire_many_owned(5).await.unwrap();
    assert_eq!(batcher.active(), 5);
    assert!(
        batcher
            .answer(job(5, 1), &client())
            .await
            .unwrap_err()
            .to_string()
            .contains("5 requests are running or waiting")
    );
    drop(all);
    assert_eq!(batcher.answer(job(5, 7), &client()).await.unwrap().tokens.len(), 7);
    assert!(batcher.answer(job(9_999, 1), &client()).await.unwrap_err().to_string().contains("outside the vocabulary"));
}

#[tokio::test]
async fn what_nobody_waits_for_takes_only_slots_that_requests_leave() {
    let metrics = metrics();
    let room = Room { running: 4, queue: 3, cache: None, prefixes: 100, batched: None };
    let batcher = Batcher::start(generator(64, 5), room, Arc::clone(&metrics)).unwrap();
    let ended = async |mut pieces: Pieces| {
        while let Some(piece) = pieces.recv().await {
            if let Piece::End(end) = piece {
                end.unwrap();
            }
        }
    };
    let held = Arc::clone(&batcher.permits).acquire_many_owned(2).await.unwrap();
    let refused = batcher.stream_aside(job(5, 7), client()).err().unwrap();
    assert!(matches!(refused, RequestError::Overloaded { .. }), "half of the slots are in use: {refused}");
    drop(held);
    let timed = || {
        let traffic = metrics.traffic();
        [traffic.first_token, traffic.inter_token].map(|times| times.unwrap().responses)
    };
    ended(batcher.stream_aside(job(5, 7), client()).unwrap()).await;
    assert_eq!(timed(), [0, 0], "its times are not among those of requests");
    ended(batcher.stream(job(5, 7), client()).unwrap()).await;
    assert_eq!(timed(), [1, 1]);
}

#[tokio::test]
async fn an_abandoned_request_is_dropped() {
    let batcher = Batcher::start(
        generator(ENDLESS, 1),
        Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: None },
        metrics(),
    )
    .unwrap();
    let payer = client();
    let abandoned = batcher.answer(job(5, ENDLESS), &payer);
    assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err(), "generation has only begun");
    // The only slot is free again, long before the context is full.
    let next = tokio::time::timeout(Duration::from_secs(10), batcher.answer(job(5, 3), &client())).await;
    assert_eq!(next.unwrap().unwrap().tokens.len(), 3);
    assert_eq!(batcher.active(), 0);
}

/// A batcher whose steps compute at most 16 tokens.
fn in_chunks(context: usize) -> Batcher {
    let room = Room { running: 2, queue: 2, cache: None, prefixes: 10_000, batched: Some(16) };
    Batcher::start(generator(context, 4), room, metrics()).unwrap()
}

fn long(tokens: usize, limit: usize) -> Job {
    Job { prompt: (0..tokens as u32).map(|at| 2 + at * at % 9).collect(), ..job(5, limit) }
}

/// The prompt takes 134 steps, in each of which the response goes on.
#[tokio::test]
async fn a_long_prompt_lets_responses_go_on() {
    let batcher = in_chunks(4_000);
    let (first, second) = (client(), client());
    let order = std::sync::Mutex::new(Vec::new());
    let ended = async |name: &'static str, job: Job, client: &Client| {
        let generated = batcher.answer(job, client).await.unwrap();
        order.lock().unwrap().push(name);
        generated.tokens
    };
    let (short, prompt) = tokio::join!(ended("short", job(5, 100), &first), ended("long", long(2_000, 3), &second));
    assert_eq!(*order.lock().unwrap(), ["short", "long"]);
    // Neither has other tokens than it has alone, in one piece.
    let whole = Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: Some(1 << 20) };
    let alone = Batcher::start(generator(4_000, 1), whole, metrics()).unwrap();
    assert_eq!(alone.answer(job(5, 100), &first).await.unwrap().tokens, short);
    assert_eq!(alone.answer(long(2_000, 3), &first).await.unwrap().tokens, prompt);
}

#[tokio::test]
async fn prompts_in_chunks_take_over_what_others_computed() {
    let batcher = in_chunks(4_000);
    let (first, second) = (client(), client());
    let (one, other) = tokio::join!(batcher.answer(long(200, 5), &first), batcher.answer(long(200, 5), &second));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.tokens, other.tokens);
    assert!(other.cached >= 184, "{}", other.cached);
    let again = batcher.answer(long(200, 5), &first).await.unwrap();
    assert_eq!((again.tokens, again.cached), (one.tokens, 199));
}

/// A request of a random schedule: its prompt, the limit of its response, the seed of its sampler, and when it begins.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    limit: usize,
    seed: u64,
    after: u64,
    /// Whether the client goes away after its first token.
    leaves: bool,
    /// The budget of its reasoning, in which its prompt ends.
    budget: Option<usize>,
    /// Whether the tokens of its prompt are scored.
    prompt_scored: bool,
}

impl Asked {
    fn job(&self) -> Job {
        let sampling = Sampling { temperature: 1.0, seed: self.seed, ..Sampling::default() };
        let (prompt, sampler) = (self.prompt.clone(), Sampler::new(sampling).unwrap());
        let thinking = self.budget.map(|budget| {
            let tokenizer = Tokenizer::characters().unwrap();
            let bounds = Bounds { markers: Markers::KNOWN[0], opened: true, budget: Some(budget), until: usize::MAX };
            let specials = Arc::new(Specials::of(&tokenizer, tokenizer.ends()));
            Thinking::new(&tokenizer, specials, closing(&tokenizer, bounds.markers).unwrap(), bounds)
        });
        let prompt_scores = self.prompt_scored.then_some(1);
        Job { sampler, scores: Some(2), prompt_scores, thinking, ..Job::greedy(prompt, self.limit) }
    }
}

/// The context of the models of random schedules.
const SMALL: usize = 96;

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let prompt = proptest::collection::vec(2_u32..9, 1..60);
    let budget = proptest::option::weighted(0.3, 0_usize..40);
    let scored = proptest::bool::weighted(0.4);
    let one = (prompt, 0_usize..60, any::<u64>(), 0_u64..4, proptest::bool::weighted(0.1), budget, scored);
    let one = one.prop_map(|(prompt, limit, seed, after, leaves, budget, prompt_scored)| Asked {
        prompt,
        limit,
        seed,
        after,
        leaves,
        budget,
        prompt_scored,
    });
    proptest::collection::vec(one, 2..10)
}

/// Returns the tokens with their log-probabilities that each client receives, in pieces, those of the prompt first.
async fn received(batcher: &Batcher, asked: &[Asked]) -> Vec<Vec<(u32, String)>> {
    let one = async |asked: &Asked| {
        tokio::time::sleep(Duration::from_millis(asked.after)).await;
        let (mut pieces, mut tokens) = (batcher.stream(asked.job(), client()).unwrap(), Vec::new());
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Prompt(scores) => {
                    assert_eq!(scores.len() + 1, asked.prompt.len());
                    tokens.push((0, format!("{scores:?}")));
                }
                Piece::Token(token) => tokens.push((token.id, format!("{:?}", token.scores))),
                Piece::End(end) => {
                    end.unwrap();
                    break;
                }
                Piece::Late(limit) => panic!("there is no time limit of {limit:?}"),
            }
            if asked.leaves {
                break;
            }
        }
        tokens
    };
    futures::future::join_all(asked.iter().map(one)).await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is pre-empted and when: each client receives every token once, with the bits that it gets alone, and nothing stays.
    #[test]
    fn no_pre_emption_changes_or_repeats_a_token(asked in asked(), cache in SMALL..3 * SMALL, batched in 6_usize..64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let alone = Room { running: 1, queue: 16, cache: None, prefixes: 0, batched: Some(1 << 20) };
            let alone = Batcher::start(generator(SMALL, 1), alone, metrics()).unwrap();
            let crowd = Room { running: 6, queue: 16, cache: Some(cache), prefixes: 64, batched: Some(batched) };
            let crowd = Batcher::start(generator(SMALL, 14), crowd, metrics()).unwrap();
            let expected = received(&alone, &asked).await;
            let found = received(&crowd, &asked).await;
            prop_assert_eq!(expected, found);
            let idle = tokio::time::timeout(Duration::from_secs(10), async {
                while crowd.active() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            prop_assert!(idle.await.is_ok(), "{} requests stay", crowd.active());
            Ok::<_, TestCaseError>(())
        })?;
    }
}

#[tokio::test]
async fn a_full_cache_pre_empts_the_latest_request_and_computes_it_again() {
    let counted = metrics();
    let room = Room { running: 4, queue: 4, cache: Some(2_000), prefixes: 0, batched: Some(32) };
    let batcher = Batcher::start(generator(2_000, 4), room, Arc::clone(&counted)).unwrap();
    let order = std::sync::Mutex::new(Vec::new());
    let payers: Vec<_> = (0..3).map(|_| client()).collect();
    let one = async |name: usize, job: Job| {
        let tokens = batcher.answer(job, &payers[name]).await.unwrap().tokens;
        order.lock().unwrap().push(name);
        tokens
    };
    // All three fit when they begin, and two of them when they end.
    let (first, second, third) = tokio::join!(one(0, job(5, 900)), one(1, job(6, 900)), one(2, job(7, 900)));
    assert_eq!(order.lock().unwrap()[2], 2, "the one that came last ends last");
    let preempted = preemptions(&counted);
    assert!((1.0..=3.0).contains(&preempted), "{preempted}");
    let whole = Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: None };
    let alone = Batcher::start(generator(2_000, 1), whole, metrics()).unwrap();
    for (token, found) in [(5, first), (6, second), (7, third)] {
        assert_eq!(alone.answer(job(token, 900), &client()).await.unwrap().tokens, found);
    }
    // With room for everything none is.
    let counted = metrics();
    let room = Room { cache: None, ..room };
    let batcher = Batcher::start(generator(2_000, 4), room, Arc::clone(&counted)).unwrap();
    let payer = client();
    let all = (0..4).map(|token| batcher.answer(job(5 + token, 700), &payer));
    futures::future::join_all(all).await;
    assert!(preemptions(&counted) < 1.0);
}

fn preemptions(metrics: &Metrics) -> f64 {
    let families = metrics.registry().gather();
    let found = families.iter().find(|family| family.name() == "codex_ml_inference_preemptions_total").unwrap();
    found.get_metric()[0].get_counter().get_value()
}

#[tokio::test]
async fn a_prompt_is_abandoned_between_two_chunks() {
    let batcher = in_chunks(ENDLESS);
    let payer = client();
    let abandoned = batcher.answer(long(ENDLESS - 1, 1), &payer);
    assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err(), "the prompt has only begun");
    let next = tokio::time::timeout(Duration::from_secs(10), batcher.answer(job(5, 3), &client())).await;
    assert_eq!(next.unwrap().unwrap().tokens.len(), 3);
    assert_eq!(batcher.active(), 0);
}
