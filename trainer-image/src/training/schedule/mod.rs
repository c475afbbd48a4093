//! What a step does as a function of its number: the examples that it sees, its learning rate, and the rates of each tensor.
//! In a curriculum it also depends on the steps at which phases began, which the state holds. Nothing here is stored in a checkpoint. Pure.

mod curriculum;
mod epochs;
mod learning_rate;
mod parameter_groups;

pub(crate) use curriculum::{Curriculum, Slot};
pub(crate) use epochs::{Examples, examples_of_step, executed_steps, scheduled_steps};
pub(crate) use learning_rate::learning_rate;
pub use parameter_groups::GroupError;
pub(crate) use parameter_groups::tensor_rates;
