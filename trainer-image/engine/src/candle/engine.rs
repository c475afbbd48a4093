//! Training with candle: parameters, gradients and moments are tensors on the device.

use std::{borrow::Cow, sync::Arc};

use candle_core::{D, DType, Result, Tensor, Var};

use super::{
    attention::Sequences,
    device::Place,
    documents::NOTHING,
    head,
    model::{Adapters, Model, Weights},
    ops,
};
use crate::{
    AdamW, Engine, EngineError, EngineState, Layout, Lora, ModelConfig, MomentFormat, Moments, Muon, Packed, Rates,
    model::{Dropout, adapter_flops, flops},
    optim::muon,
};

/// An engine on candle's autograd.
#[derive(Debug)]
pub(crate) struct CandleEngine {
    config: ModelConfig,
    place: Place,
    layout: Arc<Layout>,
    /// One tensor each, in the order of the layout.
    parameters: Vec<Var>,
    /// First and second moments in `f32`.
    moments: [Vec<Tensor>; 2],
    /// The moments in eight bits, which are in the memory of the processor. Then there are none in `f32`.
    eight: Option<Moments>,
    average: Option<Vec<Tensor>>,
    gradients: Vec<Tensor>,
    /// Factor of the losses while gradients have the type of activations.
    loss_scale: f64,
    frozen: Option<Frozen>,
}

/// A frozen model, whose adapters are trained.
#[derive(Debug)]
struct Frozen {
    layout: Layout,
    weights: Weights,
    lora: Lora,
}

impl CandleEngine {
    /// Makes an engine that starts from `state`.
    ///
    /// # Errors
    /// The state belongs to another model, or does not fit on the device.
    pub(crate) fn new(
        config: ModelConfig,
        state: &EngineState,
        place: Place,
    ) -> std::result::Result<Self, EngineError> {
        let layout = Arc::new(Layout::of(&config));
        Self::with(config, layout, state, None, place)
    }

    /// Makes an engine that trains adapters beside the frozen parameters `base`, starting from `state`.
    ///
    /// # Errors
    /// The state belongs to another model, the model cannot have these adapters, or they do not fit on the device.
    pub(crate) fn with_adapters(
        config: ModelConfig,
        base: &[f32],
        lora: Lora,
        state: &EngineState,
        place: Place,
    ) -> std::result::Result<Self, EngineError> {
        let trained = Arc::new(lora.layout(&config)?);
        let layout = Layout::of(&config);
        let mut weights = Weights::new();
        for (tensor, numbers) in layout.tensors().iter().zip(place.tensors(&layout, base)?) {
            weights.insert(tensor.name.clone(), numbers.to_dtype(place.dtype)?);
        }
        Self::with(config, trained, state, Some(Frozen { layout, weights, lora }), place)
    }

    fn with(
        config: ModelConfig,
        layout: Arc<Layout>,
        state: &EngineState,
        frozen: Option<Frozen>,
        place: Place,
    ) -> std::result::Result<Self, EngineError> {
        state.check(&layout)?;
        let parameters = place.tensors(&layout, &state.parameters)?;
        let (moments, eight) = placed(&place, &layout, &state.moments)?;
        Ok(Self {
            parameters: parameters.iter().map(Var::from_tensor).collect::<Result<_>>()?,
            moments,
            eight,
            average: state.average.as_deref().map(|average| place.tensors(&layout, average)).transpose()?,
            gradients: parameters.iter().map(Tensor::zeros_like).collect::<Result<_>>()?,
            loss_scale: 1.0,
            config,
            place,
            layout,
            frozen,
        })
    }

    /// Returns the weights of a forward pass in the type of activations.
    fn weights(&self) -> Result<Weights> {
        let mut weights = self.frozen.as_ref().map(|frozen| frozen.weights.clone()).unwrap_or_default();
        for (tensor, variable) in self.layout.tensors().iter().zip(&self.parameters) {
            weights.insert(tensor.name.clone(), variable.as_tensor().to_dtype(self.place.dtype)?);
        }
        Ok(weights)
    }

    fn model<'a>(&'a self, weights: &'a Weights, noise: Option<u64>) -> Model<'a> {
        let adapters = self.frozen.as_ref().map(|Frozen { lora, .. }| Adapters {
            scale: lora.scale(),
            dropout: noise.and_then(|noise| Dropout::new(lora.dropout, noise)),
        });
        Model { config: &self.config, place: &self.place, weights, frozen: self.frozen.is_some(), adapters }
    }

