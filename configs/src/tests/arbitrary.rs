//! Arbitrary text is refused or read, and never panics.

use proptest::prelude::*;
use serde_json::Value;

use super::{data, starter};
use crate::{Evaluation, Resolved, Training, compose_training};

/// Characters that mean something to YAML or to the keys, and a few others.
const TEXT: &str = "[-a-z0-9_.=: \n\t,'\"#&*!|>%@`$+{}\\[\\]~é\u{feff}]{0,60}";

/// Sets each number, text and flag of a resolved file to another value, one at a time.
fn replace(value: &mut Value, at: &mut usize, with: &Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(|value| replace(value, at, with)),
        Value::Array(items) => items.iter_mut().for_each(|value| replace(value, at, with)),
        leaf => {
            if *at == 0 {
                *leaf = with.clone();
            }
            *at = at.wrapping_sub(1);
        }
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        TEXT.prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn overrides_and_config(text in TEXT, config in TEXT) {
        for overrides in [vec![text.clone()], vec![format!("training.batch_size={text}")], vec![format!("metadata.owner={text}")]] {
            if let Err(refused) = compose_training("cot-starter", &overrides, Some(&config), 42, data()) {
                let told = refused.on_command_line(&overrides).to_string();
                prop_assert!(!told.is_empty());
            }
        }
    }

    #[test]
    fn resolved_files(bytes in prop::collection::vec(any::<u8>(), 0..200), text in TEXT) {
        prop_assert!(Resolved::<Training>::from_yaml(&bytes).is_err());
        prop_assert!(Resolved::<Evaluation>::from_yaml(text.as_bytes()).is_err());
    }

    /// A resolved file with one changed value is refused or has the same digest.
    #[test]
    fn resolved_files_with_one_changed_value(at in 0_usize..135, with in scalar()) {
        let good = starter(&[], None);
        let mut value: Value = serde_yaml::from_str(&good.to_yaml().expect("YAML")).expect("JSON");
        let mut at = at;
        replace(&mut value, &mut at, &with);
        if let Ok(read) = Resolved::<Training>::from_yaml(value.to_string().as_bytes()) {
            prop_assert_eq!(read.digest(), good.digest());
        }
    }
}
