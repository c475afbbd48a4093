//! What must compute a run, so that it can reproduce the bits of another one. Pure.

use codex_provenance::Sha256;

use super::{TrainError, checkpoint};

/// What must compute a run. Everything that is not given may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Required {
    /// SHA-256 that this program must have, for the bits of a run that it computed. Otherwise nothing is trained (exit code 2).
    #[arg(long, value_name = "SHA256")]
    pub require_program: Option<Sha256>,
    /// Code path that the engine must have, such as cpu-f32, likewise.
    #[arg(long, value_name = "PATH")]
    pub require_engine: Option<String>,
    /// Architecture and instruction set that the kernels must use, such as `x86_64 avx512`, likewise.
    #[arg(long, value_name = "KERNELS")]
    pub require_kernels: Option<String>,
}

impl Required {
    /// Checks what computes in this process.
    ///
    /// # Errors
    /// [`TrainError::Unreproducible`] with the first difference.
    pub(crate) fn check(&self, here: &checkpoint::Origin) -> Result<(), TrainError> {
        let differs = |what: &str, required: &str, found: Option<&str>, advice: &str| {
            let found = found.unwrap_or("unknown");
            Err(TrainError::Unreproducible(format!(
                "the {what} must be {required:?}, for the bits of the run that is reproduced, and is {found:?} here: {advice}"
            )))
        };
        if let Some(required) = self.require_program.map(|digest| digest.to_string())
            && here.program.as_ref() != Some(&required)
        {
            return differs("program", &required, here.program.as_deref(), "use the image that the run used");
        }
        if let Some(required) =
            self.require_kernels.as_ref().filter(|required| here.kernels.as_ref() != Some(*required))
        {
            return differs("kernels", required, here.kernels.as_deref(), "use a node with these instructions");
        }
        match &self.require_engine {
            Some(required) if here.engine != *required => {
                differs("engine", required, Some(&here.engine), "use a node with the instructions of the run")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use codex_reports::Computation;

    use super::*;

    fn here() -> checkpoint::Origin {
        checkpoint::Origin::here(codex_engine::Settings::default())
    }

    #[test]
    fn this_process_meets_what_it_reports_and_nothing_else() {
        let Computation { program, engine, kernels, mixed } = here().computation().unwrap();
        assert!(!mixed);
        let own = Required {
            require_program: Some(program),
            require_engine: Some(engine),
            require_kernels: Some(kernels.clone()),
        };
        own.check(&here()).unwrap();
        Required::default().check(&here()).unwrap();
        for (other, named) in [
            (Required { require_program: Some(Sha256::of("other")), ..own.clone() }, "the program must be"),
            (Required { require_kernels: Some("x86_64 none".to_owned()), ..own.clone() }, "the kernels must be"),
            (Required { require_engine: Some("abacus".to_owned()), ..own.clone() }, "the engine must be"),
        ] {
            let failure = other.check(&here()).unwrap_err().failure();
            assert!(failure.is_final && failure.reason == "Unreproducible", "{failure:?}");
            assert!(failure.message.starts_with(named), "{failure:?}");
        }
    }

    #[test]
    fn a_state_of_another_program_or_of_unknown_origin_mixes_the_run() {
        let first = here().after(Some(&here()));
        assert!(!first.mixed);
        let other = checkpoint::Origin { program: Some("0".repeat(64)), ..here() };
        let mixed = here().after(Some(&other));
        assert!(mixed.mixed && here().after(None).mixed && here().after(Some(&mixed)).mixed, "it stays mixed");
        assert!(here().after(Some(&checkpoint::Origin { kernels: None, ..here() })).mixed);
        let threads = checkpoint::Origin { threads: 77, ..here() };
        assert!(!here().after(Some(&threads)).mixed, "threads change no bit");
    }

    #[test]
    fn a_state_of_another_gpu_or_driver_mixes_the_run() {
        let on = |gpu: Option<&str>| checkpoint::Origin {
            engine: "candle-cuda-f32".to_owned(),
            kernels: None,
            gpu: gpu.map(str::to_owned),
            ..here()
        };
        let card = Some("H100, driver 580.65");
        assert!(!on(card).after(Some(&on(card))).mixed);
        for (before, now) in [(card, Some("H100, driver 580.82")), (card, None), (None, card), (None, None)] {
            assert!(on(now).after(Some(&on(before))).mixed, "{before:?} {now:?}");
        }
    }
}
