//! What verification costs when a model is loaded, what hashing costs when it is written, and what signing costs: prints one line of
//! JSON. `make bench-verify` runs it.
//!
//! Each round hashes the model and verifies its signature, loads it as it is, and loads it as a server does: while it is hashed, from
//! the bytes that are hashed. They take turns, so that other work on the machine meets all of them.
//!
//! `verify_speed MODEL_DIR OMS_BUNDLE KEY ROUNDS`. The model is written beside the bundle, and removed again.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use codex::{
    atomic_fs,
    model::{Generator, read_directory, write_hashed},
};
use codex_configs::Device;
use codex_provenance::{files, manifest::Manifest, oms};
use codex_signing::{
    key::{PrivateKey, PublicKey, Signer as _},
    verify::verify_signature,
};
use serde_json::json;

/// The statements that are signed for a promotion: OMS, promotion and three attestations.
const STATEMENTS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, bundle, key, rounds] = arguments.as_slice() else {
        return Err("usage: verify_speed MODEL_DIR OMS_BUNDLE KEY ROUNDS".into());
    };
    let written = writing(Path::new(model), &Path::new(bundle).with_file_name("written"), rounds.parse()?)?;
    let (model, bundle) = (Path::new(model), fs::read(bundle)?);
    let key = PublicKey::from_pem(&fs::read_to_string(key)?)?;
    let (mut plain, mut verified, mut hashing) = (Vec::new(), Vec::new(), Vec::new());
    let (mut plain_work, mut verified_work) = (Vec::new(), Vec::new());
    for _ in 0..rounds.parse::<usize>()? {
        let entries = files::walk(model, &BTreeSet::new())?;
        let begun = Instant::now();
        let (manifest, _) = Manifest::hold(&entries, kept)?;
        verify_signature(&manifest, &bundle, &key, None)?;
        hashing.push(begun.elapsed());
        let (begun, work) = (Instant::now(), processor_time()?);
        drop(Generator::load_directory(model, 1, Device::Cpu)?);
        plain.push(begun.elapsed());
        plain_work.push(processor_time()? - work);
        let (begun, work) = (Instant::now(), processor_time()?);
        let (held, unhashed) = Manifest::begin(&entries, kept)?;
        let (verified_all, loaded) = thread::scope(|scope| {
            let loading = scope.spawn(|| Generator::load_held(held, 1, Device::Cpu));
            let manifest = unhashed.finish_beside_loading();
            (manifest.map(|manifest| verify_signature(&manifest, &bundle, &key, None)), loading.join())
        });
        verified_all??;
        loaded.map_err(|_| "the thread that loads panicked")??;
        verified.push(begun.elapsed());
        verified_work.push(processor_time()? - work);
    }
    let payload = oms::payload(&Manifest::of_dir(model)?, "model");
    let begun = Instant::now();
    let signer = PrivateKey::generate()?;
    for _ in 0..STATEMENTS {
        signer.sign(&payload)?;
    }
    let (of_all, of_one) = (|times: &[Duration]| times.iter().map(seconds).collect::<Vec<_>>(), begun.elapsed());
    let (plain, verified, hashing) = (of_all(&plain), of_all(&verified), of_all(&hashing));
    println!(
        "{}",
        json!({
            "plain": plain, "plainWork": plain_work, "verified": verified, "verifiedWork": verified_work, "hashing": hashing,
            "signing": seconds(&of_one), "written": of_all(&written[0]), "writtenHashed": of_all(&written[1]),
        })
    );
    Ok(())
}

/// Returns how long it takes in each round to write the files of a model to `place`, and to do so while they are hashed.
fn writing(model: &Path, place: &Path, rounds: usize) -> Result<[Vec<Duration>; 2], Box<dyn Error>> {
    let files = read_directory(model)?;
    let (mut plain, mut hashed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        atomic_fs::write_directory(place, &files)?;
        plain.push(begun.elapsed());
        atomic_fs::remove_directory(place)?;
        let begun = Instant::now();
        write_hashed::<Box<dyn Error>>(place, &files)?;
        hashed.push(begun.elapsed());
        atomic_fs::remove_directory(place)?;
    }
    Ok([plain, hashed])
}

/// Returns the seconds that all threads of this process have run.
fn processor_time() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program, in parentheses, may have spaces. User and system time are the 14th and 15th field, in hundredths.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.map(str::parse::<f64>).sum::<Result<_, _>>()?;
    Ok(ticks / 100.0)
}

/// As servers do: weights are read from their files, and everything else is kept.
fn kept(name: &str) -> bool {
    !name.ends_with(".safetensors")
}

fn seconds(time: &Duration) -> f64 {
    time.as_secs_f64()
}
