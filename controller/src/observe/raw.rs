//! Objects as the text in which the API server sends them. All watches are of this type, whatever their kind, so that kube's watcher is
//! compiled once; the text of an object is parsed only if its version is new. Managed fields, about half of it, are cut out first.

use std::{borrow::Cow, fmt, marker::PhantomData};

use kube::{
    Resource,
    api::ObjectMeta,
    core::{ApiResource, DynamicResourceScope, PartialObjectMeta},
    runtime::reflector::ObjectRef,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapDeserializer},
};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

/// An object of some kind: the fields that tell it from others, and its text.
#[derive(Clone, Debug)]
pub struct RawObject {
    /// Name, namespace, uid and resource version.
    metadata: ObjectMeta,
    text: Box<str>,
}

/// Why an object cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unparsed(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: HeadMetadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata<'a> {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    #[serde(borrow)]
    managed_fields: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    #[serde(default)]
    metadata: ObjectMeta,
}

impl RawObject {
    /// Reads what every object has.
    fn new(text: &str) -> Result<Self, serde_json::Error> {
        let Head { metadata } = serde_json::from_str(text)?;
        let text = match metadata.managed_fields {
            Some(fields) => without(text, fields.get()).into(),
            None => text.into(),
        };
        let HeadMetadata { name, namespace, uid, resource_version, .. } = metadata;
        Ok(Self { metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }, text })
    }

    /// Returns the object as its kind.
    pub(super) fn parse<K: DeserializeOwned>(&self) -> Result<K, Unparsed> {
        Ok(serde_json::from_str(&self.text)?)
    }

    /// Returns the metadata of the object.
    pub(super) fn parse_metadata<K>(&self) -> Result<PartialObjectMeta<K>, Unparsed> {
        let OnlyMetadata { metadata } = serde_json::from_str(&self.text)?;
        Ok(PartialObjectMeta { types: None, metadata, _phantom: PhantomData })
    }

    /// Returns how a cache refers to the object.
    pub(super) fn reference<K: Resource<DynamicType = ()>>(&self) -> ObjectRef<K> {
        let reference = ObjectRef::new(self.metadata.name.as_deref().unwrap_or_default());
        match &self.metadata.namespace {
            Some(namespace) => reference.within(namespace),
            None => reference,
        }
    }
}

/// Returns a text with `null` in place of a part of it.
fn without(text: &str, part: &str) -> String {
    // An equal text may occur earlier, such as in an annotation, so the address decides and not the content.
    let start = part.as_ptr().addr().wrapping_sub(text.as_ptr().addr());
    let (Some(before), Some(after)) = (text.get(..start), text.get(start.saturating_add(part.len())..)) else {
        return text.to_owned();
    };
    [before, "null", after].concat()
}

#[cfg(test)]
impl TryFrom<Value> for RawObject {
    type Error = serde_json::Error;

    fn try_from(object: Value) -> Result<Self, Self::Error> {
        Self::new(&object.to_string())
    }
}

impl Resource for RawObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.kind)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.group)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.version)
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.api_version)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(Buffered(deserializer))?;
        Self::new(text.get()).map_err(serde::de::Error::custom)
    }
}

/// A deserializer for raw values. In lists, kube buffers what it reads, and serde's buffer has no text: there, the value is written
/// as text again.
struct Buffered<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Buffered<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, TextOf { name, visitor })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct TextOf<V> {
    name: &'static str,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for TextOf<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(formatter)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(map)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        use serde::de::Error;
        let text = to_raw_value(&Value::deserialize(deserializer)?).map_err(D::Error::custom)?;
        self.visitor.visit_map(MapDeserializer::new([(self.name, text.get())].into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::{
        Resource, ResourceExt,
        core::{ObjectList, WatchEvent},
    };
    use serde_json::json;

    use super::RawObject;

    fn object() -> serde_json::Value {
        json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {
                "name": "a", "namespace": "team", "uid": "u", "resourceVersion": "7", "labels": {"x": "managedFields"},
                "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:data": {"f:k": {}}}}],
            },
            "data": {"k": "\"managedFields\":[\u{e9}]"},
        })
    }

    #[test]
    fn an_object_is_read_from_a_watch_and_from_a_list() {
        let event = json!({"type": "MODIFIED", "object": object()}).to_string();
        let Ok(WatchEvent::Modified(watched)) = serde_json::from_str::<WatchEvent<RawObject>>(&event) else {
            panic!("no event");
        };
        let list =
            json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [object()]}).to_string();
        let listed = serde_json::from_str::<ObjectList<RawObject>>(&list).unwrap().items.remove(0);
        for raw in [watched, listed] {
            assert_eq!((raw.name_any().as_str(), raw.resource_version().as_deref()), ("a", Some("7")));
            let parsed: ConfigMap = raw.parse().unwrap();
            let mut expected: ConfigMap = serde_json::from_value(object()).unwrap();
            expected.metadata.managed_fields = None;
            assert_eq!(parsed, expected);
            let metadata = raw.parse_metadata::<ConfigMap>().unwrap();
            assert_eq!(*metadata.meta(), expected.metadata);
        }
    }

    #[test]
    fn an_object_that_is_none_of_its_kind_has_a_name() {
        let raw = RawObject::try_from(json!({"metadata": {"name": "x"}, "spec": {"containers": "no list"}})).unwrap();
        assert_eq!(raw.name_any(), "x");
        assert!(raw.parse::<Pod>().is_err());
    }
}
