//! Grammars bind random and scripted models with the tokenizers of known families.

use std::path::Path;

use codex_engine::{Sampler, Sampling};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Around, Constraint, Grammar, GrammarError, Grammars, KEPT};
use crate::text::Tokenizer;

const THINK: (&str, &str) = ("<think>", "</think>");
const CALL: (&str, &str) = ("<tool_call>", "</tool_call>");

fn tokenizer(family: &str) -> Tokenizer {
    if family == "characters" {
        return Tokenizer::characters().unwrap();
    }
    Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures").join(family)).unwrap()
}

fn grammars(tokenizer: &Tokenizer) -> Grammars {
    Grammars::new(tokenizer.clone(), tokenizer.ends())
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "b": { "type": "integer", "minimum": 0, "maximum": 99 },
            "a": { "enum": ["x", "yes"] },
            "list": { "type": "array", "items": { "type": "boolean" }, "maxItems": 2 },
        },
        "required": ["b", "a", "list"],
        "additionalProperties": false,
    })
}

/// Generates with random logits until the grammar is complete or the model ends the answer.
fn random(tokenizer: &Tokenizer, mut constraint: Constraint, seed: u64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed }).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..2000 {
        // More logits than tokens, as models with padded vocabularies have.
        let logits: Vec<f32> = (0..tokenizer.vocabulary() + 7).map(|_| random.random_range(-3.0..3.0)).collect();
        let token = constraint.choose(&mut sampler, &logits).expect("a token is allowed");
        assert!((token as usize) < tokenizer.vocabulary());
        if tokenizer.ends().contains(&token) {
            return tokenizer.decode(&tokens).unwrap();
        }
        tokens.push(token);
        if constraint.is_complete() {
            return tokenizer.decode(&tokens).unwrap();
        }
    }
    panic!("the answer has no end: {:?}", tokenizer.decode(&tokens));
}

/// Offers tokens one by one, each far more likely than the others. Returns what was chosen.
fn scripted(constraint: &mut Constraint, tokenizer: &Tokenizer, script: &[u32]) -> Vec<Option<u32>> {
    let mut sampler = Sampler::greedy();
    let offer = |token: &u32| {
        let mut logits = vec![0.0; tokenizer.vocabulary()];
        logits[*token as usize] = 50.0;
        constraint.choose(&mut sampler, &logits)
    };
    script.iter().map(offer).collect()
}

#[tokio::test]
async fn random_models_answer_by_the_schema_in_its_order() {
    for family in ["characters", "smollm2", "llama3", "mistral"] {
        let tokenizer = tokenizer(family);
        let grammars = grammars(&tokenizer);
        for seed in 0..20 {
            let bound = grammars.bind(&Grammar::Json(schema()), &Around::default()).await.unwrap();
            let text = random(&tokenizer, bound, seed);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{family}: {why}: {text:?}"));
            let names: Vec<&String> = value.as_object().unwrap().keys().collect();
            assert_eq!(names, ["b", "a", "list"], "{family}: {text}");
            assert!(value["b"].as_u64().is_some_and(|it| it < 100), "{text}");
            assert!(value["a"] == "x" || value["a"] == "yes", "{text}");
            assert!(value["list"].as_array().is_some_and(|all| all.len() <= 2 && all.iter().all(Value::is_boolean)));
        }
    }
}

#[tokio::test]
async fn expressions_choices_and_grammars_bind() {
    let tokenizer = tokenizer("smollm2");
    let grammars = grammars(&tokenizer);
    let sum = "start: number (\"+\" number)~1..3\nnumber: /[1-9][0-9]?/\n";
    let expression = regex::Regex::new("^[a-c]{2,4}/[0-9]$").unwrap();
    let sums = regex::Regex::new(r"^[1-9][0-9]?(\+[1-9][0-9]?){1,3}$").unwrap();
    for seed in 0..20 {
        let ask = async |grammar: Grammar| {
            let bound = grammars.bind(&grammar, &Around::default()).await.unwrap();
            random(&tokenizer, bound, seed)
        };
        let text = ask(Grammar::Regex("[a-c]{2,4}/[0-9]".to_owned())).await;
        assert!(expression.is_match(&text), "{text:?}");
        let choices = ["a.b", "a.bc", "(x|y)", "two\nlines"];
        let text = ask(Grammar::Choice(choices.map(str::to_owned).to_vec())).await;
        assert!(choices.contains(&text.as_str()), "{text:?}");
        let text = ask(Grammar::Lark(sum.to_owned())).await;
        assert!(sums.is_match(&text), "{text:?}");
        let text = ask(Grammar::Arguments(json!({ "enum": [{ "n": 1 }] }))).await;
        let call: Value = serde_json::from_str(&format!("{{\"arguments\":{text}")).unwrap();
        assert_eq!(call, json!({ "arguments": { "n": 1 } }));
    }
}

