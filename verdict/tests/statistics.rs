//! How often gates pass by chance: a model whose true value is exactly at the limit is judged in many seeded trials.
//!
//! For an exact gate with confidence c, the share of trials that pass is at most 1 − c, and three standard errors of the trials more.
//! Bootstrapped gates are approximate: they may pass [`TOLERANCE`] more often. `make test-statistics` runs 10,000 trials of each kind
//! and prints the table of `docs/statistics.md`; `CODEX_STATISTICS_TRIALS` sets another number, and without it a few trials run.

#![allow(clippy::expect_used, reason = "these are tests")]

use std::{
    collections::BTreeMap,
    env,
    sync::{LazyLock, Mutex},
};

use codex_provenance::DataDigest;
use codex_verdict::{
    BleuCounts, Bound, Categorized, ClusteredValues, Comparison, CorpusItem, Decimal, Gate, GateSpec, Kind, Likelihood,
    Measurement, Metric, PairedDifferences, Resampling, Ring, Verdict, compare_corpus, compare_lowest, corpus,
    judge_one, lowest_mean,
    policy::{Candidate, Policy, PolicyKind, PolicyRule, PolicySpec, ReadBudget, RequiredEvaluation, divided},
};

/// How much more often than 1 − c a bootstrapped gate may pass by chance.
const TOLERANCE: f64 = 0.03;
/// Trials of a kind where nothing else is asked for.
const FEW: usize = 200;
/// Bootstraps are this much fewer than other trials: each draws 10,000 resamples.
const BOOTSTRAP_SHARE: usize = 10;
/// The name of the Evaluation that gates compare with.
const BEFORE: &str = "before";

fn trials() -> usize {
    let asked = env::var("CODEX_STATISTICS_TRIALS").ok();
    asked.map_or(FEW, |text| text.parse().expect("CODEX_STATISTICS_TRIALS is a number of trials"))
}

/// `SplitMix64`, as in the crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn is(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }
}

/// One line of the table, printed at once because tests run beside each other.
static PRINT: Mutex<()> = Mutex::new(());

/// Runs trials of a kind, each with its own seed, and checks how often `passes` says that a gate passed by chance.
fn at_most(
    kind: &str,
    trials: usize,
    confidence: f64,
    tolerance: f64,
    mut passes: impl FnMut(&mut Random) -> bool,
) -> f64 {
    let mut seeds = Random(kind.bytes().fold(0, |seed, byte| seed.wrapping_mul(31) + u64::from(byte)));
    let passed = (0..trials).filter(|_| passes(&mut Random(seeds.next()))).count();
    let found = passed as f64 / trials as f64;
    let rarity = 1.0 - confidence;
    let most = rarity + tolerance + 3.0 * (rarity * (1.0 - rarity) / trials as f64).sqrt();
    {
        let _turn = PRINT.lock();
        println!("| {kind} | {trials} | {confidence} | {found:.4} | {most:.4} |");
    }
    assert!(found <= most, "{kind}: {found} of the trials passed by chance, at most {most} may");
    found
}

fn exact(kind: &str, confidence: f64, passes: impl FnMut(&mut Random) -> bool) -> f64 {
    at_most(kind, trials(), confidence, 0.0, passes)
}

fn bootstrapped(kind: &str, confidence: f64, passes: impl FnMut(&mut Random) -> bool) -> f64 {
    at_most(kind, (trials() / BOOTSTRAP_SHARE).max(30), confidence, TOLERANCE, passes)
}

fn gate(metric: Metric, bound: Bound, confidence: f64) -> Gate {
    Gate { metric, bound, min_samples: None, confidence: Some(confidence), margin: None }
}

fn with(by: f64) -> Comparison {
    Comparison { evaluation: BEFORE.to_owned(), by }
}

fn judge(gate: &Gate, measurement: Measurement) -> bool {
    judge_one(gate, &BTreeMap::from([(gate.measurement(), measurement)])).verdict == Verdict::Passed
}

