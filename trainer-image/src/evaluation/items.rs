//! The outcomes of single problems, and the measurements that they give. Pure.

use std::collections::BTreeMap;

use codex_verdict::{
    BleuCounts, Categorized, ClusteredValues, CorpusItem as _, Likelihood, Measurement, Metric, PairedDifferences,
    Resampling, compare_corpus, compare_lowest, corpus, lowest_mean, paired_name,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The outcome of a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Item {
    /// The problem's line in its file.
    pub(crate) line: usize,
    /// The problem's cluster; absent if problems have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// The problem's category; absent if `lowest_trace_coverage` was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) category: Option<String>,
    /// Number of tokens of the reference response; absent if `token_accuracy` was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<u64>,
    /// The value of each metric, from 0 to 1. A metric that the problem does not allow is absent.
    pub(crate) values: BTreeMap<String, f64>,
    /// What the problem adds to `bleu`; absent if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bleu: Option<BleuCounts>,
    /// What the problem adds to `perplexity`; absent if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<Likelihood>,
}

impl Item {
    /// Returns what is impossible about the outcome, as a sentence.
    pub(crate) fn impossible(&self) -> Option<String> {
        let Self { line, values, bleu, perplexity, .. } = self;
        if let Some((name, value)) = values.iter().find(|(_, value)| !(0.0..=1.0).contains(*value)) {
            return Some(format!("the {name} of the problem in line {line} is {value}, which is not from 0 to 1"));
        }
        let counts = bleu.as_ref().and_then(|it| Some((Metric::Bleu, it.impossible()?)));
        let likelihood = perplexity.as_ref().and_then(|it| Some((Metric::Perplexity, it.impossible()?)));
        let (metric, why) = counts.or(likelihood)?;
        Some(format!("the {metric} of the problem in line {line} {why}"))
    }

    /// Returns its trace coverage with its category; `None` if it has none of either.
    fn categorized(&self) -> Option<Categorized<'_>> {
        let value = *self.values.get(Metric::TraceCoverage.name())?;
        Some(Categorized { category: self.category.as_deref()?, cluster: self.cluster.as_deref(), value })
    }
}

/// Measures every metric that the items allow.
pub(crate) fn measure(items: &[Item], resampling: Resampling) -> BTreeMap<String, Measurement> {
    let measured = |metric: &Metric| Some((metric.to_string(), one(items, *metric, resampling)?));
    Metric::ALL.iter().filter_map(measured).collect()
}

/// Returns the cluster of every item; `None` if items have none.
fn clusters(items: &[Item]) -> Option<Vec<&str>> {
    items.iter().map(|item| item.cluster.as_deref()).collect()
}

fn one(items: &[Item], metric: Metric, resampling: Resampling) -> Option<Measurement> {
    let clusters = clusters(items);
    let named = clusters.as_deref();
    if let Some(clusters) = named.filter(|_| !metric.is_of_corpus()) {
        let mut values = ClusteredValues::default();
        for (item, cluster) in items.iter().zip(clusters) {
            if let Some(value) = item.values.get(metric.name()) {
                values.add(cluster, *value);
            }
        }
        return values.mean();
    }
    let values: Vec<f64> = items.iter().filter_map(|item| item.values.get(metric.name()).copied()).collect();
    let count = |wanted: f64| values.iter().filter(|value| (**value - wanted).abs() < f64::EPSILON).count() as u64;
    let n = values.len() as u64;
    match metric {
        Metric::Bleu => corpus(&all(items, |item| item.bleu)?, named, resampling),
        Metric::Perplexity => corpus(&all(items, |item| item.perplexity)?, named, resampling),
        Metric::LowestTraceCoverage => lowest_mean(items.iter().filter_map(Item::categorized), resampling.confidence),
        _ if n == 0 => None,
        Metric::ExactMatch | Metric::MajAtK => Some(Measurement::Share { successes: count(1.0), n }),
        Metric::WinRate => {
            let (wins, losses) = (count(1.0), count(0.0));
            Some(Measurement::Duel { wins, ties: n - wins - losses, losses })
        }
        Metric::TraceCoverage
        | Metric::TokenF1
        | Metric::RougeL
        | Metric::Distinct1
        | Metric::Distinct2
        | Metric::TokenAccuracy
        | Metric::PassAtK
        | Metric::Plugin => Some(Measurement::Mean {
            n,
            sum: Some(values.iter().sum()),
            sum_of_squares: Some(values.iter().map(|value| value * value).sum()),
        }),
    }
}

