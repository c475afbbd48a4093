//! What the three kinds of work have in common for a reporter. Pure.

use codex_reports::{EvaluationState, Failure, Kind, ServingState, Stage, State, TrainingState};

/// The cumulative state of one kind of work.
pub trait Work: Clone + Default + Send + 'static {
    /// The kind of object that such pods work for.
    const KIND: Kind;

    /// How far the work is.
    fn stage(&self) -> Stage;

    /// The state as it travels.
    fn wire(self) -> State;

    /// Sets the stage to [`Stage::Failed`], and why.
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
