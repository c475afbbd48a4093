//! The dashboard of TrainingRuns: whether they move, learn, and lose no work.

use crate::{
    controller::{CHECKPOINT_OLDEST, OBJECTS, PROGRESS_OLDEST, RUN_STEPS},
    dashboard::{
        Dashboard, Panel,
        PanelUnit::{Celsius, Flops, Number as Plain, PerSecond, Seconds, Share, Watts},
        Shape::{Bars, Lines, Number, Zero},
    },
    gpu,
    label::{
        GPU, KIND, PHASE, STATE,
        target::{NAMESPACE, POD},
    },
    query::RATE_INTERVAL,
    trainer::{
        self, ANSWER_ACCURACY, ANSWER_TOKENS, CURRICULUM_PHASE, CURRICULUM_WAITS, DAMAGED, DATA_DURATION, ENTROPY,
        EPSILON, FLOPS, GRADIENT_NOISE_SCALE, GRADIENT_NORM, LEARNING_RATE, LOSS, PEAK_FLOPS, PREFERENCE_ACCURACY,
        REWARD, REWARD_DEVIATION, REWARD_MARGIN, SOLVED_PROMPTS, SPIKES, STEP, STEP_DURATION, STEPS, TARGET, TOKENS,
        TRUNCATED_ANSWERS, VAL_LOSS,
    },
};

