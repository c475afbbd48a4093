//! The heads that read what is captured of a model, and how many traces there were. They are trained beside the model and change
//! nothing of it. Pure.

use codex_configs::{ReasoningSettings, TraceMode, TrainingSettings};
use sha2::Digest as _;

use super::{
    probe::{Probe, ProbeShape},
    snapshot::{Column, Columns},
};
use crate::artifacts::reasoning::{self, ToolDecision, TraceRow};

const PROGRESS: &str = "traces/progress";
const HEAD: &str = "traces/head";
const TOOLS: &str = "traces/tools";

/// What is captured of a model after a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observation {
    /// The numbers that the head reads.
    pub(crate) embedding: Vec<f32>,
    /// The numbers that the tool adapter reads; empty without one.
    pub(crate) pooled: Vec<f32>,
    /// The tokens that the model learned of the record, which the head learns to expect.
    pub(crate) tokens: Vec<u32>,
    /// The tool that the record calls.
    pub(crate) called: Option<String>,
}

/// The heads of a run that captures traces.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TraceHead {
    /// The source of the traces that the heads were trained on.
    mode: TraceMode,
    head: Probe,
    tools: Option<Probe>,
    /// The epoch of the latest step.
    epoch: u64,
    /// Traces of this epoch.
    captured: u64,
    /// Traces of the run.
    total: u64,
}

/// Returns a seed that is a hash of these numbers, for this purpose, so that a resumed run draws the same.
fn seed_of(purpose: &[u8], numbers: [u64; 2]) -> u64 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"codex traces 1\0");
    hasher.update(purpose);
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
    hasher.finalize().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// Returns the numbers with a mean square of 1; `None` if one is not finite.
fn normalised(numbers: &[f32]) -> Option<Vec<f64>> {
    let squares: f64 = numbers.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
    let scale = (squares / numbers.len().max(1) as f64).sqrt() + 1e-12;
    squares.is_finite().then(|| numbers.iter().map(|number| f64::from(*number) / scale).collect())
}

fn mode_number(mode: TraceMode) -> u64 {
    match mode {
        TraceMode::Disabled => 0,
        TraceMode::Weights => 1,
        TraceMode::Activations => 2,
    }
}

impl TraceHead {
    /// Returns the heads of a run: `before`, unless they are of other settings, or new ones; `None` if nothing is captured. The head
    /// reads `inputs` numbers, and the tool adapter `width`.
    pub(super) fn begin(
        before: Option<Self>,
        settings: &TrainingSettings,
        seed: u64,
        (inputs, width): (usize, usize),
    ) -> Option<Self> {
        let mode = settings.trace_mode();
        let ReasoningSettings { head, tool_adapter, .. } = &settings.training.reasoning;
        if mode == TraceMode::Disabled {
            return None;
        }
        let shape = ProbeShape { inputs, hidden: head.projection_size, outputs: head.trace_vocab_size };
        let of_tools =
            ProbeShape { inputs: width, hidden: tool_adapter.hidden_size, outputs: tool_adapter.tools.len() + 1 };
        let tools = tool_adapter.enabled.then_some(of_tools);
        let fits = |known: &Self| {
            known.mode == mode && known.head.shape() == shape && known.tools.as_ref().map(Probe::shape) == tools
        };
        Some(before.filter(fits).unwrap_or_else(|| Self {
            mode,
            head: Probe::new(shape, seed_of(b"head", [seed, 0])),
            tools: tools.map(|shape| Probe::new(shape, seed_of(b"tools", [seed, 0]))),
            epoch: 0,
            captured: 0,
            total: 0,
        }))
    }

    /// Returns the number of traces of the run.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the numbers that the head reads.
    pub(crate) fn inputs(&self) -> usize {
        self.head.shape().inputs
    }

