//! A ReasoningPod over its life.
