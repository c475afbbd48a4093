//! Tests of whole runs.

mod adoption;
mod base;
mod combinations;
mod curricula;
mod evaluation;
mod forensics;
mod given;
mod inputs;
mod kills;
mod model_card;
mod numerics;
mod optimizers;
mod preferences;
mod resume;
mod rewards;
mod traces;
mod tracking;