    /// Returns the hidden states [rows, hidden] of all rows.
    fn rows(&self, model: &Model, batch: &Packed) -> Result<Tensor> {
        let positions: Vec<u32> =
            batch.cu_seqlens.windows(2).flat_map(|bounds| 0..(bounds[1] - bounds[0]) as u32).collect();
        let mut sequences = Sequences::new(&self.config, &self.place, batch, &positions)?;
        model.hidden(&batch.tokens, &positions, &mut sequences)
    }

    /// Returns the hidden states [targets, hidden] that predict the targets, and the targets' ids.
    fn hidden(&self, model: &Model, batch: &Packed) -> Result<(Tensor, Tensor)> {
        let hidden = self.rows(model, batch)?;
        let (rows, ids): (Vec<u32>, Vec<u32>) =
            batch.targets.iter().map(|target| (target.row as u32, target.id)).unzip();
        let mut back = vec![NOTHING; batch.tokens.len()];
        for (place, target) in batch.targets.iter().enumerate() {
            back[target.row] = place as u32;
        }
        let chosen = ops::select(&hidden, &self.place.indices(&rows)?, self.place.indices(&back)?)?;
        Ok((chosen, self.place.indices(&ids)?))
    }

    /// Runs both passes. `weigh` gets the loss of each target, if it wants it, and returns the scale of each. Returns Σ of the losses.
    fn accumulate_graph(
        &mut self,
        batch: &Packed,
        weigh: impl FnOnce(&mut dyn FnMut() -> Result<Vec<f64>>) -> Result<Vec<f32>>,
    ) -> Result<f64> {
        let weights = self.weights()?;
        let model = self.model(&weights, Some(batch.noise));
        let (hidden, ids) = self.hidden(&model, batch)?;
        let (head_name, weight) = model.head()?;
        let (states, detached) = (hidden.detach(), weight.detach());
        let scales = weigh(&mut || head::losses(&states, &detached, &ids))?;
        let scales = (self.place.tensor(&scales, &[scales.len(), 1])? * self.loss_scale)?;
        let loss = head::gradients(&states, &detached, &ids, &scales, self.frozen.is_none())?;
        // The gradient of this product by `hidden` is the head's.
        let store = (hidden * loss.of_hidden)?.sum_all()?.backward()?;
        let mut gradients = Vec::with_capacity(self.parameters.len());
        for ((tensor, variable), before) in self.layout.tensors().iter().zip(&self.parameters).zip(&self.gradients) {
            let head = loss.of_weight.as_ref().filter(|_| tensor.name == head_name);
            let mut sum = before.clone();
            for part in [store.get(variable), head].into_iter().flatten() {
                sum = (sum + (part * (1.0 / self.loss_scale))?)?;
            }
            if store.get(variable).is_none() && head.is_none() {
                candle_core::bail!("{} has no gradient", tensor.name);
            }
            gradients.push(sum.detach());
        }
        self.gradients = gradients;
        Ok(loss.sum)
    }

    fn each(&self, batch: &Packed) -> Result<Vec<f64>> {
        let weights = self.weights()?;
        let model = self.model(&weights, None);
        let (hidden, ids) = self.hidden(&model, batch)?;
        head::losses(&hidden.detach(), &model.head()?.1.detach(), &ids)
    }

    fn sum(&self, batch: &Packed) -> Result<f64> {
        let weights = self.weights()?;
        let model = self.model(&weights, None);
        let (hidden, ids) = self.hidden(&model, batch)?;
        head::cross_entropy(&hidden.detach(), &model.head()?.1.detach(), &ids)
    }

    /// One step of [`AdamW`] with moments in eight bits, which the processor takes.
    fn step_in_eight_bits(&mut self, step: &AdamW, mut moments: Moments) -> Result<Moments> {
        let (mut parameters, mut gradients) = (Vec::new(), Vec::new());
        flatten(self.parameters.iter().map(Var::as_tensor), &mut parameters)?;
        flatten(&self.gradients, &mut gradients)?;
        step.apply(&self.layout, &mut parameters, &gradients, &mut moments);
        for (variable, parameter) in self.parameters.iter().zip(self.place.tensors(&self.layout, &parameters)?) {
            variable.set(&parameter)?;
        }
        Ok(moments)
    }