/// Judges shares. Equal counts are judged once, because the sentence about an undecided share is slow to compute.
struct Shares {
    gate: Gate,
    known: BTreeMap<(u64, u64), bool>,
}

impl Shares {
    fn of(bound: Bound, confidence: f64) -> Self {
        Self { gate: gate(Metric::ExactMatch, bound, confidence), known: BTreeMap::new() }
    }

    fn judge(&mut self, successes: u64, n: u64) -> bool {
        let gate = &self.gate;
        *self.known.entry((successes, n)).or_insert_with(|| judge(gate, Measurement::Share { successes, n }))
    }
}

fn count(random: &mut Random, n: u64, share: f64) -> u64 {
    (0..n).map(|_| u64::from(random.is(share))).sum()
}

fn mean(values: impl Iterator<Item = f64>) -> Measurement {
    let values: Vec<f64> = values.collect();
    Measurement::Mean {
        n: values.len() as u64,
        sum: Some(values.iter().sum()),
        sum_of_squares: Some(values.iter().map(|value| value * value).sum()),
    }
}

#[test]
fn shares_pass_by_chance_as_seldom_as_they_say() {
    for (confidence, n, limit) in [(0.95, 200, 0.9), (0.95, 1000, 0.95), (0.99, 60, 0.5), (0.9, 500, 0.02)] {
        let mut least = Shares::of(Bound::Min(limit), confidence);
        exact(&format!("share, min {limit}, {n} items"), confidence, |random| least.judge(count(random, n, limit), n));
        let mut most = Shares::of(Bound::Max(limit), confidence);
        exact(&format!("share, max {limit}, {n} items"), confidence, |random| most.judge(count(random, n, limit), n));
    }
}