#[tokio::test]
async fn what_cannot_bind_is_refused_with_a_reason() {
    let characters = tokenizer("characters");
    let grammars = grammars(&characters);
    for grammar in [
        Grammar::Regex("(".to_owned()),
        Grammar::Lark("start: missing\n".to_owned()),
        Grammar::Lark("strat: \"a\"\n".to_owned()),
        Grammar::Json(json!({ "type": "strange" })),
        Grammar::Json(json!({ "type": "string", "minLength": 5, "maxLength": 2 })),
        Grammar::Json(json!({ "$ref": "#/$defs/missing" })),
        // More optional properties than the compiler follows at once.
        Grammar::Json(json!({
            "type": "object", "properties": (0..1500).map(|n| (format!("p{n}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>(),
        })),
        // Nothing of it is in the vocabulary.
        Grammar::Choice(vec!["\u{e9}".to_owned()]),
    ] {
        let refused = grammars.bind(&grammar, &Around::default()).await.unwrap_err();
        let GrammarError::Refused(why) = &refused else { panic!("{refused:?}") };
        assert!(why.len() > 5 && !why.contains('\n') && !why.contains('<'), "{grammar:?}: {why}");
    }
    assert!(grammars.kept.lock().unwrap().is_empty());
    // A text that begins well and cannot go on has no next token.
    let mut bound = grammars.bind(&Grammar::Regex("1\u{e9}".to_owned()), &Around::default()).await.unwrap();
    let one = characters.encode("1").unwrap();
    assert_eq!(scripted(&mut bound, &characters, &[one[0], one[0]]), [Some(one[0]), None]);
    assert!(!bound.is_complete());
}

#[tokio::test]
async fn end_tokens_end_complete_answers_and_are_no_text() {
    let characters = tokenizer("characters");
    let grammars = grammars(&characters);
    let id = |text: &str| characters.encode(text).unwrap()[0];
    let (quote, letter, end) = (id("\""), id("a"), id("$"));
    let mut bound = grammars.bind(&Grammar::Json(json!({ "type": "string" })), &Around::default()).await.unwrap();
    let chosen = scripted(&mut bound, &characters, &[end, letter, end]);
    assert_eq!(chosen[..2], [Some(quote), Some(letter)], "the answer begins with a quote");
    assert_ne!(chosen[2], Some(end), "the answer is not complete");
    let mut number = grammars.bind(&Grammar::Regex("[0-9]+".to_owned()), &Around::default()).await.unwrap();
    assert_eq!(scripted(&mut number, &characters, &[id("7"), end]), [Some(id("7")), Some(end)]);
}

#[tokio::test]
async fn reasoning_comes_before_the_answer() {
    let qwen = tokenizer("qwen3");
    let grammars = grammars(&qwen);
    let (open, close, end) = (qwen.id(THINK.0).unwrap(), qwen.id(THINK.1).unwrap(), qwen.ends()[0]);
    let text = |text: &str| qwen.encode_more(text).unwrap();
    let grammar = Grammar::Choice(vec!["yes".to_owned(), "no".to_owned()]);
    let thinks = Around { reasoning: Some(THINK), ..Around::default() };
    let open_already = Around { opened: true, ..thinks };

    let mut script = vec![open];
    script.extend(text("is it x?"));
    let thought = script.len();
    script.push(end);
    script.push(close);
    script.extend(text("\n"));
    let answer = script.len();
    script.extend(text("x"));
    let mut bound = grammars.bind(&grammar, &thinks).await.unwrap();
    let chosen = scripted(&mut bound, &qwen, &script);
    let plain: Vec<Option<u32>> = script.iter().copied().map(Some).collect();
    assert_eq!(chosen[..thought], plain[..thought], "reasoning is free");
    assert!(chosen[thought].is_some_and(|token| token != end), "reasoning without an answer is no end");
    assert_eq!(chosen[thought + 1..answer], plain[thought + 1..answer]);
    assert_ne!(chosen[answer], plain[answer], "the answer is bound");
    let rest = random(&qwen, bound.clone(), 1);
    let begun = qwen.decode(&[chosen[answer].unwrap()]).unwrap();
    assert!(["yes", "no"].contains(&format!("{begun}{rest}").as_str()), "{begun}{rest}");

    // The answer may begin at once, and a prompt may have opened the reasoning.
    for (around, script) in [(thinks, text("no")), (open_already, [text("hm"), vec![close], text("no")].concat())] {
        let mut bound = grammars.bind(&grammar, &around).await.unwrap();
        let expected: Vec<Option<u32>> = script.iter().copied().map(Some).collect();
        assert_eq!(scripted(&mut bound, &qwen, &script), expected);
        assert!(bound.is_complete());
    }
    // Nothing else may come before the answer.
    let mut bound = grammars.bind(&grammar, &thinks).await.unwrap();
    let space = text(" ")[0];
    assert_ne!(scripted(&mut bound, &qwen, &[space]), [Some(space)]);
}

/// Without tokens of their own, markers are compared byte by byte.
#[tokio::test]
async fn markers_of_several_tokens_are_found() {
    let characters = tokenizer("characters");
    let grammars = grammars(&characters);
    let grammar = Grammar::Regex("[0-9]{2}".to_owned());
    let around = Around { reasoning: Some(THINK), opened: false, calls: Some(CALL) };
    for text in ["12", "<think>ab</think>12", "<think>a</thin</think>\n 12", "<tool_call>{}</tool_call>\n12"] {
        let mut bound = grammars.bind(&grammar, &around).await.unwrap();
        let script = characters.encode(text).unwrap();
        let expected: Vec<Option<u32>> = script.iter().copied().map(Some).collect();
        assert_eq!(scripted(&mut bound, &characters, &script), expected, "{text:?}");
        assert!(bound.is_complete(), "{text:?}");
    }
    // After a call the response may end; before one it must not.
    let end = characters.encode("$").unwrap()[0];
    let mut bound = grammars.bind(&grammar, &around).await.unwrap();
    let mut script = characters.encode("<tool_call>{}</tool_call>").unwrap();
    script.push(end);
    assert_eq!(scripted(&mut bound, &characters, &script).last(), Some(&Some(end)));
    let mut bound = grammars.bind(&grammar, &around).await.unwrap();
    assert_ne!(scripted(&mut bound, &characters, &[end]), [Some(end)]);
    // White space after reasoning has an end.
    let mut bound = grammars.bind(&grammar, &around).await.unwrap();
    let spaced = characters.encode(&format!("<think></think>{}", " ".repeat(40))).unwrap();
    let chosen = scripted(&mut bound, &characters, &spaced);
    assert!(chosen.iter().any(|token| token.is_some_and(|it| characters.decode(&[it]).unwrap() == "0")), "{chosen:?}");
}

#[tokio::test]
async fn compiled_grammars_are_kept_and_responses_share_nothing() {
    let tokenizer = tokenizer("smollm2");
    let grammars = grammars(&tokenizer);
    for n in 0..KEPT + 3 {
        let grammar = Grammar::Choice(vec![format!("text {n}")]);
        let bound = grammars.bind(&grammar, &Around::default()).await.unwrap();
        assert_eq!(random(&tokenizer, bound, 1), format!("text {n}"));
    }
    assert_eq!(grammars.kept.lock().unwrap().len(), KEPT);
    // Used ones are the same as new ones, in the middle of others, too.
    let grammar = Grammar::Json(schema());
    let first = grammars.bind(&grammar, &Around::default()).await.unwrap();
    let mut begun = grammars.bind(&grammar, &Around::default()).await.unwrap();
    let quote = tokenizer.encode_more("{").unwrap();
    scripted(&mut begun, &tokenizer, &quote);
    let again = grammars.bind(&grammar, &Around::default()).await.unwrap();
    let copy = begun.clone();
    let expected = random(&tokenizer, first, 9);
    assert_eq!(random(&tokenizer, again, 9), expected);
    assert_eq!(random(&tokenizer, copy, 4), random(&tokenizer, begun, 4));
}

#[test]
fn schemas_with_another_order_are_other_grammars() {
    let one: Value = serde_json::from_str(r#"{"properties": {"a": {}, "b": {}}}"#).unwrap();
    let other: Value = serde_json::from_str(r#"{"properties": {"b": {}, "a": {}}}"#).unwrap();
    assert_eq!(one, other);
    assert_ne!(Grammar::Json(one.clone()).key(), Grammar::Json(other).key());
    assert_ne!(Grammar::Json(one.clone()).key(), Grammar::Arguments(one).key());
}
