//! The trait of states that can be reported. Pure.

use std::time::Duration;

use codex_reports::{EvaluationState, Failure, Kind, ServingState, Stage, State, TrainingState};

/// The cumulative state of the work for an object.
pub trait Work: Clone + Default + Send + 'static {
    /// The kind of the object.
    const KIND: Kind;

    /// Time after which an unchanged state is reported again. A server does so, because the controller keeps reports in memory.
    const REPEAT: Option<Duration>;

    /// Returns the stage.
    fn stage(&self) -> Stage;

    /// Returns the state in its wire form.
    fn wire(self) -> State;

    /// Sets the stage to [`Stage::Failed`], with the failure.
    fn fail(&mut self, failure: Failure);
}

macro_rules! work {
    ($($state:ident is $kind:ident travels as $wire:ident, repeated after $repeat:expr;)*) => {$(
        impl Work for $state {
            const KIND: Kind = Kind::$kind;
            const REPEAT: Option<Duration> = $repeat;

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
    TrainingState is TrainingRun travels as Training, repeated after None;
    EvaluationState is Evaluation travels as Evaluation, repeated after None;
    ServingState is ReasoningPod travels as Serving, repeated after Some(Duration::from_mins(5));
}