pub(super) fn runs() -> Dashboard {
    const HERE: [crate::Label; 2] = [NAMESPACE, POD];
    const EACH_GPU: [crate::Label; 3] = [NAMESPACE, POD, GPU];
    let chosen = [NAMESPACE.chosen()];
    let completed = RUN_STEPS.value(&[STATE.is("completed")]).sum(&[]);
    let executed = RUN_STEPS.value(&[STATE.is("executed")]).sum(&[]);
    let step_time = STEP_DURATION.sum_rate(&chosen, RATE_INTERVAL).sum(&HERE);
    Dashboard {
        uid: "codex-runs",
        title: "Codex / Runs",
        sentence: "Whether TrainingRuns move, learn, and lose no work.",
        namespaces: Some(STEPS.total(&[])),
        rows: vec![
            (
                "All runs",
                vec![
                    Panel::new(Bars, Plain, "Runs", "Existing TrainingRuns by phase.")
                        .by(&OBJECTS.value(&[KIND.is("TrainingRun")]).sum(&[PHASE]), &[PHASE])
                        .when_empty("no runs"),
                    Panel::new(Number, Seconds, "Oldest progress", "Time since the running TrainingRun that stands still longest took a step; above 15 minutes is an alert.")
                        .named(&PROGRESS_OLDEST.value(&[]).min(&[]).age(), "age")
                        .when_empty("no running run"),
                    Panel::new(Number, Seconds, "Oldest checkpoint", "Time since the newest checkpoint of the running TrainingRun that has the oldest one: the work that a lost node costs at most.")
                        .named(&CHECKPOINT_OLDEST.value(&[]).min(&[]).age(), "age")
                        .when_empty("no running run"),
                    Panel::new(Number, Share, "Goodput", "Completed steps over executed ones of all existing TrainingRuns; repeated steps lower it.")
                        .named(&completed.per(&executed), "completed / executed")
                        .when_empty("no steps"),
                    Panel::new(Zero, Plain, "Damaged checkpoints", "Damaged checkpoints that running trainers found.")
                        .named(&DAMAGED.total(&chosen).sum(&[]).or_zero(), "checkpoints"),
                    Panel::new(Zero, Plain, "Tracking failures", "Failed writes of running trainers to experiment trackers, such as TensorBoard or MLflow.")
                        .named(&trainer::TRACKING_FAILURES.total(&chosen).sum(&[]).or_zero(), "failures"),
                    Panel::new(Zero, Plain, "Refused connections", "Connections that running trainers closed because too many read their metrics.")
                        .named(&trainer::REFUSED_CONNECTIONS.total(&chosen).sum(&[]).or_zero(), "connections"),
                ],
            ),
            (
                "Learning",
                vec![
                    Panel::new(Lines, Plain, "Loss", "Mean cross-entropy per target token of the latest step, in nats.")
                        .by(&LOSS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Validation loss", "The same on held-out records, of the latest evaluation.")
                        .by(&VAL_LOSS.value(&chosen).known(), &HERE)
                        .when_empty("no evaluation yet"),
                    Panel::new(Lines, Share, "Progress", "Steps taken over the steps of the whole run.")
                        .by(&STEP.value(&chosen).per(&TARGET.value(&chosen)), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Blocked records", "Records of the training data that safety rules leave out.")
                        .by(&trainer::BLOCKED_RECORDS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Redacted records", "Records of the training data of which safety rules replace something.")
                        .by(&trainer::REDACTED_RECORDS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Curriculum", "Number of the active phase; 0 without a curriculum.")
                        .by(&CURRICULUM_PHASE.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Waiting phases", "1 while the steps of the active phase are done and a threshold does not hold.")
                        .by(&CURRICULUM_WAITS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Gradient norm", "Norm of the latest gradient before clipping.")
                        .by(&GRADIENT_NORM.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Learning rate", "Learning rate of the latest step.")
                        .by(&LEARNING_RATE.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Gradient noise scale", "About how many examples a batch needs before its gradient is no longer mostly noise.")
                        .by(&GRADIENT_NOISE_SCALE.value(&chosen).known(), &HERE)
                        .when_empty("not measured"),
                    Panel::new(Lines, Plain, "Epsilon", "With training.privacy: the epsilon that the run has spent.")
                        .by(&EPSILON.value(&chosen).known(), &HERE)
                        .when_empty("not private"),
                    Panel::new(Lines, Plain, "Reward margin", "With DPO: by how much more the model prefers the chosen response than the reference model does.")
                        .by(&REWARD_MARGIN.value(&chosen).known(), &HERE)
                        .when_empty("no DPO"),
                    Panel::new(Lines, Share, "Preference accuracy", "With DPO: share of the pairs whose reward margin is positive.")
                        .by(&PREFERENCE_ACCURACY.value(&chosen).known(), &HERE)
                        .when_empty("no DPO"),
                    Panel::new(Lines, PerSecond, "Spikes", "Steps per second with a spike of the loss or gradient norm.")
                        .by(&SPIKES.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                ],
            ),
            (
                "Rewards",
                vec![
                    Panel::new(Lines, Plain, "Reward", "With GRPO: mean reward of the answers that the latest step sampled.")
                        .by(&REWARD.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Reward deviation", "With GRPO: standard deviation of the rewards of answers to the same prompt. At 0 nothing is learned.")
                        .by(&REWARD_DEVIATION.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Right answers", "With GRPO: share of the sampled answers that are right.")
                        .by(&ANSWER_ACCURACY.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Solved prompts", "With GRPO: share of the prompts with a right answer among those sampled.")
                        .by(&SOLVED_PROMPTS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Entropy", "With GRPO: estimated entropy per sampled token, in nats. It falls as the answers become alike.")
                        .by(&ENTROPY.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Answer length", "With GRPO: mean number of tokens of a sampled answer.")
                        .by(&ANSWER_TOKENS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Truncated answers", "With GRPO: share of the sampled answers that were cut off, of which nothing is learned.")
                        .by(&TRUNCATED_ANSWERS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                ],
            ),
            (
                "Speed",
                vec![
                    Panel::new(Lines, PerSecond, "Tokens", "Tokens trained on per second, without padding.")
                        .by(&TOKENS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, PerSecond, "Steps", "Optimizer steps per second.")
                        .by(&STEPS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Seconds, "Step duration", "Time of a step that 95 of 100 do not exceed.")
                        .by(&STEP_DURATION.quantile(0.95, &chosen, &HERE, RATE_INTERVAL), &HERE)
                        .when_empty("no steps"),
                    Panel::new(Lines, Share, "Data wait", "Share of the time of steps that they wait for data; close to 0 is normal.")
                        .by(&DATA_DURATION.sum_rate(&chosen, RATE_INTERVAL).sum(&HERE).per(&step_time), &HERE)
                        .when_empty("no steps"),
                    Panel::new(Lines, Flops, "Floating-point operations", "Operations of the model per second.")
                        .by(&FLOPS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Share, "Model FLOP utilization", "Operations of the model per second over those of a large product on the same device.")
                        .by(&FLOPS.rate(&chosen, RATE_INTERVAL).sum(&HERE).per(&PEAK_FLOPS.value(&chosen).sum(&HERE)), &HERE)
                        .when_empty("no trainer"),
                ],
            ),
            (
                "GPUs",
                vec![
                    Panel::new(Lines, Share, "Utilization", "Share of the time in which a kernel ran on the GPU.")
                        .by(&gpu::UTILIZATION.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Share, "Memory", "Memory in use over all memory of the GPU.")
                        .by(&gpu::MEMORY_USED.value(&chosen).per(&gpu::MEMORY_SIZE.value(&chosen)), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Celsius, "Temperature", "Temperature of the GPU in degrees Celsius.")
                        .by(&gpu::TEMPERATURE.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Watts, "Power", "Power that the GPU draws, in watts.")
                        .by(&gpu::POWER.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                ],
            ),
        ],
    }
}