    /// One step of [`AdamW`] on the device.
    fn step(&mut self, step: &AdamW) -> Result<()> {
        if let Some(moments) = self.eight.take() {
            self.eight = Some(self.step_in_eight_bits(step, moments)?);
            return Ok(());
        }
        let [all_first, all_second] = &mut self.moments;
        let correction = |beta: f64| 1.0 - beta.powf((step.step + 1) as f64);
        let (correction1, root2) = (correction(step.beta1), (1.0 / correction(step.beta2)).sqrt());
        for (at, (variable, rates)) in self.parameters.iter().zip(step.rates).enumerate() {
            let gradient = (&self.gradients[at] * step.scale)?;
            if let Some(muon) = step.muon.filter(|_| step.leaves(at)) {
                all_first[at] = muon_step((step, muon, *rates), variable, &gradient, &all_first[at])?;
                continue;
            }
            let first = ((&all_first[at] * step.beta1)? + (&gradient * (1.0 - step.beta1))?)?;
            let second = ((&all_second[at] * step.beta2)? + (gradient.sqr()? * (1.0 - step.beta2))?)?;
            let rate = step.rate * rates.rate;
            let change = ((&first * (rate / correction1))? / ((second.sqrt()? * root2)? + step.epsilon)?)?;
            let weight = variable.as_tensor().detach();
            variable.set(&((&weight - (&weight * (rate * rates.decay))?)? - change)?)?;
            (all_first[at], all_second[at]) = (first, second);
        }
        Ok(())
    }
}

/// Updates a matrix as Muon does, and returns its new momentum.
fn muon_step(
    (step, muon, rates): (&AdamW, Muon, Rates),
    variable: &Var,
    gradient: &Tensor,
    momentum: &Tensor,
) -> Result<Tensor> {
    let mix = |kept: &Tensor| (kept * muon.momentum)? + (gradient * (1.0 - muon.momentum))?;
    let momentum = mix(momentum)?;
    let (rows, columns) = gradient.dims2()?;
    let change = (orthogonalized(&mix(&momentum)?)? * (step.rate * rates.rate * muon::size(rows, columns)))?;
    let weight = variable.as_tensor().detach();
    variable.set(&((&weight - (&weight * (step.rate * rates.rate * rates.decay))?)? - change)?)?;
    Ok(momentum)
}

/// Returns about the nearest matrix with orthogonal rows or columns, by Newton–Schulz iterations.
fn orthogonalized(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    if rows > columns {
        return orthogonalized(&matrix.t()?.contiguous()?)?.t()?.contiguous();
    }
    let norm = squares(matrix)?.sqrt();
    let mut x = (matrix * (1.0 / (norm + muon::EPSILON)))?;
    let [a, b, c] = muon::COEFFICIENTS;
    for _ in 0..muon::ITERATIONS {
        let gram = x.matmul(&x.t()?)?;
        let mixed = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + mixed.matmul(&x)?)?;
    }
    Ok(x)
}

/// Returns Σ x² of each row of a gradient, on the device.
fn row_squares(gradient: &Tensor) -> Result<Tensor> {
    gradient.sqr()?.sum(D::Minus1)?.flatten_all()
}

