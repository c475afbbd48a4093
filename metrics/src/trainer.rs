//! The metrics of `codex train`.

use crate::{label::TRACKER, metric::metrics};

metrics! {
    STEPS = Counter("codex_ml_training_steps_total", Count, [],
        "Optimizer steps of this process.");
    TOKENS = Counter("codex_ml_training_tokens_total", Count, [],
        "Tokens trained on by this process.");
    FLOPS = Counter("codex_ml_training_flops_total", Flop, [],
        "Floating-point operations of the model in the steps of this process.")
        .more("Counted by [a formula](#model-flop-utilization) from the weights, the tokens and the pairs of tokens that attend.");
    PEAK_FLOPS = Gauge("codex_ml_training_peak_flops", FlopPerSecond, [],
        "Floating-point operations in a second of a large product of matrices on the run's device, measured when the process began.")
        .more("1,024 rows, inputs and outputs, in the run's precision, on all threads of the run or on its GPU; the fastest of five. See \
               [model FLOP utilization](#model-flop-utilization).");
    SPIKES = Counter("codex_ml_training_spikes_total", Count, [],
        "Steps of this process with a spike of the loss or gradient norm, including skipped ones.");
    DAMAGED = Counter("codex_ml_checkpoints_damaged_total", Count, [],
        "Damaged checkpoints that this process found and skipped.");
    TRACKING_FAILURES = Counter("codex_ml_tracking_failures_total", Count, [TRACKER],
        "Failed writes of this process to a tracker.")
        .more("Training goes on without them; the log names the first of several in a row.");
    REFUSED_CONNECTIONS = Counter("codex_ml_training_connections_refused_total", Count, [],
        "Connections to the port of the metrics closed because too many were open.")
        .more("At most 64 are open.");
    BLOCKED_RECORDS = Gauge("codex_ml_training_blocked_records", Count, [],
        "Records of the training data that a safety rule leaves out.");
    REDACTED_RECORDS = Gauge("codex_ml_training_redacted_records", Count, [],
        "Other records of the training data of which a safety rule replaces something.");
    STEP = Gauge("codex_ml_training_step", Count, [],
        "Number of the latest step.");
    TARGET = Gauge("codex_ml_training_target_steps", Count, [],
        "Number of steps of the whole run.");
    CURRICULUM_PHASE = Gauge("codex_ml_training_curriculum_phase", Count, [],
        "Number of the curriculum's active phase, from 1; 0 without a curriculum.");
    CURRICULUM_WAITS = Gauge("codex_ml_training_curriculum_waits", Count, [],
        "1 while the active phase of the curriculum waits for its thresholds, else 0.");
    LOSS = Gauge("codex_ml_training_loss", Nats, [],
        "Mean cross-entropy per target token of the latest step, in nats.")
        .more("With `training.method: dpo`, the mean loss per pair of responses.");
    VAL_LOSS = Gauge("codex_ml_training_val_loss", Nats, [],
        "Mean cross-entropy per target token of the latest evaluation, in nats; NaN before the first.");
    REWARD_MARGIN = Gauge("codex_ml_training_reward_margin", Number, [],
        "Mean reward of the chosen minus that of the rejected responses of the latest step; NaN unless preferences are trained.");
    PREFERENCE_ACCURACY = Gauge("codex_ml_training_preference_accuracy", Ratio, [],
        "Share of the latest step's pairs whose chosen response has the higher reward; NaN unless preferences are trained.");
    REWARD = Gauge("codex_ml_training_reward", Number, [],
        "Mean reward of the latest step's sampled answers; NaN unless rewards are learned from.");
    REWARD_DEVIATION = Gauge("codex_ml_training_reward_deviation", Number, [],
        "Mean over the latest step's prompts of the standard deviation of their answers' rewards; NaN unless rewards are learned from.")
        .more("Nothing is learned once it is 0: all answers to a prompt earn the same.");
    ANSWER_ACCURACY = Gauge("codex_ml_training_answer_accuracy", Ratio, [],
        "Share of the latest step's sampled answers that are right; NaN unless rewards are learned from.");
    SOLVED_PROMPTS = Gauge("codex_ml_training_solved_prompts", Ratio, [],
        "Share of the latest step's prompts with a right answer among those sampled (pass@k); NaN unless rewards are learned from.");
    ENTROPY = Gauge("codex_ml_training_entropy", Nats, [],
        "Estimated entropy per sampled token of the latest step, in nats; NaN unless rewards are learned from.");
    ANSWER_TOKENS = Gauge("codex_ml_training_answer_tokens", Count, [],
        "Mean number of tokens of the latest step's sampled answers; NaN unless rewards are learned from.");
    TRUNCATED_ANSWERS = Gauge("codex_ml_training_truncated_answers", Ratio, [],
        "Share of the latest step's sampled answers that were cut off; NaN unless rewards are learned from.");
    LEARNING_RATE = Gauge("codex_ml_training_learning_rate", Number, [],
        "Learning rate of the latest step.");
    GRADIENT_NORM = Gauge("codex_ml_training_gradient_norm", Number, [],
        "Gradient norm of the latest step before clipping.");
    GRADIENT_NOISE_SCALE = Gauge("codex_ml_training_gradient_noise_scale", Count, [],
        "Simple noise scale of the gradient in examples, over about the last hundred steps; NaN unless it is measured.");
    EPSILON = Gauge("codex_ml_training_epsilon", Number, [],
        "The epsilon of differential privacy that the run has spent; NaN unless it is private.");
    STEP_DURATION = Histogram("codex_ml_training_duration_seconds", Seconds, [],
        "Seconds per step, including data loading and waits for checkpoints, but not evaluations.")
        .buckets(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0]);
    DATA_DURATION = Histogram("codex_ml_data_loading_duration_seconds", Seconds, [],
        "Seconds that a step waited for its data.")
        .buckets(&[1e-5, 1e-4, 5e-4, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5]);
}