/// Returns what every problem adds to a corpus metric; `None` if one lacks it.
fn all<T>(items: &[Item], of: impl Fn(&Item) -> Option<T>) -> Option<Vec<T>> {
    items.iter().map(of).collect()
}

/// Compares the metrics for which `compared` holds, and which both sides measured, with a reference called `name`. Items stand in the
/// same order.
pub(crate) fn compare(
    name: &str,
    own: &[Item],
    reference: &[Item],
    compared: impl Fn(&Metric) -> bool,
    resampling: Resampling,
) -> BTreeMap<String, Measurement> {
    let clusters = clusters(own);
    let named = clusters.as_deref();
    let pairs = |metric: &Metric| {
        let measurement = match metric {
            Metric::Bleu => {
                compare_corpus(&all(own, |item| item.bleu)?, &all(reference, |item| item.bleu)?, named, resampling)?
            }
            Metric::Perplexity => compare_corpus(
                &all(own, |item| item.perplexity)?,
                &all(reference, |item| item.perplexity)?,
                named,
                resampling,
            )?,
            Metric::LowestTraceCoverage => {
                let both = own.iter().zip(reference);
                let both = both.filter_map(|(own, other)| Some((own.categorized()?, other.categorized()?.value)));
                compare_lowest(both, resampling.confidence)?
            }
            // Other tokens are other pieces of text.
            Metric::TokenAccuracy if own.iter().zip(reference).any(|(own, other)| own.tokens != other.tokens) => {
                return None;
            }
            _ => {
                let value = |item: &Item| item.values.get(metric.name()).copied();
                let both = own.iter().zip(reference).enumerate();
                let both = both.filter_map(|(index, (own, other))| Some((index, value(own)?, value(other)?)));
                if let Some(clusters) = named {
                    let mut differences = ClusteredValues::default();
                    both.for_each(|(index, own, other)| differences.add(clusters[index], own - other));
                    differences.difference()?
                } else {
                    let mut pairs = PairedDifferences::default();
                    both.for_each(|(_, own, other)| pairs.add(own, other));
                    pairs.measurement(metric.kind())?
                }
            }
        };
        Some((paired_name(*metric, name), measurement))
    };
    Metric::ALL.iter().filter(|metric| compared(metric)).filter_map(pairs).collect()
}

/// Checks that `stated` measurements are those that outcomes give (`found`), up to rounding.
///
/// # Errors
/// One sentence about the first difference, as it continues after the name of what states them.
pub(crate) fn confirm(
    stated: &BTreeMap<String, Measurement>,
    found: &BTreeMap<String, Measurement>,
) -> Result<(), String> {
    if let Some(name) = stated.keys().find(|name| !name.contains('@') && !found.contains_key(*name)) {
        return Err(format!("states {name}, which its outcomes do not give"));
    }
    for (name, found) in found {
        let Some(stated) = stated.get(name) else {
            return Err(format!("does not state {name}, which its outcomes give"));
        };
        if !is_near(stated, found) {
            let shown = |it: &Measurement| serde_json::to_string(it).unwrap_or_default();
            return Err(format!("states {} for {name}, but its outcomes give {}", shown(stated), shown(found)));
        }
    }
    Ok(())
}