/// A name, the true mean, and a draw.
type Distribution = (&'static str, f64, fn(&mut Random) -> f64);

const DISTRIBUTIONS: [Distribution; 5] = [
    ("uniform", 0.5, |random| random.unit()),
    // Beta distributions with one parameter 1: a power of a uniform number.
    ("beta(9, 1)", 0.9, |random| random.unit().powf(1.0 / 9.0)),
    ("beta(1/9, 1)", 0.1, |random| random.unit().powi(9)),
    ("two points 0.25 and 1", 0.85, |random| if random.is(0.8) { 1.0 } else { 0.25 }),
    ("rarely 0", 0.99, |random| if random.is(0.99) { 1.0 } else { 0.0 }),
];

#[test]
fn means_pass_by_chance_as_seldom_as_they_say() {
    for (name, limit, draw) in DISTRIBUTIONS {
        for (word, bound) in [("min", Bound::Min(limit)), ("max", Bound::Max(limit))] {
            let gate = gate(Metric::TokenF1, bound, 0.95);
            exact(&format!("mean, {word}, {name}, 300 items"), 0.95, |random| {
                judge(&gate, mean((0..300).map(|_| draw(random))))
            });
        }
    }
    let many = gate(Metric::TokenF1, Bound::Min(0.5), 0.95);
    exact("mean, min, uniform, 10000 items", 0.95, |random| judge(&many, mean((0..10_000).map(|_| random.unit()))));
    let gate = gate(Metric::WinRate, Bound::Min(0.55), 0.95);
    exact("win rate, min 0.55, 400 items", 0.95, |random| {
        let (mut wins, mut losses) = (0, 0);
        for _ in 0..400 {
            let place = random.unit();
            wins += u64::from(place < 0.3);
            losses += u64::from(place > 0.8);
        }
        judge(&gate, Measurement::Duel { wins, ties: 400 - wins - losses, losses })
    });
}

/// Pairs of a share: the model alone is right with the first probability, the reference alone with the second.
fn pairs(random: &mut Random, n: u64, win: f64, lose: f64) -> Measurement {
    let mut pairs = PairedDifferences::default();
    for _ in 0..n {
        let place = random.unit();
        let of = |holds: bool| if holds { 1.0 } else { 0.0 };
        pairs.add(of(place < win), of(place > 1.0 - lose));
    }
    pairs.measurement(Kind::Share).expect("pairs")
}

#[test]
fn comparisons_pass_by_chance_as_seldom_as_they_say() {
    for (word, bound, win, lose) in [
        ("betterThan by 0, McNemar", Bound::BetterThan(with(0.0)), 0.1, 0.1),
        ("betterThan by 0, McNemar, seldom different", Bound::BetterThan(with(0.0)), 0.01, 0.01),
        ("notWorseThan by 0, McNemar", Bound::NotWorseThan(with(0.0)), 0.3, 0.3),
        ("betterThan by 0.05, share", Bound::BetterThan(with(0.05)), 0.1, 0.05),
        ("notWorseThan by 0.05, share", Bound::NotWorseThan(with(0.05)), 0.02, 0.07),
    ] {
        let gate = gate(Metric::ExactMatch, bound, 0.95);
        exact(&format!("{word}, 500 pairs"), 0.95, |random| judge(&gate, pairs(random, 500, win, lose)));
    }
    for (word, bound, shift) in [
        ("betterThan by 0, mean", Bound::BetterThan(with(0.0)), 0.0),
        ("betterThan by 0.05, mean", Bound::BetterThan(with(0.05)), 0.05),
        ("notWorseThan by 0.05, mean", Bound::NotWorseThan(with(0.05)), -0.05),
    ] {
        let gate = gate(Metric::TokenF1, bound, 0.95);
        exact(&format!("{word}, 500 pairs"), 0.95, |random| {
            let mut pairs = PairedDifferences::default();
            for _ in 0..500 {
                let difficulty = 0.1 + 0.7 * random.unit();
                let (own, other) = (0.1 * random.unit(), 0.1 * random.unit());
                pairs.add(difficulty + own + shift, difficulty + other);
            }
            judge(&gate, pairs.measurement(Kind::Mean).expect("pairs"))
        });
    }
}

/// Draws 200 items of each category: 1 with the category's share, else 0.
fn categorized(random: &mut Random, categories: &[(&'static str, f64)]) -> Vec<Categorized<'static>> {
    let items = categories.iter().flat_map(|category| std::iter::repeat_n(*category, 200));
    let one = |(category, share)| {
        let value = if random.is(share) { 1.0 } else { 0.0 };
        Categorized { category, cluster: None, value }
    };
    items.map(one).collect()
}

#[test]
fn lowest_means_pass_by_chance_as_seldom_as_they_say() {
    let alike = [("a", 0.9), ("b", 0.9), ("c", 0.9), ("d", 0.9)];
    let one = [("a", 0.9), ("b", 1.0), ("c", 1.0)];
    for (which, categories) in [("four alike", &alike[..]), ("one of three", &one[..])] {
        for (word, bound) in [("min", Bound::Min(0.9)), ("max", Bound::Max(0.9))] {
            let gate = gate(Metric::LowestTraceCoverage, bound, 0.95);
            exact(&format!("lowest mean, {word} 0.9, {which}"), 0.95, |random| {
                judge(&gate, lowest_mean(categorized(random, categories), 0.95).expect("items"))
            });
        }
        let gate = gate(Metric::LowestTraceCoverage, Bound::BetterThan(with(0.0)), 0.95);
        exact(&format!("lowest mean, betterThan by 0, {which}"), 0.95, |random| {
            let own = categorized(random, categories);
            let other = categorized(random, categories);
            let pairs = own.into_iter().zip(other.into_iter().map(|it| it.value));
            judge(&gate, compare_lowest(pairs, 0.95).expect("pairs"))
        });
    }
}

/// All gates of an evaluation must pass, so that no correction is needed: together they pass no more often than each alone.
#[test]
fn gates_together_pass_by_chance_no_more_often() {
    let mean_gate = gate(Metric::TokenF1, Bound::Min(0.5), 0.95);
    for (word, share, certain) in
        [("all at their limits", 0.9, 0.0), ("one at its limit, the others far above", 0.9, 0.1)]
    {
        let mut least = Shares::of(Bound::Min(share), 0.95);
        let mut other = Shares::of(Bound::Min(share - certain), 0.95);
        exact(&format!("three gates together, {word}"), 0.95, |random| {
            let (mut first, mut second, mut values) = (0, 0, Vec::new());
            for _ in 0..400 {
                // One difficulty for all metrics of an item: they depend on each other.
                let place = random.unit();
                first += u64::from(place < share);
                second += u64::from(place < share + certain / 2.0);
                values.push(((1.0 - place) + certain).min(1.0));
            }
            least.judge(first, 400) && other.judge(second, 400) && judge(&mean_gate, mean(values.into_iter()))
        });
    }
}

const BUDGET: u32 = 5;

/// A policy with one required evaluation, whose problems may be read so often.
fn policy() -> Policy {
    let decimal = |text: &str| Some(Decimal(text.to_owned()));
    let gate = GateSpec {
        metric: "exact_match".to_owned(),
        min: decimal("0.9"),
        confidence: decimal("0.95"),
        ..GateSpec::default()
    };
    let required = RequiredEvaluation {
        name: "held-out".to_owned(),
        preset: None,
        problems_sha256: None,
        gates: vec![gate],
        reads: Some(ReadBudget { budget: BUDGET }),
    };
    let rule = PolicyRule { ring: Ring::Main, required_evaluations: vec![required], ..empty_rule() };
    let spec = PolicySpec { rules: vec![rule], ..PolicySpec::default() };
    Policy { kind: PolicyKind::ClusterPromotionPolicy, name: "guard".to_owned(), uid: String::new(), spec }
}

fn empty_rule() -> PolicyRule {
    serde_json::from_value(serde_json::json!({ "ring": "main" })).expect("a rule")
}

/// Whoever judges several models and promotes one that passes: the probability that any of the reads passes is bounded.
#[test]
fn reads_of_one_set_together_pass_by_chance_as_seldom_as_one() {
    let policies = [policy()];
    let spec = policies[0].spec.rules[0].required_evaluations[0].gates.clone();
    let mut known: BTreeMap<u64, bool> = BTreeMap::new();
    let mut promotes = |right: u64, read: u64| {
        *known.entry(right).or_insert_with(|| {
            let data: BTreeMap<String, DataDigest> = BTreeMap::new();
            let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes: right, n: 400 })]);
            let candidate = Candidate::new("lite".to_owned(), "cot-lite".to_owned(), &spec, &data);
            !divided(&policies, Ring::Main, &candidate.measured(Some(read), metrics)).is_empty()
        })
    };
    for (word, shared) in [("independent models", 0.0), ("models that fail at the same problems", 0.8)] {
        exact(&format!("any of {BUDGET} reads, {word}"), 0.95, |random| {
            let difficulties: Vec<f64> = (0..400).map(|_| random.unit()).collect();
            (1..=u64::from(BUDGET)).any(|read| {
                let right = difficulties.iter().filter(|difficulty| {
                    // Each is right with probability 0.9, by the shared difficulty or by itself.
                    let place = if random.is(shared) { **difficulty } else { random.unit() };
                    place < 0.9
                });
                promotes(right.count() as u64, read)
            })
        });
    }
    let mut undivided = Shares::of(Bound::Min(0.9), 0.95);
    let mut random = Random(7);
    let any = (0..2000).filter(|_| (0..BUDGET).any(|_| undivided.judge(count(&mut random, 400, 0.9), 400))).count();
    assert!(any > 200, "without the division more than 10 % of the trials pass: {any} of 2000");
}

