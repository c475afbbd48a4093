//! Training, checks and uses of tokenizers.

use std::path::PathBuf;

use super::{
    train::{Kind, Train},
    *,
};

const TEXT: &str =
    "the cat sat on the mat\nthe dog sat on the log\n\nna\u{ef}ve caf\u{e9} 12 + 30 = 42\nthe cat and the dog\n";

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        std::fs::write(scene.at("text.txt"), TEXT.repeat(4)).unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn train(&self, kind: Kind, vocab_size: usize, output: &str) -> Result<String, TokenizingError> {
        let command = Train {
            kind,
            data: vec![self.at("text.txt")],
            vocab_size,
            min_frequency: 2,
            character_coverage: 1.0,
            special: vec!["<|endoftext|>".to_owned()],
            output: self.at(output),
        };
        command.run()
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    for (kind, size) in [(Kind::Bpe, 300), (Kind::Unigram, 60), (Kind::Whitespace, 30)] {
        let scene = Scene::new();
        for output in ["one", "two", "three"] {
            scene.train(kind, size, output).unwrap();
        }
        for name in ["tokenizer.json", "manifest.json"] {
            let [one, two, three] =
                ["one", "two", "three"].map(|output| std::fs::read(scene.at(output).join(name)).unwrap());
            assert!(one == two && two == three, "{kind:?} {name}");
        }
        let tokenizer = Tokenizer::load(&scene.at("one")).unwrap();
        assert!(tokenizer.vocabulary() <= size, "{kind:?}");
        assert!(tokenizer.specials().iter().any(|id| tokenizer.token(*id).as_deref() == Some("<|endoftext|>")));
        assert_eq!(
            tokenizer.decode(&tokenizer.encode_more("the cat sat").unwrap()).unwrap(),
            "the cat sat",
            "{kind:?}"
        );
        let validate = Validate { tokenizer: Named { path: scene.at("one") }, data: vec![] };
        validate.run().unwrap();
    }
}

#[test]
fn a_tokenizer_that_loses_text_is_refused_with_the_line() {
    let scene = Scene::new();
    scene.train(Kind::Bpe, 300, "bpe").unwrap();
    scene.train(Kind::Whitespace, 30, "words").unwrap();
    std::fs::write(scene.at("new.txt"), "the cat\n\nan unseen \u{1f980}\n").unwrap();
    let validate =
        |name: &str| Validate { tokenizer: Named { path: scene.at(name) }, data: vec![scene.at("new.txt")] }.run();
    assert!(validate("bpe").unwrap().contains("2 lines came back"));
    assert!(matches!(validate("words"), Err(TokenizingError::Lossy { line: 3, .. })));
    let changed = std::fs::read_to_string(scene.at("bpe").join("tokenizer.json")).unwrap() + " ";
    std::fs::write(scene.at("bpe").join("tokenizer.json"), changed).unwrap();
    assert!(matches!(validate("bpe"), Err(TokenizingError::Manifest(_))));
}

#[test]
fn ids_are_padded_cut_and_decoded() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures/qwen2");
    let encode = |text: &str, max_length, padding: &str| {
        let tokenizer = Named { path: path.clone() };
        let told = Encode { tokenizer, text: text.to_owned(), plain: false, max_length, padding: padding.to_owned() };
        let told: serde_json::Value = serde_json::from_str(&told.run().unwrap()).unwrap();
        serde_json::from_value::<Vec<u32>>(told["ids"].clone()).unwrap()
    };
    let whole = encode("The capital of France", None, "do_not_pad");
    assert_eq!(encode("The capital of France", Some(2), "do_not_pad"), whole[..2]);
    let padded = encode("The capital of France", Some(whole.len() + 2), "max_length");
    let pad = Tokenizer::load(&path).unwrap().pad().unwrap();
    assert_eq!(padded[..whole.len()], whole);
    assert_eq!(padded[whole.len()..], [pad, pad]);
    let decode = |ids: Vec<u32>| Decode { tokenizer: Named { path: path.clone() }, ids }.run();
    assert_eq!(decode(whole).unwrap(), "The capital of France");
    assert!(matches!(decode(vec![1 << 20]), Err(TokenizingError::Id { .. })));
}

#[test]
fn an_exported_tokenizer_has_the_same_bytes() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures/mistral");
    let place = tempfile::tempdir().unwrap();
    let export = || Export { tokenizer: Named { path: path.clone() }, output: place.path().join("out") }.run();
    export().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert_eq!(
            std::fs::read(place.path().join("out").join(name)).unwrap(),
            std::fs::read(path.join(name)).unwrap()
        );
    }
    assert!(matches!(export(), Err(TokenizingError::Exists(_))));
}

#[test]
fn counts_and_descriptions_are_json() {
    let scene = Scene::new();
    scene.train(Kind::Bpe, 300, "bpe").unwrap();
    let tokenizer = Tokenizer::load(&scene.at("bpe")).unwrap();
    let stats: serde_json::Value =
        serde_json::from_str(&report::stats(&tokenizer, &[scene.at("text.txt")]).unwrap()).unwrap();
    assert_eq!((stats["lines"].as_u64(), stats["bytes"].as_u64()), (Some(16), Some(4 * (TEXT.len() as u64 - 5))));
    assert!(stats["characters_per_token"].as_f64().unwrap() > 1.0);
    let inspected: serde_json::Value = serde_json::from_str(&report::inspect(&tokenizer).unwrap()).unwrap();
    assert_eq!(inspected["special_tokens"][0]["token"], "<|endoftext|>");
}

#[test]
fn bad_input_is_named() {
    let scene = Scene::new();
    let small = scene.train(Kind::Bpe, 100, "x").unwrap_err();
    assert_eq!(small.to_string(), "--vocab-size 100 is too small: the special tokens and the alphabet need 257");
    std::fs::write(scene.at("text.txt"), b"fine\n\xff\n").unwrap();
    assert!(matches!(scene.train(Kind::Bpe, 300, "x"), Err(TokenizingError::Encoding { line: 2, .. })));
    std::fs::write(scene.at("text.txt"), b"\n  \n").unwrap();
    assert!(matches!(scene.train(Kind::Bpe, 300, "x"), Err(TokenizingError::Empty)));
    std::fs::write(scene.at("text.txt"), b"fine fine\n").unwrap();
    scene.train(Kind::Bpe, 300, "x").unwrap();
    assert!(matches!(scene.train(Kind::Bpe, 300, "x"), Err(TokenizingError::Exists(_))));
}
