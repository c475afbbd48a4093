//! Takes the model of a former run that had the same inputs, instead of training. Does I/O.
//!
//! The controller tells of a run only if its signed provenance states what this run was given. Here everything is computed again: the
//! digests of data, base and model, and what computes. With all of them equal, training would end in the same bits.

use std::{collections::BTreeMap, path::Path};

use codex_provenance::{DataDigest, ModelDigest, manifest::Manifest};
use codex_reports::{Adoption, FORMER_VARIABLE, Former, Model};

use super::Session;
use crate::{
    artifacts::{environment::variable, metadata::AdoptedModel},
    error::chain,
    model::ModelFiles,
    training::{
        Base, TrainError,
        attempts::{Phase, RunLock},
        checkpoint::Origin,
        records::Artifacts,
    },
};

/// The characters of a reason in a report.
const MAX_REASON: usize = 1_000;

/// Returns the former run that the controller tells of. A description that cannot be read is logged, and the run trains.
pub(crate) fn told_former() -> Option<Former> {
    let read = codex_json::from_str(&variable(FORMER_VARIABLE)?);
    read.inspect_err(|why| tracing::warn!(error = chain(why), "{FORMER_VARIABLE} cannot be read, so the run trains"))
        .ok()
}

impl Session<'_> {
    /// Takes the model of the former run, if there is one, and everything that decides the bits is as it was. Otherwise reports why not, and
    /// returns `None`. `resumes` says whether the run has a checkpoint of its own.
    ///
    /// # Errors
    /// When the model cannot be written.
    pub(super) fn adopt(
        &self,
        (origin, resumes): (&Origin, bool),
        parameters: usize,
        lock: &mut RunLock,
    ) -> Result<Option<Model>, TrainError> {
        let Some(former) = self.former else { return Ok(None) };
        let data: BTreeMap<String, DataDigest> =
            self.reporter.state().data.into_iter().map(|file| (file.name, file.sha256)).collect();
        let differs = if resumes {
            Some("this run has taken steps of its own".to_owned())
        } else {
            self.difference(former, &data, origin)
        };
        let files = match differs.map_or_else(|| recorded_files(former), Err) {
            Ok(files) => files,
            Err(why) => {
                self.report_adoption(former, Some(why.chars().take(MAX_REASON).collect()));
                let Former { run, model, .. } = former;
                self.notice(format!(
                    "the run trains, and does not adopt the model {} of the former run {} ({}): {why}",
                    model.short(),
                    run.name,
                    run.uid
                ));
                return Ok(None);
            }
        };
        lock.check()?;
        lock.enter(Phase::Exporting);
        let artifacts = Artifacts::open(self.output)?;
        self.describe_untrained(&artifacts, &data, lock.epoch())?;
        artifacts.adopted(AdoptedModel {
            run: former.run.name.clone(),
            uid: former.run.uid.clone(),
            provenance: former.provenance,
        })?;
        let written = self.write_model(&files, parameters)?;
        self.report_adoption(former, None);
        tracing::info!(run = former.run.uid, model = %written.digest, "adopted the model of a former run");
        Ok(Some(written))
    }

    /// Reports whether the model was taken, or why it was not.
    fn report_adoption(&self, former: &Former, refused: Option<String>) {
        let (run, model) = (former.run.uid.clone(), former.model);
        self.reporter.update(|report| report.adoption = Some(Adoption { run, model, refused }));
    }

    /// Returns the first input or part of the computation that differs from the former run's.
    fn difference(&self, former: &Former, data: &BTreeMap<String, DataDigest>, origin: &Origin) -> Option<String> {
        let mut names = former.data.keys().chain(data.keys());
        if let Some(name) = names.find(|name| former.data.get(*name) != data.get(*name)) {
            let told = |digest: Option<&DataDigest>| digest.map_or_else(|| "absent".to_owned(), ToString::to_string);
            let (then, now) = (told(former.data.get(name)), told(data.get(name)));
            return Some(format!("the data {name} is {now} now, and was {then}"));
        }
        let base = self.base.map(Base::digest);
        if base != former.base {
            let told = |digest: Option<ModelDigest>| digest.map_or_else(|| "none".to_owned(), |it| it.to_string());
            return Some(format!("the base is {} now, and was {}", told(base), told(former.base)));
        }
        let Some(now) = origin.computation() else { return Some("this process cannot name what computes".to_owned()) };
        let then = &former.computation;
        let same = now.program == then.program && now.engine == then.engine && now.kernels == then.kernels;
        (!same).then(|| {
            format!(
                "the program {} with the engine {} and the kernels {} computes now, and it was the program {} with {} and {}",
                now.program.short(),
                now.engine,
                now.kernels,
                then.program.short(),
                then.engine,
                then.kernels
            )
        })
    }
}

/// Returns the files of the former model, which have the recorded digest.
///
/// # Errors
/// A sentence that says what is wrong with them.
fn recorded_files(former: &Former) -> Result<ModelFiles, String> {
    let place = Path::new(&former.directory).join("model");
    let differs = |found: &Manifest| {
        let found = found.digest();
        (found != former.model).then(|| format!("{} has the digest {found}, not {}", place.display(), former.model))
    };
    // Hashed in pieces first: files of any size may lie there.
    let found = Manifest::of_dir(&place).map_err(|why| chain(&why))?;
    if let Some(why) = differs(&found) {
        return Err(why);
    }
    let (read, files) = Manifest::read_dir(&place).map_err(|why| chain(&why))?;
    differs(&read).map_or(Ok(files), Err)
}