    /// Reads what was captured after `step` steps, in this epoch, and learns from it. Returns the trace, unless it is dropped.
    pub(crate) fn observe(
        &mut self,
        settings: &ReasoningSettings,
        (seed, epoch, step): (u64, u64, u64),
        observed: &Observation,
    ) -> Option<TraceRow> {
        if self.epoch != epoch {
            (self.epoch, self.captured) = (epoch, 0);
        }
        let ReasoningSettings { objective, head, tool_adapter, log_probability_threshold, .. } = settings;
        let input = normalised(&observed.embedding)?;
        let shares = self.head.probabilities(&input, 1.0);
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]).then(a.cmp(b)));
        let top_probability = order.first().map_or(0.0, |first| shares[*first]);
        let mut target = vec![0.0; head.trace_vocab_size];
        for token in &observed.tokens {
            target[*token as usize % head.trace_vocab_size] += 1.0 / observed.tokens.len() as f64;
        }
        if !observed.tokens.is_empty() {
            let dropout = (head.dropout, seed_of(b"dropout", [seed, step]));
            self.head.learn(&input, &target, objective.weight, dropout);
        }
        let decision = self.tools.as_mut().and_then(|tools| {
            let input = normalised(&observed.pooled)?;
            let shares = tools.probabilities(&input, tool_adapter.temperature);
            let best = (0..shares.len()).reduce(|best, next| if shares[next] > shares[best] { next } else { best })?;
            let called = observed.called.as_ref().and_then(|name| tool_adapter.tools.iter().position(|it| it == name));
            let mut target = vec![0.0; shares.len()];
            // The last output stands for no tool.
            target[called.unwrap_or(tool_adapter.tools.len())] = 1.0;
            tools.learn(&input, &target, objective.weight, (head.dropout, seed_of(b"tool dropout", [seed, step])));
            Some(ToolDecision { tool: tool_adapter.tools.get(best).cloned(), probability: shares[best] })
        });
        let room = objective.max_traces_per_epoch == 0 || self.captured < objective.max_traces_per_epoch;
        if !room || top_probability < *log_probability_threshold {
            return None;
        }
        self.captured += 1;
        self.total += 1;
        Some(TraceRow {
            kind: reasoning::TYPE.to_owned(),
            epoch,
            step,
            mode: objective.mode.name().to_owned(),
            trace_mode: self.mode.name().to_owned(),
            top_tokens: order.into_iter().take(objective.log_top_k).map(|at| at as u32).collect(),
            top_probability,
            embedding_norm: observed.embedding.iter().map(|it| f64::from(*it) * f64::from(*it)).sum::<f64>().sqrt(),
            tool_decision: decision,
        })
    }

    /// Writes the heads into columns.
    pub(super) fn save(&self, to: &mut Columns) {
        let Self { mode, head, tools, epoch, captured, total } = self;
        let numbers = |probe: Option<&Probe>| {
            probe.map_or([0; 3], |probe| {
                let ProbeShape { inputs, hidden, outputs } = probe.shape();
                [inputs as u64, hidden as u64, outputs as u64]
            })
        };
        let progress =
            [&[mode_number(*mode)][..], &numbers(Some(head)), &numbers(tools.as_ref()), &[*epoch, *captured, *total]];
        to.insert(PROGRESS.to_owned(), Column::U64(progress.concat()));
        to.insert(HEAD.to_owned(), Column::F64(head.weights().to_vec()));
        if let Some(tools) = tools {
            to.insert(TOOLS.to_owned(), Column::F64(tools.weights().to_vec()));
        }
    }

    /// Takes the heads out of columns; `None` if there are none.
    ///
    /// # Errors
    /// They are malformed.
    pub(super) fn load(from: &mut Columns) -> Result<Option<Self>, ()> {
        let (progress, head, tools) = (from.remove(PROGRESS), from.remove(HEAD), from.remove(TOOLS));
        let Some(Column::U64(progress)) = progress else {
            return if progress.is_none() && head.is_none() && tools.is_none() { Ok(None) } else { Err(()) };
        };
        let &[mode, inputs, hidden, outputs, tool_inputs, tool_hidden, tool_outputs, epoch, captured, total] =
            progress.as_slice()
        else {
            return Err(());
        };
        let mode = match mode {
            1 => TraceMode::Weights,
            2 => TraceMode::Activations,
            _ => return Err(()),
        };
        let probe = |numbers: [u64; 3], column| {
            let [inputs, hidden, outputs] =
                numbers.map(|number| usize::try_from(number).ok().filter(|it| *it < 1 << 20));
            let (Some(inputs), Some(hidden), Some(outputs)) = (inputs, hidden, outputs) else { return Err(()) };
            let Some(Column::F64(weights)) = column else { return Err(()) };
            Probe::restore(ProbeShape { inputs, hidden, outputs }, weights).ok_or(())
        };
        let head = probe([inputs, hidden, outputs], head)?;
        let tools = if tools.is_none() { None } else { Some(probe([tool_inputs, tool_hidden, tool_outputs], tools)?) };
        Ok(Some(Self { mode, head, tools, epoch, captured, total }))
    }
}

#[cfg(test)]
mod tests {
    use codex_configs::compose_training;

    use super::*;
    use crate::training::test_support::both;

    fn settings(more: &[&str]) -> TrainingSettings {
        let small = [
            "+reasoning=baseline",
            "curriculum.phase_schedule=none",
            "curriculum.preset=none",
            "trace_capture.mode=activations",
            "training.reasoning.head.projection_size=8",
            "training.reasoning.head.trace_vocab_size=6",
            "training.reasoning.tool_adapter.enabled=true",
            "training.reasoning.tool_adapter.hidden_size=8",
        ];
        let texts: Vec<String> = small.iter().chain(more).map(|text| (*text).to_owned()).collect();
        compose_training("cot-starter", &texts, None, 1, both()).unwrap().spec().settings.clone()
    }

    fn observation(step: u64) -> Observation {
        let called = step.is_multiple_of(2).then(|| "calculator".to_owned());
        let sign = if step.is_multiple_of(2) { 1.0 } else { -1.0 };
        Observation { embedding: vec![sign, 0.5, -0.25], pooled: vec![0.5, sign], tokens: vec![9, 3, 15, 4], called }
    }