/// Items of clusters, which depend on each other completely (`within` is 0) or in part. `draw` gives the share of a cluster.
fn clusters(random: &mut Random, draw: impl Fn(&mut Random) -> f64, within: f64) -> Vec<(usize, f64)> {
    let mut items = Vec::new();
    for cluster in 0..CLUSTERS {
        let share = draw(random);
        for _ in 0..=random.below(2 * EACH - 1) {
            // With 0 all items of a cluster are equal, with 1 each is right with the share of its cluster.
            let place = if random.is(within) { random.unit() } else { 0.5 };
            items.push((cluster, if place < share { 1.0 } else { 0.0 }));
        }
    }
    items
}

const CLUSTERS: usize = 60;
/// Mean number of items of a cluster.
const EACH: usize = 20;

fn name(cluster: usize) -> &'static str {
    static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| (0..CLUSTERS).map(|it| it.to_string()).collect());
    &NAMES[cluster]
}

fn by_cluster(items: &[(usize, f64)]) -> ClusteredValues<'static> {
    let mut values = ClusteredValues::default();
    for (cluster, value) in items {
        values.add(name(*cluster), *value);
    }
    values
}

/// Problems that share a story are right or wrong together, so that items that are counted on their own prove far too much.
#[test]
fn clusters_pass_by_chance_as_seldom_as_they_say() {
    let all_or_nothing = |random: &mut Random| if random.is(0.7) { 1.0 } else { 0.0 };
    let of_clusters = gate(Metric::ExactMatch, Bound::Min(0.7), 0.95);
    exact("clusters, min 0.7, all items of a cluster equal", 0.95, |random| {
        judge(&of_clusters, by_cluster(&clusters(random, all_or_nothing, 0.0)).mean().expect("items"))
    });
    let most = gate(Metric::ExactMatch, Bound::Max(0.7), 0.95);
    exact("clusters, max 0.7, all items of a cluster equal", 0.95, |random| {
        judge(&most, by_cluster(&clusters(random, all_or_nothing, 0.0)).mean().expect("items"))
    });
    let at_half = gate(Metric::ExactMatch, Bound::Min(0.5), 0.95);
    exact("clusters, min 0.5, items alike within a cluster", 0.95, |random| {
        judge(&at_half, by_cluster(&clusters(random, Random::unit, 1.0)).mean().expect("items"))
    });
    let better = gate(Metric::ExactMatch, Bound::BetterThan(with(0.0)), 0.95);
    exact("clusters, betterThan by 0, all pairs of a cluster equal", 0.95, |random| {
        let mut differences = ClusteredValues::default();
        for cluster in 0..CLUSTERS {
            let place = random.unit();
            let difference = if place < 0.2 {
                1.0
            } else if place < 0.4 {
                -1.0
            } else {
                0.0
            };
            for _ in 0..EACH {
                differences.add(name(cluster), difference);
            }
        }
        judge(&better, differences.difference().expect("pairs"))
    });
    let mut naive = Shares::of(Bound::Min(0.7), 0.95);
    let mut random = Random(3);
    let passed = (0..FEW).filter(|_| {
        let items = clusters(&mut random, all_or_nothing, 0.0);
        let right = items.iter().filter(|(_, value)| *value > 0.5).count();
        naive.judge(right as u64, items.len() as u64)
    });
    let passed = passed.count();
    assert!(
        passed * 5 > FEW,
        "items of stories on their own pass by chance far more often than 5 %: {passed} of {FEW}"
    );
}

