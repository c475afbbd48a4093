use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Unit,
    Newtype(Inner),
    Tuple(u8, Inner),
    Struct { a: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    a: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outer {
    text: String,
    number: f64,
    kinds: Vec<Kind>,
    maybe: Option<Inner>,
    map: BTreeMap<String, Inner>,
    pair: (u8, String),
}

prop_compose! {
    fn kind()(which in 0..4_u8, a: u8) -> Kind {
        match which {
            0 => Kind::Unit,
            1 => Kind::Newtype(Inner { a }),
            2 => Kind::Tuple(a, Inner { a }),
            _ => Kind::Struct { a },
        }
    }
}

prop_compose! {
    fn outer()(
        text: String,
        number in prop::num::f64::NORMAL,
        kinds in prop::collection::vec(kind(), 0..4),
        maybe: Option<u8>,
        map: BTreeMap<String, u8>,
        pair: (u8, String),
    ) -> Outer {
        let map = map.into_iter().map(|(key, a)| (key, Inner { a })).collect();
        Outer { text, number, kinds, maybe: maybe.map(|a| Inner { a }), map, pair }
    }
}

proptest! {
    #[test]
    fn written_values_are_read(value in outer()) {
        let text = serde_json::to_string(&value).unwrap();
        prop_assert_eq!(from_str::<Outer>(&text).unwrap(), value.clone());
        prop_assert_eq!(from_value::<Outer>(serde_json::to_value(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_never_more_than_serde_reads(bytes: Vec<u8>, value in outer(), at: prop::sample::Index) {
        let _ = from_slice::<Outer>(&bytes);
        let mut text = serde_json::to_vec(&value).unwrap();
        let at = at.index(text.len());
        text[at] = bytes.first().copied().unwrap_or(b'[');
        if let Ok(read) = from_slice::<Outer>(&text) {
            prop_assert_eq!(serde_json::from_slice::<Outer>(&text).unwrap(), read.clone());
            // What is accepted has the shape that it would be written with.
            let again = serde_json::to_value(&read).unwrap();
            let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            prop_assert_eq!(keys(&serde_json::from_slice(&text).unwrap()), keys(&again));
        }
    }
}

#[test]
fn an_array_is_not_a_struct_at_any_depth() {
    let outer = |inner: serde_json::Value| json!({"text": "", "number": 0.5, "kinds": [], "maybe": inner, "map": {}, "pair": [1, ""]});
    assert!(from_value::<Outer>(outer(json!({"a": 1}))).is_ok());
    let refused = |value: serde_json::Value| {
        let [a, b] = [from_value::<Outer>(value.clone()), from_str(&value.to_string())]
            .map(|read| read.unwrap_err().to_string());
        assert!(b.starts_with(&a), "{a} {b}");
        b
    };
    let told = refused(outer(json!([1])));
    assert!(told.starts_with("invalid type: sequence, expected an object with a at line 1 column "), "{told}");
    refused(json!(["", 0.5, [], null, {}, [1, ""]]));
    for kind in [json!([1]), json!({"Newtype": [1]}), json!({"Tuple": [1, [1]]}), json!({"Struct": [1]})] {
        let mut value = outer(json!(null));
        value["kinds"] = json!([kind]);
        refused(value);
    }
    let mut value = outer(json!(null));
    value["map"] = json!({"x": [1]});
    refused(value);
}

#[test]
fn an_object_is_not_a_variant_without_data() {
    assert_eq!(from_str::<Kind>("\"Unit\"").unwrap(), Kind::Unit);
    for text in [
        "{\"Unit\": null}",
        "{\"Unit\": {}}",
        "{}",
        "[]",
        "1",
        "{\"Struct\": {\"a\": 1}, \"Unit\": null}",
        "\"Newtype\"",
    ] {
        assert!(from_str::<Kind>(text).is_err(), "{text}");
    }
    let told = from_str::<Kind>("{\"Unit\": null}").unwrap_err().to_string();
    assert!(told.starts_with("invalid type: map, expected the name as a string at line 1"), "{told}");
    assert!(from_str::<Inner>("{\"a\":1} x").is_err(), "trailing characters");
}

#[test]
fn no_error_quotes_a_value() {
    const SECRET: &str = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0";
    let good = json!({"text": "", "number": 0.5, "kinds": [], "maybe": null, "map": {}, "pair": [1, ""]});
    let mut texts =
        vec![format!("{SECRET:?}"), format!("[{SECRET:?}]"), SECRET.to_owned(), format!("{{{SECRET:?}:1}}")];
    for place in ["/text", "/number", "/kinds", "/maybe", "/map", "/pair", "/pair/0", "/pair/1"] {
        for wrong in
            [json!(SECRET), json!([SECRET]), json!({SECRET: SECRET}), json!({"a": SECRET}), json!([{SECRET: 1}])]
        {
            let mut value = good.clone();
            *value.pointer_mut(place).unwrap() = wrong;
            texts.push(value.to_string());
        }
    }
    for kind in [json!(SECRET), json!({SECRET: 1}), json!({"Newtype": SECRET}), json!({"Struct": {"a": SECRET}})] {
        let mut value = good.clone();
        value["kinds"] = json!([kind]);
        texts.push(value.to_string());
    }
    let mut refused = 0;
    for text in texts {
        if let Err(error) = from_str::<Outer>(&text) {
            assert!(!error.to_string().contains("eyJ"), "{text}: {error}");
            assert!(error.to_string().contains(" at line 1 column "), "{text}: {error}");
            refused += 1;
        }
        if let Some(error) = serde_json::from_str(&text).ok().and_then(|value| from_value::<Outer>(value).err()) {
            assert!(!error.to_string().contains("eyJ"), "{text}: {error}");
        }
    }
    assert!(refused > 40, "{refused}");
    for (wrong, told) in [
        (json!({"a": 300}), "invalid value: integer, expected u8"),
        (json!({"a": 1.5}), "invalid type: floating point number, expected u8"),
    ] {
        assert_eq!(from_value::<Inner>(wrong).unwrap_err().to_string(), told);
    }
    assert_eq!(
        from_str::<Kind>("\"Unti\"").unwrap_err().to_string(),
        "unknown name, expected one of `Unit`, `Newtype`, `Tuple`, `Struct` at line 1 column 6"
    );
    let custom = from_str::<std::num::NonZeroU8>("0").unwrap_err().to_string();
    assert_eq!(custom, "invalid value: integer, expected a nonzero u8 at line 1 column 1");
    let address = from_value::<std::net::IpAddr>(json!(SECRET)).unwrap_err().to_string();
    assert!(!address.contains("eyJ"), "{address}");
    let told = from_value::<Outer>(json!({"texts": ""})).unwrap_err().to_string();
    assert!(told.starts_with("unknown field `texts`, expected one of `text`, "), "{told}");
}

#[test]
fn a_byte_order_mark_is_skipped_and_utf_16_is_named() {
    assert_eq!(from_str::<Inner>("\u{feff}{\"a\":1}\r\n").unwrap(), Inner { a: 1 });
    assert!(from_str::<Inner>("{\"a\":\u{feff}1}").is_err());
    for utf16 in [u16::to_le_bytes, u16::to_be_bytes] {
        let bytes: Vec<u8> = "\u{feff}{\"a\":1}".encode_utf16().flat_map(utf16).collect();
        assert_eq!(from_slice::<Inner>(&bytes).unwrap_err().to_string(), "UTF-16 text: save the file as UTF-8");
    }
}