fn is_near(stated: &Measurement, found: &Measurement) -> bool {
    let near = |one: Option<f64>, other: Option<f64>| match (one, other) {
        (Some(one), Some(other)) => (one - other).abs() <= 1e-6 * one.abs().max(other.abs()).max(1.0),
        _ => false,
    };
    match (*stated, *found) {
        (
            Measurement::Mean { n, sum, sum_of_squares } | Measurement::Difference { n, sum, sum_of_squares },
            Measurement::Mean { n: items, sum: total, sum_of_squares: squares }
            | Measurement::Difference { n: items, sum: total, sum_of_squares: squares },
        ) => stated.kind() == found.kind() && n == items && near(sum, total) && near(sum_of_squares, squares),
        (
            Measurement::ClusterMean { n, items, sum, sum_of_squares }
            | Measurement::ClusterDifference { n, items, sum, sum_of_squares },
            Measurement::ClusterMean { n: clusters, items: counted, sum: total, sum_of_squares: squares }
            | Measurement::ClusterDifference { n: clusters, items: counted, sum: total, sum_of_squares: squares },
        ) => {
            let same = stated.kind() == found.kind() && n == clusters && items == counted;
            same && near(sum, total) && near(sum_of_squares, squares)
        }
        (
            Measurement::ClusterEstimate { value, lower, upper, n, items, confidence, method },
            Measurement::ClusterEstimate {
                value: computed,
                lower: least,
                upper: most,
                n: clusters,
                items: counted,
                confidence: level,
                method: by,
            },
        ) => {
            let same = n == clusters && items == counted && method == by && near(confidence, level);
            same && near(value, computed) && near(lower, least) && near(upper, most)
        }
        (
            Measurement::Estimate { value, lower, upper, n, confidence, method },
            Measurement::Estimate {
                value: computed,
                lower: least,
                upper: most,
                n: items,
                confidence: level,
                method: by,
            },
        ) => {
            let same = n == items && method == by && near(confidence, level);
            same && near(value, computed) && near(lower, least) && near(upper, most)
        }
        _ => stated == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: Resampling = Resampling { seed: 1, confidence: 0.95 };

    fn item(line: usize) -> Item {
        let values = [("exact_match", f64::from(u8::from(!line.is_multiple_of(3)))), ("token_f1", 1.0 / line as f64)];
        let likelihood = Likelihood { log_probability: -1.0 - (line % 5) as f64, tokens: 3 };
        Item {
            line,
            cluster: None,
            category: None,
            tokens: None,
            values: values.map(|(name, value)| (name.to_owned(), value)).into(),
            bleu: Some(super::super::bleu::counts("the cat sat on the mat", "the cat is on the mat")),
            perplexity: Some(likelihood),
        }
    }

    #[test]
    fn items_give_every_measurement() {
        let items: Vec<Item> = (1..=40).map(item).collect();
        let found = measure(&items, DRAWS);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["bleu", "exact_match", "perplexity", "token_f1"]);
        assert_eq!(found["exact_match"], Measurement::Share { successes: 27, n: 40 });
        confirm(&found, &found).unwrap();
        let pairs = compare("before", &items, &items, |_| true, DRAWS);
        assert_eq!(pairs.keys().filter(|name| name.ends_with("@before")).count(), 4);
        let mut one_less = items;
        one_less[7].bleu = None;
        assert!(!measure(&one_less, DRAWS).contains_key("bleu"), "a corpus metric is of all problems");
    }

    #[test]
    fn clusters_of_items_are_measured_as_one() {
        let items: Vec<Item> =
            (1..=60).map(|line| Item { cluster: Some((line / 6).to_string()), ..item(line) }).collect();
        let found = measure(&items, DRAWS);
        let kinds: Vec<&str> = found.values().map(|it| it.kind().name()).collect();
        assert_eq!(kinds, ["clusterEstimate", "clusterMean", "clusterEstimate", "clusterMean"]);
        // Lines 1 to 5, then 6 to 11, …, and 60 alone: 4/5, nine of 4/6, and 0.
        let Measurement::ClusterMean { n: 11, items: 60, sum: Some(sum), .. } = found["exact_match"] else {
            panic!("{found:?}")
        };
        assert!((sum - (0.8 + 9.0 * 4.0 / 6.0)).abs() < 1e-9, "{sum}");
        confirm(&found, &found).unwrap();
        let pairs = compare("before", &items, &items, |_| true, DRAWS);
        let kinds: Vec<&str> = pairs.values().map(|it| it.kind().name()).collect();
        assert_eq!(kinds, ["clusterEstimate", "clusterDifference", "clusterEstimate", "clusterDifference"]);
        confirm(&pairs, &pairs).unwrap();
        let alone: Vec<Item> = items.into_iter().map(|item| Item { cluster: None, ..item }).collect();
        assert!(confirm(&found, &measure(&alone, DRAWS)).unwrap_err().contains("\"clusterEstimate\""), "another file");
    }

    #[test]
    fn the_lowest_coverage_of_categories_is_measured_where_items_name_them() {
        let covered = |line: usize, value: f64| {
            let category = Some(if line.is_multiple_of(4) { "division" } else { "addition" }.to_owned());
            let values = [("trace_coverage".to_owned(), value)].into();
            Item { category, values, bleu: None, perplexity: None, ..item(line) }
        };
        // 100 divisions, of which 80 are covered, and 300 additions, all covered.
        let own: Vec<Item> =
            (1..=400).map(|line| covered(line, f64::from(u8::from(!line.is_multiple_of(20))))).collect();
        let found = measure(&own, DRAWS);
        let value = |measured: &Measurement| {
            let Measurement::Estimate { value: Some(value), n, .. } = measured else { panic!("{measured:?}") };
            (*value, *n)
        };
        assert_eq!(value(&found["lowest_trace_coverage"]), (0.8, 100));
        confirm(&found, &found).unwrap();
        let reference: Vec<Item> = (1..=400).map(|line| covered(line, 0.5)).collect();
        let pairs = compare("before", &own, &reference, |_| true, DRAWS);
        let (gain, n) = value(&pairs["lowest_trace_coverage@before"]);
        assert!((gain - 0.3).abs() < 1e-12 && n == 100, "{gain} over {n}");
        let unnamed: Vec<Item> = reference.into_iter().map(|item| Item { category: None, ..item }).collect();
        assert!(!measure(&unnamed, DRAWS).contains_key("lowest_trace_coverage"));
        assert!(!compare("before", &own, &unnamed, |_| true, DRAWS).contains_key("lowest_trace_coverage@before"));
    }

    #[test]
    fn token_accuracies_are_compared_over_the_same_tokens_alone() {
        let items = |tokens: u64| -> Vec<Item> {
            let values: BTreeMap<String, f64> = [("token_accuracy".to_owned(), 0.5)].into();
            let tokens = Some(tokens);
            let one = |line| Item { tokens, values: values.clone(), bleu: None, perplexity: None, ..item(line) };
            (1..=40).map(one).collect()
        };
        let compared = |other: &[Item]| compare("before", &items(6), other, |_| true, DRAWS);
        assert!(compared(&items(6)).contains_key("token_accuracy@before"));
        assert!(compared(&items(4)).is_empty());
    }

    #[test]
    fn measurements_that_the_outcomes_do_not_give_are_named() {
        let items: Vec<Item> = (1..=40).map(item).collect();
        let found = measure(&items, DRAWS);
        let told = |edit: &dyn Fn(&mut BTreeMap<String, Measurement>)| {
            let mut stated = found.clone();
            edit(&mut stated);
            confirm(&stated, &found).unwrap_err()
        };
        let told_share =
            told(&|it| _ = it.insert("exact_match".to_owned(), Measurement::Share { successes: 40, n: 40 }));
        assert_eq!(
            told_share,
            r#"states {"kind":"share","successes":40,"n":40} for exact_match, but its outcomes give {"kind":"share","successes":27,"n":40}"#
        );
        assert_eq!(told(&|it| _ = it.remove("bleu")), "does not state bleu, which its outcomes give");
        let more = told(&|it| _ = it.insert("trace_coverage".to_owned(), it["token_f1"]));
        assert_eq!(more, "states trace_coverage, which its outcomes do not give");
        let narrower = told(&|it| {
            if let Some(Measurement::Estimate { lower, value, .. }) = it.get_mut("perplexity") {
                *lower = *value;
            }
        });
        assert!(
            narrower.starts_with("states {\"kind\":\"estimate\"") && narrower.contains(" for perplexity"),
            "{narrower}"
        );
    }

    #[test]
    fn impossible_outcomes_are_named() {
        let with = |edit: &dyn Fn(&mut Item)| {
            let mut changed = item(4);
            edit(&mut changed);
            changed.impossible()
        };
        assert_eq!(with(&|_| ()), None);
        assert_eq!(
            with(&|it| _ = it.values.insert("token_f1".to_owned(), 1.5)).unwrap(),
            "the token_f1 of the problem in line 4 is 1.5, which is not from 0 to 1"
        );
        let likely = Some(Likelihood { log_probability: 1.0, tokens: 3 });
        assert_eq!(
            with(&|it| it.perplexity = likely).unwrap(),
            "the perplexity of the problem in line 4 needs a log-probability of at most 0 and at least one token"
        );
    }
}
