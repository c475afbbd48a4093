//! Runs that are told of a former run with the same inputs: they take its model, or train.

use std::{fs, path::Path};

use codex_configs::{Resolved, Training};
use codex_provenance::{DataDigest, ModelDigest, Sha256, promotion::Object, reproduction::Computation};
use codex_reports::{Former, TrainingState};

use crate::{
    artifacts::metadata::RunMetadata,
    reporting::Reporter,
    training::{
        Session,
        test_support::{Attempt, attempt, finished, speck},
    },
};

/// Trains in `directory`, and returns what a later run is told of that.
fn former(run: &Resolved<Training>, directory: &Path) -> Former {
    let trained = attempt(run, directory, false);
    let computation = trained.state.computation.clone().unwrap();
    Former {
        directory: directory.to_str().unwrap().to_owned(),
        run: Object { name: "cot".to_owned(), uid: "44bb".to_owned() },
        model: finished(&trained).digest,
        data: trained.state.data.iter().map(|file| (file.name.clone(), file.sha256)).collect(),
        base: None,
        computation: Computation {
            program: computation.program,
            engine: computation.engine,
            kernels: computation.kernels,
        },
        image_id: "codex@sha256:0123".to_owned(),
        completed_at: None,
        attested: false,
        provenance: Sha256::of("provenance"),
    }
}

fn told(run: &Resolved<Training>, former: &Former, output: &Path) -> Attempt {
    let reporter = Reporter::<TrainingState>::nowhere();
    let outcome = Session { former: Some(former), ..Session::new(run, &[], output, &reporter, &|| false) }.run();
    Attempt { outcome, state: reporter.state() }
}

#[test]
fn the_model_of_a_former_run_is_taken_without_a_step() {
    let (directory, run) = (tempfile::tempdir().unwrap(), speck(&[]));
    let former = former(&run, &directory.path().join("44bb"));
    let output = directory.path().join("77aa");
    let taken = told(&run, &former, &output);
    assert_eq!(finished(&taken).digest, former.model);
    let adoption = taken.state.adoption.unwrap();
    assert_eq!((adoption.run.as_str(), adoption.model, adoption.refused), ("44bb", former.model, None));
    assert_eq!(
        (taken.state.steps_executed, taken.state.progress),
        (0, None),
        "no number of the former run is repeated"
    );
    let (here, there) = (output.join("model"), Path::new(&former.directory).join("model"));
    for file in fs::read_dir(&there).unwrap() {
        let name = file.unwrap().file_name();
        assert_eq!(fs::read(here.join(&name)).unwrap(), fs::read(there.join(&name)).unwrap(), "{name:?}");
    }
    assert!(!output.join("checkpoints").exists() && !output.join("artifacts/metrics.ndjson").exists());
    let metadata = fs::read(output.join("artifacts/run_metadata.json")).unwrap();
    let metadata: RunMetadata = serde_json::from_slice(&metadata).unwrap();
    assert_eq!(metadata.adopted.unwrap().uid, "44bb");
    // The next attempt says the same, as after a kill before the report.
    assert!(told(&run, &former, &output).state.adoption.unwrap().is_done());
}

/// A change of what a run is told, and what its refusal says.
#[test]
fn a_run_trains_if_anything_differs_from_the_former_run() {
    type Edit = fn(&mut Former);
    let other: Edit = |former| former.data.values_mut().for_each(|it| *it = DataDigest(Sha256::of("x")));
    let more: Edit = |former| {
        former.data.insert("more".to_owned(), DataDigest(Sha256::of("x")));
    };
    let changes: [(Edit, &str); 8] = [
        (other, "the data arithmetic is "),
        (more, "the data more is absent now"),
        (|former| former.base = Some(ModelDigest(Sha256::of("x"))), "the base is none now"),
        (|former| former.computation.program = Sha256::of("x"), "computes now, and it was the program"),
        (|former| former.computation.engine = "abacus".to_owned(), "with abacus"),
        (|former| former.computation.kernels = "x86_64 none".to_owned(), "and x86_64 none"),
        (|former| former.model = ModelDigest(Sha256::of("x")), "has the digest"),
        (|former| former.directory.push_str("-gone"), "44bb-gone"),
    ];
    let (directory, run) = (tempfile::tempdir().unwrap(), speck(&[]));
    let genuine = former(&run, &directory.path().join("44bb"));
    for (index, (edit, why)) in changes.into_iter().enumerate() {
        let mut changed = genuine.clone();
        edit(&mut changed);
        let trained = told(&run, &changed, &directory.path().join(index.to_string()));
        assert_refused(&trained, why);
        assert_eq!(finished(&trained).digest, genuine.model, "training ends in the same bits");
    }
}

/// Whoever can write to the volume can write into any folder of it.
#[test]
fn a_folder_with_other_files_is_not_taken() {
    let (directory, run) = (tempfile::tempdir().unwrap(), speck(&[]));
    let genuine = former(&run, &directory.path().join("44bb"));
    let model = directory.path().join("44bb/model");
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    let mut altered = weights.clone();
    *altered.last_mut().unwrap() ^= 1;
    fs::write(model.join("model.safetensors"), altered).unwrap();
    let trained = told(&run, &genuine, &directory.path().join("altered"));
    assert_refused(&trained, "has the digest");
    assert_eq!(finished(&trained).digest, genuine.model);
    fs::write(model.join("model.safetensors"), weights).unwrap();
    fs::write(model.join("more.json"), "{}").unwrap();
    assert_refused(&told(&run, &genuine, &directory.path().join("more")), "has the digest");
}

#[test]
fn a_run_that_has_a_checkpoint_goes_on_with_it() {
    let (directory, run) = (tempfile::tempdir().unwrap(), speck(&[]));
    let genuine = former(&run, &directory.path().join("44bb"));
    let output = directory.path().join("77aa");
    finished(&attempt(&run, &output, false));
    assert_refused(&told(&run, &genuine, &output), "has taken steps of its own");
}

fn assert_refused(trained: &Attempt, why: &str) {
    let refused = trained.state.adoption.as_ref().unwrap().refused.as_ref().unwrap();
    assert!(refused.contains(why), "{refused}");
    assert!(trained.state.notices.iter().any(|notice| notice.contains(refused)), "{:?}", trained.state.notices);
    finished(trained);
}