/// A population of items, and what the metric is over all of it.
struct Population<T> {
    items: Vec<T>,
    value: f64,
}

impl<T: CorpusItem + Copy> Population<T> {
    fn of(items: Vec<T>) -> Self {
        let rows: Vec<Vec<f64>> = items.iter().map(CorpusItem::addends).collect();
        let sums: Vec<f64> = (0..rows[0].len()).map(|at| rows.iter().map(|row| row[at]).sum()).collect();
        Self { value: T::value(&sums), items }
    }

    fn draw(&self, random: &mut Random, n: usize) -> Vec<T> {
        (0..n).map(|_| self.items[random.below(self.items.len())]).collect()
    }
}

fn likelihoods(random: &mut Random, n: usize) -> Vec<Likelihood> {
    let item = |random: &mut Random| {
        let tokens = 5 + random.below(60) as u64;
        // Skewed, as the losses of texts are.
        Likelihood { log_probability: -(tokens as f64) * (0.3 - 0.8 * (1.0 - random.unit()).ln()), tokens }
    };
    (0..n).map(|_| item(random)).collect()
}

fn bleu_counts(random: &mut Random, n: usize) -> Vec<BleuCounts> {
    let item = |random: &mut Random| {
        let (answer, reference) = (5 + random.below(25) as u32, 5 + random.below(25) as u32);
        let right = random.unit() * f64::from(answer.min(reference));
        let matches = [0, 1, 2, 3].map(|order| (right as u32).saturating_sub(order));
        BleuCounts { matches, totals: [0, 1, 2, 3].map(|order| answer - order), answer, reference }
    };
    (0..n).map(|_| item(random)).collect()
}

