//! Parameter groups: learning rate multipliers and weight decay of tensors whose names match a pattern. Pure.

use codex_configs::{Optimization, ParameterGroup};
use codex_engine::{Layout, Rates};

/// A group that matches no tensor.
#[derive(Debug, thiserror::Error)]
#[error(
    "training.parameter_groups: pattern {pattern:?} matches no tensor that is left after the earlier groups; tensor names look \
     like {example}, and * matches any characters"
)]
pub struct GroupError {
    /// Pattern of the group.
    pattern: String,
    /// Name of a tensor of the model.
    example: String,
}

/// Returns the rates of every tensor, in order. The first group whose pattern matches the name decides. Values that it omits,
/// and tensors without a group, have the defaults: the learning rate as it is, weight decay for matrices, none for vectors.
///
/// # Errors
/// When a group matches no tensor that is left.
pub(crate) fn tensor_rates(layout: &Layout, training: &Optimization) -> Result<Vec<Rates>, GroupError> {
    let groups = &training.parameter_groups;
    let mut rates = Rates::standard(layout, training.weight_decay);
    let mut used = vec![false; groups.len()];
    for (tensor, rates) in layout.tensors().iter().zip(&mut rates) {
        let Some(index) = groups.iter().position(|group| matches(&group.pattern, &tensor.name)) else { continue };
        let ParameterGroup { learning_rate_multiplier, weight_decay, .. } = &groups[index];
        *rates =
            Rates { rate: learning_rate_multiplier.unwrap_or(rates.rate), decay: weight_decay.unwrap_or(rates.decay) };
        used[index] = true;
    }
    match used.iter().position(|used| !used) {
        None => Ok(rates),
        Some(index) => {
            let example = layout.tensors().last().map(|tensor| tensor.name.clone()).unwrap_or_default();
            Err(GroupError { pattern: groups[index].pattern.clone(), example })
        }
    }
}

/// Whether `name` matches `pattern`, in which `*` matches any number of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::training::test_support::{both, resolved};

    fn layout() -> Layout {
        let names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        let shapes = [vec![4, 2], vec![2, 2], vec![2]];
        Layout::new(names.map(str::to_owned).into_iter().zip(shapes))
    }

    fn of(groups: &str) -> Result<Vec<(f64, f64)>, String> {
        let run = resolved(&[&format!("training.parameter_groups={groups}")], both());
        let rates = tensor_rates(&layout(), &run.spec().settings.training).map_err(|error| error.to_string())?;
        Ok(rates.into_iter().map(|rates| (rates.rate, rates.decay)).collect())
    }

    #[test]
    fn the_first_group_that_matches_decides() {
        assert_eq!(of("[]").unwrap(), [(1.0, 0.01), (1.0, 0.01), (1.0, 0.0)]);
        let groups =
            "[{pattern: '*.embed_tokens.*', weight_decay: 0}, {pattern: 'model.*', learning_rate_multiplier: 0.5}]";
        assert_eq!(of(groups).unwrap(), [(1.0, 0.0), (0.5, 0.01), (0.5, 0.0)]);
        let error = of("[{pattern: '*', weight_decay: 0}, {pattern: '*.norm.weight', weight_decay: 0.1}]").unwrap_err();
        assert!(error.contains("\"*.norm.weight\" matches no tensor that is left after the earlier groups"), "{error}");
        assert!(of("[{pattern: norm, weight_decay: 0}]").unwrap_err().contains("look like model.norm.weight"));
    }

    #[test]
    fn patterns() {
        let name = "model.layers.10.mlp.up_proj.weight";
        for pattern in ["*", name, "model.*", "*.weight", "*.mlp.*", "model.layers.1*.*_proj.weight", "**weight", "m*t"]
        {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in
            ["", "model", "*.norm.*", "layers.*", "*.weigh", "model.layers.10.mlp.up_proj.weight*x", "*proj*proj*"]
        {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }

    proptest! {
        /// A name with any pieces replaced by stars matches; a pattern without stars matches itself alone.
        #[test]
        fn a_name_with_pieces_left_out_matches(name in "[a-c.]{0,12}", cuts in prop::collection::vec(any::<bool>(), 12)) {
            let pattern: String = name.chars().zip(&cuts).map(|(c, cut)| if *cut { '*' } else { c }).collect();
            prop_assert!(matches(&pattern, &name));
            let longer = format!("{name}x");
            prop_assert!(!matches(&name, &longer));
        }
    }
}
