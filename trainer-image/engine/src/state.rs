//! The state that an engine keeps between steps. Pure.

use std::sync::Arc;

use super::{EngineError, Layout, Moments};

/// The state that an engine keeps between steps: vectors with one layout.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineState {
    /// The range of each tensor in the vectors.
    pub layout: Arc<Layout>,
    /// The parameters.
    pub parameters: Vec<f32>,
    /// The moments of the optimizer.
    pub moments: Moments,
    /// The moving average of the parameters, if one is kept.
    pub average: Option<Vec<f32>>,
}

impl EngineState {
    /// Returns the state before the first step, with moments of 0.
    pub fn new(layout: Arc<Layout>, parameters: Vec<f32>) -> Self {
        let moments = Moments::zero(parameters.len());
        Self { layout, parameters, moments, average: None }
    }

    /// Checks that the state belongs to a model of `layout`.
    ///
    /// # Errors
    /// A vector's length differs from the layout's size.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), EngineError> {
        let expected = layout.size();
        for (what, found) in
            [("parameters", self.parameters.len()), ("averages", self.average.as_ref().map_or(expected, Vec::len))]
        {
            if found != expected {
                return Err(EngineError::State { what, found, expected });
            }
        }
        self.moments.check(layout)
    }
}