/// Returns Σ x² of a gradient. Rows are summed on the device, their sums in `f64`.
fn squares(gradient: &Tensor) -> Result<f64> {
    Ok(row_squares(gradient)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}

/// Returns moments in `f32` on the device, or those in eight bits.
fn placed(place: &Place, layout: &Layout, moments: &Moments) -> Result<([Vec<Tensor>; 2], Option<Moments>)> {
    Ok(match moments {
        Moments::F32 { first, second } => ([place.tensors(layout, first)?, place.tensors(layout, second)?], None),
        Moments::EightBit { .. } => ([Vec::new(), Vec::new()], Some(moments.clone())),
    })
}

/// Copies tensors of a layout into a flat vector.
fn flatten<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, to: &mut Vec<f32>) -> Result<()> {
    to.clear();
    for tensor in tensors {
        to.extend(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(())
}

impl Engine for CandleEngine {
    fn path(&self) -> &'static str {
        self.place.path()
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn flops(&self, batch: &Packed) -> f64 {
        match &self.frozen {
            None => flops(&self.config, &self.layout, batch),
            Some(Frozen { layout, .. }) => adapter_flops(&self.config, layout, &self.layout, batch),
        }
    }

    fn peak_flops(&self) -> std::result::Result<f64, EngineError> {
        Ok(self.place.peak_flops()?)
    }

    fn clear_gradients(&mut self) -> std::result::Result<(), EngineError> {
        self.gradients = self.gradients.iter().map(Tensor::zeros_like).collect::<Result<_>>()?;
        Ok(())
    }

    fn scale_losses(&mut self, scale: f64) {
        self.loss_scale = scale;
    }

    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> std::result::Result<f64, EngineError> {
        batch.check(&self.config)?;
        if batch.targets.is_empty() {
            return Ok(0.0);
        }
        let slope = 1.0 / total_targets as f32;
        Ok(self.accumulate_graph(batch, |_| Ok(vec![slope; batch.targets.len()]))? / total_targets as f64)
    }

    fn accumulate_weighted(
        &mut self,
        batch: &Packed,
        weigh: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> std::result::Result<Vec<f64>, EngineError> {
        batch.check(&self.config)?;
        let mut losses = batch.sums(&[]);
        if batch.targets.is_empty() {
            return Ok(losses);
        }
        self.accumulate_graph(batch, |each| {
            losses = batch.sums(&each()?);
            Ok(batch.spread(&weigh(&losses)))
        })?;
        Ok(losses)
    }

    fn accumulate_scaled(&mut self, batch: &Packed, scales: &[f32]) -> std::result::Result<f64, EngineError> {
        assert_eq!(scales.len(), batch.targets.len(), "one scale for each target");
        batch.check(&self.config)?;
        if batch.targets.is_empty() {
            return Ok(0.0);
        }
        Ok(self.accumulate_graph(batch, |_| Ok(scales.to_vec()))?)
    }

    fn hidden_states(&mut self, batch: &Packed) -> std::result::Result<Vec<f32>, EngineError> {
        batch.check(&self.config)?;
        let weights = self.weights()?;
        let states = self.rows(&self.model(&weights, None), batch)?;
        let mut all = Vec::new();
        flatten([&states.detach()], &mut all)?;
        Ok(all)
    }

    fn losses(&mut self, batch: &Packed) -> std::result::Result<Vec<f64>, EngineError> {
        batch.check(&self.config)?;
        if batch.targets.is_empty() {
            return Ok(batch.sums(&[]));
        }
        Ok(batch.sums(&self.each(batch)?))
    }

    fn loss(&mut self, batch: &Packed) -> std::result::Result<f64, EngineError> {
        batch.check(&self.config)?;
        if batch.targets.is_empty() {
            return Ok(0.0);
        }
        Ok(self.sum(batch)?)
    }

    fn parameters(&self) -> std::result::Result<Cow<'_, [f32]>, EngineError> {
        let mut all = Vec::with_capacity(self.layout.size());
        flatten(self.parameters.iter().map(Var::as_tensor), &mut all)?;
        Ok(Cow::Owned(all))
    }

    fn leading_parameters(&self, count: usize) -> std::result::Result<Vec<f32>, EngineError> {
        let Some(first) = self.parameters.first() else { return Ok(Vec::new()) };
        let flat = first.as_tensor().flatten_all().and_then(|flat| flat.narrow(0, 0, count.min(flat.elem_count())));
        Ok(flat.and_then(|leading| leading.to_vec1::<f32>())?)
    }

    fn gradients(&self) -> std::result::Result<Cow<'_, [f32]>, EngineError> {
        let mut all = Vec::with_capacity(self.layout.size());
        flatten(&self.gradients, &mut all)?;
        Ok(Cow::Owned(all))
    }

    fn gradient_norm(&self) -> std::result::Result<f64, EngineError> {
        let rows: Vec<Tensor> = self.gradients.iter().map(row_squares).collect::<Result<_>>()?;
        // One copy from the device for all tensors, because each waits for it.
        let mut all = Tensor::cat(&rows, 0)?.to_vec1::<f32>()?.into_iter();
        let mut sum = 0.0;
        for (tensor, rows) in self.layout.tensors().iter().zip(&rows) {
            let squares: f64 = all.by_ref().take(rows.elem_count()).map(f64::from).sum();
            if !squares.is_finite() {
                return Err(EngineError::NotFinite { tensor: tensor.name.clone() });
            }
            sum += squares;
        }
        Ok(sum.sqrt())
    }

    fn update(&mut self, step: &AdamW) -> std::result::Result<(), EngineError> {
        assert_eq!(step.rates.len(), self.layout.tensors().len(), "one pair of rates for each tensor");
        Ok(self.step(step)?)
    }

    fn keep_moments(&mut self, format: MomentFormat) -> std::result::Result<(), EngineError> {
        let mut moments = self.export()?.moments;
        if moments.format() != format {
            moments.convert(&self.layout, format);
            (self.moments, self.eight) = placed(&self.place, &self.layout, &moments)?;
        }
        Ok(())
    }

    fn set_gradients(&mut self, gradients: &[f32]) -> std::result::Result<(), EngineError> {
        assert_eq!(gradients.len(), self.layout.size(), "one gradient for each parameter");
        self.gradients = self.place.tensors(&self.layout, gradients)?;
        Ok(())
    }

    fn keep_average(&mut self, keep: bool) -> std::result::Result<(), EngineError> {
        if !keep {
            self.average = None;
        } else if self.average.is_none() {
            // Copied, because setting a variable writes where it is.
            self.average =
                Some(self.parameters.iter().map(|now| now.as_detached_tensor().copy()).collect::<Result<_>>()?);
        }
        Ok(())
    }

    fn average(&mut self, decay: f64) -> std::result::Result<(), EngineError> {
        let Some(average) = &mut self.average else { return Ok(()) };
        for (average, now) in average.iter_mut().zip(&self.parameters) {
            *average = ((&*average * decay)? + (now.as_detached_tensor() * (1.0 - decay))?)?;
        }
        Ok(())
    }

    fn swap_average(&mut self) -> std::result::Result<(), EngineError> {
        for (average, variable) in self.average.iter_mut().flatten().zip(&self.parameters) {
            // Copied, because setting a variable writes where it is.
            let now = variable.as_detached_tensor().copy()?;
            variable.set(average)?;
            *average = now;
        }
        Ok(())
    }

    fn memory(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let frozen = self.frozen.iter().flat_map(|frozen| frozen.weights.values()).map(bytes).sum::<usize>();
        let moments = self.eight.as_ref().map_or(2 * size_of::<f32>() * self.layout.size(), Moments::bytes);
        (2 + usize::from(self.average.is_some())) * size_of::<f32>() * self.layout.size() + moments + frozen
    }

    fn export(&self) -> std::result::Result<EngineState, EngineError> {
        let mut state = EngineState {
            layout: self.layout.clone(),
            parameters: Vec::new(),
            moments: Moments::zero(0),
            average: None,
        };
        self.export_into(&mut state)?;
        Ok(state)
    }

    fn export_into(&self, state: &mut EngineState) -> std::result::Result<(), EngineError> {
        state.layout = self.layout.clone();
        flatten(self.parameters.iter().map(Var::as_tensor), &mut state.parameters)?;
        match (&self.eight, &mut state.moments) {
            (Some(moments), into) => into.copy_from(moments),
            (None, Moments::F32 { first, second }) => {
                flatten(&self.moments[0], first)?;
                flatten(&self.moments[1], second)?;
            }
            (None, into @ Moments::EightBit { .. }) => {
                let (mut first, mut second) = (Vec::new(), Vec::new());
                flatten(&self.moments[0], &mut first)?;
                flatten(&self.moments[1], &mut second)?;
                *into = Moments::F32 { first, second };
            }
        }
        match &self.average {
            None => state.average = None,
            Some(average) => flatten(average, state.average.get_or_insert_default())?,
        }
        Ok(())
    }

    fn import(&mut self, state: &EngineState) -> std::result::Result<(), EngineError> {
        state.check(&self.layout)?;
        let parameters = self.place.tensors(&self.layout, &state.parameters)?;
        for (variable, parameter) in self.parameters.iter().zip(&parameters) {
            variable.set(parameter)?;
        }
        (self.moments, self.eight) = placed(&self.place, &self.layout, &state.moments)?;
        let average = state.average.as_deref();
        self.average = average.map(|average| self.place.tensors(&self.layout, average)).transpose()?;
        Ok(())
    }
}
