//! Verification: what a server refuses before it answers, and golden tokens.

use super::*;

/// Starts a server that must refuse and returns why it does.
async fn refusal(case: &Case) -> (ServeError, ServingState) {
    let server = case.start().await;
    // A refused model is never ready.
    while !server.end.is_finished() {
        if let Ok((status, _, _)) = request(server.address, "/ready", None).await {
            assert_eq!(status, 503);
        }
    }
    (server.end.await.unwrap().unwrap_err(), server.reporter.state())
}

/// Weights are loaded while they are hashed, but only as the signed configuration describes them.
#[test]
fn weights_that_cannot_be_loaded_are_refused_as_changed() {
    for (file, described) in [("model.safetensors", true), ("config.json", false)] {
        let case = Case::new(64);
        let (path, paths) = (case.path("model").join(file), case.paths());
        let mut bytes = fs::read(&path).unwrap();
        // The first character of the JSON in both files: neither can be parsed.
        let at = if described { 8 } else { 0 };
        assert_eq!(bytes[at], b'{');
        bytes[at] = b'x';
        fs::write(&path, bytes).unwrap();
        assert_eq!(Unverified::open(&paths, &case.expected).unwrap().0.described, described, "{file}");
        let mut was_verified = false;
        let room = (2, codex_configs::Device::Cpu);
        let refused = load_verified(&paths, &case.expected, room, || was_verified = true).err().unwrap();
        assert!(matches!(refused, ServeError::Verify(_)) && !was_verified, "{file}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_refused_and_named() {
    let case = Case::new(64);
    let path = case.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (error, state) = refusal(&case).await;
    let told =
        "the model is refused: the files of the model differ from the signed ones: model.safetensors was changed: ";
    assert!(error.failure().message.starts_with(told), "{error}");
    assert_eq!((error.exit(), error.failure().reason.as_str()), (exit::BAD_INPUT, "VerificationFailed"));
    assert!(error.failure().is_final);
    assert_eq!((state.stage, state.verified), (Stage::Starting, None));
}

/// A sparse file of 1 TiB, an added file and a missing one are refused before any byte is read.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_sizes_are_checked_before_anything_is_read() {
    let told = async |spoil: &dyn Fn(&Case)| {
        let case = Case::new(64);
        spoil(&case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let sparse = |path: std::path::PathBuf| {
        fs::OpenOptions::new().create(true).write(true).truncate(false).open(path).unwrap().set_len(1 << 40).unwrap();
    };
    let grown = told(&|case| sparse(case.path("model/model.safetensors"))).await;
    assert!(grown.contains("a file has another size") && grown.contains("model.safetensors 1099511627776"), "{grown}");
    let added = told(&|case| sparse(case.path("model/pickle.bin"))).await;
    assert!(added.ends_with("the files of the model differ from the signed ones: pickle.bin was added"), "{added}");
    let missing = told(&|case| fs::remove_file(case.path("model/tokenizer.json")).unwrap()).await;
    assert!(missing.ends_with("tokenizer.json is missing"), "{missing}");
    let emptied = told(&|case| {
        fs::remove_dir_all(case.path("model")).unwrap();
        fs::create_dir(case.path("model")).unwrap();
    })
    .await;
    assert!(emptied.contains("contains no files: the volume was replaced or emptied; restore its files"), "{emptied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mismatched_files_are_refused() {
    let told = async |spoil: &dyn Fn(&mut Case)| {
        let mut case = Case::new(64);
        spoil(&mut case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let other = Case::new(63);
    let copy = |case: &Case, name: &str| fs::copy(other.path(name), case.path(name)).map(|_| ()).unwrap();
    let key = told(&|case| copy(case, "key.pem")).await;
    assert!(key.contains("the public key has the fingerprint "), "{key}");
    let oms = told(&|case| copy(case, "oms.json")).await;
    assert!(oms.contains("the OMS bundle was signed with another key"), "{oms}");
    let promotion = told(&|case| copy(case, "promotion.json")).await;
    assert!(promotion.contains("the promotion bundle was signed with another key"), "{promotion}");
    let ring = told(&|case| case.expected.ring = "main".into()).await;
    assert!(ring.contains("made for the ring \"0D_base_\", but \"main\" is required"), "{ring}");
    let missing = told(&|case| fs::remove_file(case.path("promotion.json")).unwrap()).await;
    assert!(missing.contains("the promotion bundle "), "{missing}");
    let link = told(&|case| {
        std::os::unix::fs::symlink("/etc/hostname", case.path("model/extra")).unwrap();
    })
    .await;
    assert!(link.contains("\"extra\" is a symbolic link"), "{link}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_model_that_cannot_be_loaded_never_answers() {
    let case = Case::new(64);
    fs::remove_dir_all(case.path("model")).unwrap();
    let error = refusal(&case).await.0;
    assert_eq!((error.failure().reason.as_str(), error.exit()), ("ModelUnreadable", exit::FAILED));

    let mut files = files(64);
    files.remove("tokenizer.json");
    let error = checked(files).err().unwrap();
    assert_eq!(error.failure().reason, "ModelUnusable");
    assert!(error.failure().message.contains("tokenizer.json"), "{}", error.failure().message);
    // Its context is too short even for the pinned prompts.
    let error = checked(super::files(6)).err().unwrap();
    assert_eq!(error.failure().reason, "SelfCheckFailed");
}

/// Returns the golden tokens of the model that a case serves.
fn golden() -> Golden {
    generator(64, 2).golden(["347+86:", "5+5:"].into_iter()).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_tokens_are_reproduced_before_the_server_is_ready() {
    let elsewhere = Golden { instruction_set: "another".to_owned(), ..golden() };
    for (golden, found) in [(golden(), Reproduction::Equal), (elsewhere, Reproduction::Near)] {
        let case = Case::promoted(files(64), Some(golden));
        let server = case.ready().await;
        assert_eq!(server.reporter.state().golden_tokens, Some(found));
        let status: Value = serde_json::from_str(&server.get("/status").await.1).unwrap();
        assert_eq!(status["verified"]["golden_tokens"], found.name());
        let (_, metrics) = server.get("/metrics").await;
        let line = format!("codex_ml_inference_golden_records_total{{result=\"{}\"}} 1", found.name());
        assert!(metrics.contains(&line), "{metrics}");
        // Nothing of it is left in the prefix cache, and all slots are free.
        let (status, reply) = server.infer(json!({ "prompt": "347+86:", "max_new_tokens": 5 })).await;
        assert_eq!(status, 200, "{reply}");
        server.stop.requested.cancel();
        server.end.await.unwrap().unwrap();
    }
}

/// The bytes are those that were signed, but the record is another one, as if the kernels had changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_generates_other_tokens_is_never_ready() {
    let mut forged = golden();
    let mut tokens = forged.read().unwrap().remove(1);
    let right = tokens.tokens[2];
    tokens.tokens[2] = if right == 5 { 6 } else { 5 };
    forged.prompts[1] = GoldenPrompt::new(&tokens);
    let (error, state) = refusal(&Case::promoted(files(64), Some(forged))).await;
    let failure = error.failure();
    assert_eq!((error.exit(), failure.reason.as_str()), (exit::BAD_INPUT, "GoldenTokensDiffer"));
    assert!(failure.is_final);
    let told = "the model does not reproduce the golden tokens of Evaluation lite: prompt 2, token 3: ";
    assert!(failure.message.starts_with(told), "{}", failure.message);
    assert!(failure.message.contains(&format!("but the model generates {right} (")), "{}", failure.message);
    assert_eq!((state.stage, state.golden_tokens), (Stage::Starting, None));
    // A malformed record never gets so far: the statement is refused.
    let malformed = Golden { prompts: Vec::new(), ..golden() };
    let error = refusal(&Case::promoted(files(64), Some(malformed))).await.0;
    assert_eq!(error.failure().reason, "VerificationFailed", "{error}");
}

#[test]
fn a_server_takes_only_the_root_and_the_signers_of_its_arguments() {
    let mut case = Case::new(64);
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures/keyless/trusted_root.json");
    let identity = Identity { issuer: "https://a".to_owned(), subject: "https://b".to_owned() };
    let told = |paths: &Paths, expected: &Expected| verified(paths, expected).err().unwrap();
    let mut paths = case.paths();
    paths.identities = vec![IdentityPattern::from(&identity)];
    let with = |digest: Sha256| Some(TrustedRoot { path: root.clone(), digest });
    paths.trusted_root = with(Sha256::of("another root"));
    let why = told(&paths, &case.expected);
    assert!(matches!(why, ServeError::Root { .. }) && why.exit() == exit::BAD_INPUT, "{why}");
    // An identity whose fingerprint is not among the arguments.
    paths.trusted_root = with(Sha256::of(fs::read(&root).unwrap()));
    let why = told(&paths, &case.expected).to_string();
    assert!(why.contains(&identity.fingerprint().to_string()), "{why}");
    // Keys and identities together: the key verifies its own bundles.
    case.expected.key_fingerprints.push(identity.fingerprint());
    assert!(verified(&paths, &case.expected).is_ok());
    // An identity alone: what a key signed is refused.
    paths.public_keys.clear();
    let why = told(&paths, &case.expected).to_string();
    assert!(why.contains("is signed with a key; an identity is required"), "{why}");
    paths.trusted_root = Some(TrustedRoot { path: case.path("missing"), digest: Sha256::of("x") });
    assert!(told(&paths, &case.expected).to_string().contains("trusted root"));
}

/// A server verifies the attestations that its arguments demand, over the same model and with the same key.
#[tokio::test(flavor = "multi_thread")]
async fn demanded_attestations_are_verified_before_the_server_is_ready() {
    let attested = || {
        let mut case = Case::new(64);
        case.attest(None);
        case
    };
    attested().ready().await;
    let told = async |spoil: &dyn Fn(&mut Case)| {
        let mut case = attested();
        spoil(&mut case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let sign = |case: &Case, kind: AttestationKind, payload: &[u8]| {
        fs::write(case.path(kind.entry()), case.key.sign(payload).unwrap()).unwrap();
    };
    let [provenance, test_result, _, summary] = AttestationKind::ALL;

    let missing = told(&|case| fs::remove_file(case.path(provenance.entry())).unwrap()).await;
    assert!(missing.contains("the attestation ") && missing.contains("slsa-provenance.json"), "{missing}");
    let other_kind = told(&|case| {
        fs::copy(case.path(test_result.entry()), case.path(provenance.entry())).unwrap();
        case.attestations.retain(|(kind, _)| *kind == provenance);
    })
    .await;
    assert!(other_kind.contains("the attestation slsaProvenance is missing"), "{other_kind}");
    let twice = told(&|case| {
        fs::copy(case.path(test_result.entry()), case.path(provenance.entry())).unwrap();
    })
    .await;
    assert!(twice.contains("testResult is given twice"), "{twice}");
    let predicate_type = told(&|case| {
        fs::copy(case.path("promotion.json"), case.path(summary.entry())).unwrap();
    })
    .await;
    assert!(predicate_type.contains("its predicate type is \"https://codex-ml.dev/promotion/v2\""), "{predicate_type}");
    let another_model = told(&|case| {
        let other = Promotion { model: ModelDigest(Sha256::of("another model")), ..case.promotion.clone() };
        for Unsigned { kind, payload } in attestations(&other, &case.build()) {
            sign(case, kind, &payload);
        }
    })
    .await;
    assert!(another_model.contains("it was made for another model"), "{another_model}");
    let another_promotion = told(&|case| {
        let mut other = case.promotion.clone();
        other.reasons.training.run.uid = "another".to_owned();
        let [Unsigned { kind, payload }, ..] = attestations(&other, &case.build());
        sign(case, kind, &payload);
    })
    .await;
    assert!(another_promotion.contains("the attestation is refused: "), "{another_promotion}");
    let foreign = told(&|case| case.attest(Some(&PrivateKey::generate().unwrap()))).await;
    assert!(foreign.contains("the attestation was signed with another key"), "{foreign}");
    let unsigned = told(&|case| {
        let path = case.path(test_result.entry());
        let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        bundle["dsseEnvelope"]["signatures"] = json!([]);
        fs::write(path, bundle.to_string()).unwrap();
    })
    .await;
    assert!(unsigned.contains("the attestation has 0 signatures"), "{unsigned}");
    let forged = told(&|case| {
        let path = case.path(test_result.entry());
        let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let other = fs::read(case.path(provenance.entry())).unwrap();
        let other: Value = serde_json::from_slice(&other).unwrap();
        bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"].clone();
        fs::write(path, bundle.to_string()).unwrap();
    })
    .await;
    assert!(forged.contains("the attestation ") && forged.contains("signature"), "{forged}");
}

#[test]
fn the_public_key_is_read_through_the_links_of_a_config_map() {
    let case = Case::new(64);
    let target = case.path("..data");
    fs::create_dir(&target).unwrap();
    fs::rename(case.path("key.pem"), target.join("key.pem")).unwrap();
    std::os::unix::fs::symlink(Path::new("..data/key.pem"), case.path("key.pem")).unwrap();
    assert!(verified(&case.paths(), &case.expected).is_ok());
}

/// Loads a model from memory, and runs the self-check.
fn checked(files: BTreeMap<String, Vec<u8>>) -> Result<Generator, ServeError> {
    let held = codex_provenance::sealed::Held { files, ..Default::default() };
    let mut generator = Generator::load_held(held, 2, codex_configs::Device::Cpu).map_err(ServeError::Model)?;
    check(&mut generator)?;
    Ok(generator)
}

/// Verifies a model without loading it.
fn verified(paths: &Paths, expected: &Expected) -> Result<codex_signing::verify::Verified, ServeError> {
    Unverified::open(paths, expected)?.0.verify(false)
}