/// Items of a bootstrap: few, where the approximation is worst, but no fewer than decide.
const FEWEST: usize = 60;

#[test]
fn bootstrapped_gates_pass_by_chance_about_as_seldom_as_they_say() {
    let resampling = |random: &mut Random| Resampling { seed: random.next(), confidence: 0.95 };
    let bleu = Population::of(bleu_counts(&mut Random(1), 4000));
    let perplexity = Population::of(likelihoods(&mut Random(2), 4000));
    for (word, bound) in [("min", Bound::Min(bleu.value)), ("max", Bound::Max(bleu.value))] {
        let gate = gate(Metric::Bleu, bound, 0.95);
        bootstrapped(&format!("bleu, {word}, {FEWEST} items"), 0.95, |random| {
            judge(&gate, corpus(&bleu.draw(random, FEWEST), None, resampling(random)).expect("finite"))
        });
    }
    for (word, bound) in [("min", Bound::Min(perplexity.value)), ("max", Bound::Max(perplexity.value))] {
        let gate = gate(Metric::Perplexity, bound, 0.95);
        bootstrapped(&format!("perplexity, {word}, {FEWEST} items"), 0.95, |random| {
            judge(&gate, corpus(&perplexity.draw(random, FEWEST), None, resampling(random)).expect("finite"))
        });
    }
    // Both models answer from the same population, so that neither is better.
    let better = gate(Metric::Perplexity, Bound::BetterThan(with(0.0)), 0.95);
    bootstrapped(&format!("perplexity, betterThan by 0, {FEWEST} pairs"), 0.95, |random| {
        let own = perplexity.draw(random, FEWEST);
        let per_token = |it: &Likelihood| it.log_probability / it.tokens as f64;
        let other: Vec<Likelihood> = own
            .iter()
            .zip(perplexity.draw(random, FEWEST))
            .map(|(own, other)| Likelihood {
                log_probability: per_token(&other) * own.tokens as f64,
                tokens: own.tokens,
            })
            .collect();
        judge(&better, compare_corpus(&own, &other, None, resampling(random)).expect("finite"))
    });
}

#[test]
fn bootstrapped_gates_draw_whole_clusters() {
    let perplexity = Population::of(likelihoods(&mut Random(2), 4000));
    let gate = gate(Metric::Perplexity, Bound::Max(perplexity.value), 0.95);
    let draw = |random: &mut Random| {
        // Every cluster repeats one item of the population.
        let drawn = perplexity.draw(random, CLUSTERS);
        let items: Vec<Likelihood> = drawn.iter().flat_map(|item| [*item; EACH]).collect();
        let names: Vec<&str> = (0..CLUSTERS * EACH).map(|item| name(item / EACH)).collect();
        (items, names)
    };
    bootstrapped(&format!("perplexity, max, {CLUSTERS} clusters"), 0.95, |random| {
        let (items, names) = draw(random);
        let resampling = Resampling { seed: random.next(), confidence: 0.95 };
        judge(&gate, corpus(&items, Some(&names), resampling).expect("finite"))
    });
    let mut random = Random(5);
    let passed = (0..30).filter(|_| {
        let (items, _) = draw(&mut random);
        let resampling = Resampling { seed: random.next(), confidence: 0.95 };
        judge(&gate, corpus(&items, None, resampling).expect("finite"))
    });
    let passed = passed.count();
    assert!(passed > 6, "items of clusters on their own pass by chance far more often than 5 %: {passed} of 30");
}
