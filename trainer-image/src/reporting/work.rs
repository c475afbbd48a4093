//! The trait of states that can be reported. Pure.

use codex_reports::{EvaluationState, Failure, Kind, ServingState, Stage, State, TrainingState};

/// The cumulative state of the work for an object.
pub trait Work: Clone + Default + Send + 'static {
    /// The kind of the object.
    const KIND: Kind;

    /// Returns the stage.
    fn stage(&self) -> Stage;

    /// Returns the state in its wire form.
    fn wire(self) -> State;

    /// Sets the stage to [`Stage::Failed`], with the failure.
    fn fail(&mut self, failure: Failure);
}

macro_rules! work {
    ($($state:ident is $kind:ident travels as $wire:ident,)*) => {$(
        impl Work for $state {
            const KIND: Kind = Kind::$kind;

            fn stage(&self) -> Stage {
                self.stage
            }

            fn wire(self) -> State {
                State::$wire(self)
            }

            fn fail(&mut self, failure: Failure) {
                self.stage = Stage::Failed;
                self.failure = Some(failure);
            }
        }
    )*};
}

work! {
    TrainingState is TrainingRun travels as Training,
    EvaluationState is Evaluation travels as Evaluation,
    ServingState is ReasoningPod travels as Serving,
}