    /// Observes 40 steps of epochs with ten, as if the run had been killed and resumed after each step in `kills`.
    fn traces(settings: &TrainingSettings, kills: &[u64]) -> (Vec<TraceRow>, TraceHead) {
        let mut rows = Vec::new();
        let mut head = TraceHead::begin(None, settings, 7, (3, 2)).unwrap();
        for step in 1..=40 {
            rows.extend(head.observe(&settings.training.reasoning, (7, (step - 1) / 10, step), &observation(step)));
            if kills.contains(&step) {
                let mut columns = Columns::new();
                head.save(&mut columns);
                let read = TraceHead::load(&mut columns).unwrap();
                assert!(columns.is_empty());
                head = TraceHead::begin(read, settings, 7, (3, 2)).unwrap();
            }
        }
        (rows, head)
    }

    #[test]
    fn traces_after_a_resume_are_those_of_an_unbroken_run() {
        let settings = settings(&[]);
        let (rows, head) = traces(&settings, &[]);
        assert!(!rows.is_empty() && rows.len() as u64 == head.total(), "{rows:?}");
        for kills in [&[1][..], &[13, 14], &[39], &[5, 10, 15, 20, 40]] {
            assert_eq!(traces(&settings, kills), (rows.clone(), head.clone()), "{kills:?}");
        }
    }

    #[test]
    fn traces_are_capped_and_those_below_the_threshold_are_dropped() {
        let count = |more: &[&str]| {
            let (rows, _) = traces(&settings(more), &[]);
            let mut epochs = [0; 4];
            for row in &rows {
                epochs[row.epoch as usize] += 1;
            }
            (epochs, rows)
        };
        let key = |key: &str| format!("training.reasoning.{key}");
        let [any, all] = [key("objective.max_traces_per_epoch=0"), key("log_probability_threshold=0.01")];
        assert_eq!(count(&[&any, &all]).0, [10; 4]);
        assert_eq!(count(&[&all]).0, [6; 4]);
        let (_, rows) = count(&[&any, &key("log_probability_threshold=0.35")]);
        assert!(rows.iter().all(|row| row.top_probability >= 0.35) && rows.len() < 40, "{rows:?}");
        assert_eq!(count(&[&key("log_probability_threshold=1")]).0, [0; 4]);
        let (_, rows) = count(&[&any, &all, &key("objective.log_top_k=2")]);
        let last = rows.last().unwrap();
        // Three of four tokens are 3 modulo 6.
        assert_eq!((last.top_tokens.len(), last.top_tokens[0]), (2, 3), "{last:?}");
        assert!((last.embedding_norm - (1.0_f64 + 0.25 + 0.0625).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn the_tool_adapter_learns_which_tool_is_called() {
        let mut head = TraceHead::begin(None, &settings(&[]), 7, (3, 2)).unwrap();
        let settings = settings(&[
            "training.reasoning.log_probability_threshold=0.01",
            "training.reasoning.objective.max_traces_per_epoch=0",
        ]);
        let mut last = Vec::new();
        for step in 1..=400 {
            last.extend(head.observe(&settings.training.reasoning, (7, 0, step), &observation(step)));
        }
        let decisions: Vec<_> = last.into_iter().rev().take(2).map(|row| row.tool_decision.unwrap()).collect();
        assert_eq!(decisions[0].tool.as_deref(), Some("calculator"), "{decisions:?}");
        assert_eq!(decisions[1].tool, None, "{decisions:?}");
        assert!(decisions.iter().all(|decision| decision.probability > 0.8), "{decisions:?}");
    }

    #[test]
    fn other_settings_begin_anew_and_malformed_columns_are_refused() {
        let (_, head) = traces(&settings(&[]), &[]);
        let begin = |settings: &TrainingSettings, shape| TraceHead::begin(Some(head.clone()), settings, 7, shape);
        assert_eq!(begin(&settings(&[]), (3, 2)).as_ref(), Some(&head));
        assert_eq!(begin(&settings(&[]), (4, 2)).unwrap().total(), 0);
        assert_eq!(begin(&settings(&["trace_capture.mode=weights"]), (3, 2)).unwrap().total(), 0);
        assert_eq!(begin(&settings(&["trace_capture.mode=disabled"]), (3, 2)), None);
        let mut columns = Columns::new();
        head.save(&mut columns);
        for name in [PROGRESS, HEAD] {
            let mut columns = columns.clone();
            columns.remove(name);
            assert!(TraceHead::load(&mut columns).is_err(), "{name}");
        }
        columns.insert(TOOLS.to_owned(), Column::F64(vec![0.0]));
        assert!(TraceHead::load(&mut columns).is_err());
        assert_eq!(TraceHead::load(&mut Columns::new()), Ok(None));
    }

    #[test]
    fn what_is_not_finite_is_no_trace() {
        let settings = settings(&["training.reasoning.log_probability_threshold=0.01"]);
        let mut head = TraceHead::begin(None, &settings, 7, (3, 2)).unwrap();
        let before = head.clone();
        let broken = Observation { embedding: vec![f32::NAN, 1.0, 1.0], ..observation(1) };
        assert_eq!(head.observe(&settings.training.reasoning, (7, 0, 1), &broken), None);
        assert_eq!(head, before);
    }
}
