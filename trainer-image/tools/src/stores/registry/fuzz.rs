//! Mutated manifests of artefacts; see [`codex_fuzz`].

mod targets {
    use codex_fuzz::{TEXT, Target};
    use codex_provenance::{
        Sha256,
        manifest::{File, Manifest},
        oms::SIGNATURE,
    };

    use crate::stores::registry::pack::{self, Packed};

    pub(super) fn artefacts() -> Target {
        let file = |path: &str| File { path: path.to_owned(), size: 7, sha256: Sha256::of(path) };
        let model = Manifest::of_hashed(vec![file("config.json"), file("model.safetensors")]).unwrap();
        let (packed, _) = pack::pack(&model, Some(&file(SIGNATURE)), Some(br#"{"dtype": "bfloat16"}"#));
        Target::new("artefacts", vec![packed.bytes()], TEXT, |bytes| {
            Packed::parse(bytes).is_ok_and(|packed| packed.contents().is_ok())
        })
    }
}

codex_fuzz::tests! { artefacts }
