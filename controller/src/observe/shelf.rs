//! The objects of a kind. Of a kind of which there are many, those that were read lately are whole, the others packed. Objects of the
//! same kind differ little, such as in their names, so each is compressed against a sample. A packed Job takes some hundred bytes, a
//! whole one some ten thousand.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use lz4_flex::block::{compress_with_dict, decompress_with_dict};
use serde::{Serialize, de::DeserializeOwned};

/// How many objects of a kind are whole.
const WHOLE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(127);

/// Where an object is: its namespace and its name.
type Place = (Option<Box<str>>, Box<str>);

/// How objects of a kind become bytes, and what bytes were.
#[derive(Debug)]
pub struct Pack<K> {
    write: fn(&K) -> Option<Vec<u8>>,
    read: fn(&[u8]) -> Option<K>,
}

impl<K> Clone for Pack<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Pack<K> {}

impl<K: Serialize + DeserializeOwned> Pack<K> {
    /// As JSON, from which each kind can be read anyway.
    pub(super) const JSON: Self = Self {
        write: |object| serde_json::to_vec(object).ok(),
        // Text, because the code that parses objects from text exists already.
        read: |bytes| serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok(),
    };
}

enum Held<K> {
    Whole(Arc<K>),
    Packed { size: u32, bytes: Box<[u8]> },
}

/// The objects of a kind.
pub(super) struct Shelf<K> {
    objects: HashMap<Arc<Place>, Held<K>>,
    /// Those that are whole, in the order of their last use.
    whole: LruCache<Arc<Place>, ()>,
    /// The first object that was packed. The others are compressed against it.
    sample: Vec<u8>,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), whole: LruCache::unbounded(), sample: Vec::new() }
    }
}

impl<K> Shelf<K> {
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn places(&self) -> Vec<Arc<Place>> {
        self.objects.keys().cloned().collect()
    }

    /// Whether an object is in this namespace.
    pub(super) fn is_in(&self, namespace: &str) -> bool {
        self.objects.keys().any(|place| place.0.as_deref() == Some(namespace))
    }

    /// Returns an object, and whether it is whole.
    pub(super) fn get(&self, place: &Place, pack: Option<Pack<K>>) -> Option<(bool, Arc<K>)> {
        let held = self.objects.get(place)?;
        Some((matches!(held, Held::Whole(_)), self.open(held, pack)?))
    }

    fn open(&self, held: &Held<K>, pack: Option<Pack<K>>) -> Option<Arc<K>> {
        match held {
            Held::Whole(object) => Some(object.clone()),
            Held::Packed { size, bytes } => {
                let text = decompress_with_dict(bytes, usize::try_from(*size).ok()?, &self.sample).ok()?;
                (pack?.read)(&text).map(Arc::new)
            }
        }
    }

    /// Stores a new version of an object.
    pub(super) fn insert(&mut self, place: &Place, object: &Arc<K>, pack: Option<Pack<K>>) {
        let place =
            self.objects.get_key_value(place).map_or_else(|| Arc::new(place.clone()), |(place, _)| place.clone());
        self.objects.insert(place.clone(), Held::Whole(object.clone()));
        if let Some(pack) = pack {
            self.whole.put(place, ());
            self.cool(pack);
        }
    }

    /// Keeps an object whole that was read, unless a newer version has come meanwhile.
    pub(super) fn warm(&mut self, place: &Place, object: &Arc<K>, pack: Option<Pack<K>>) {
        let Some((place, held)) = self.objects.get_key_value(place) else { return };
        if matches!(held, Held::Packed { .. }) {
            let place = place.clone();
            self.objects.insert(place.clone(), Held::Whole(object.clone()));
            self.whole.put(place, ());
            if let Some(pack) = pack {
                self.cool(pack);
            }
        }
    }

    pub(super) fn remove(&mut self, place: &Place) {
        self.objects.remove(place);
        self.whole.pop(place);
    }

    /// Packs the objects that were not used lately.
    fn cool(&mut self, pack: Pack<K>) {
        while self.whole.len() > WHOLE.get() {
            let Some((place, ())) = self.whole.pop_lru() else { return };
            let Some(held) = self.objects.get_mut(&place) else { continue };
            let Held::Whole(object) = held else { continue };
            let Some(text) = (pack.write)(object) else { continue };
            let Ok(size) = u32::try_from(text.len()) else { continue };
            if self.sample.is_empty() {
                self.sample.clone_from(&text);
            }
            let bytes = compress_with_dict(&text, &self.sample).into_boxed_slice();
            *held = Held::Packed { size, bytes };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::batch::v1::Job;
    use serde_json::json;

    use super::{Held, Pack, Place, Shelf, WHOLE};

    const PACK: Option<Pack<Job>> = Some(Pack::JSON);

    fn job(number: usize, suspend: bool) -> Arc<Job> {
        let container = json!({
            "name": "trainer", "image": "codex:1", "args": ["train", "--output", format!("/output/{number}")],
            "env": [{"name": "CODEX_REPORT_URL", "value": "https://codex-controller.codex-system.svc:8443/v1/reports"}],
        });
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": format!("job-{number}"), "namespace": "team"},
            "spec": {"suspend": suspend, "template": {"spec": {"containers": [container]}}},
        });
        Arc::new(serde_json::from_value(job).unwrap())
    }

    fn place(number: usize) -> Place {
        (Some("team".into()), format!("job-{number}").into())
    }

    fn packed(shelf: &Shelf<Job>) -> Vec<usize> {
        let bytes = shelf.objects.values().filter_map(|held| match held {
            Held::Packed { bytes, .. } => Some(bytes.len()),
            Held::Whole(_) => None,
        });
        bytes.collect()
    }

    #[test]
    fn what_was_not_used_lately_is_packed_and_is_the_same_when_it_is_read() {
        let mut shelf = Shelf::default();
        let count = WHOLE.get() + 100;
        for number in 0..count {
            shelf.insert(&place(number), &job(number, false), PACK);
        }
        let sizes = packed(&shelf);
        assert_eq!((shelf.len(), sizes.len(), shelf.places().len()), (count, 100, count));
        assert!(sizes.iter().all(|size| *size < 100), "{sizes:?}");
        for number in 0..count {
            let (whole, found) = shelf.get(&place(number), PACK).unwrap();
            assert_eq!((whole, &found), (number >= 100, &job(number, false)), "{number}");
        }
        // One that is read is whole again, and another one is packed for it.
        let (_, found) = shelf.get(&place(3), PACK).unwrap();
        shelf.warm(&place(3), &found, PACK);
        assert!(shelf.get(&place(3), PACK).unwrap().0 && !shelf.get(&place(100), PACK).unwrap().0);
        // A version that came meanwhile stays.
        shelf.insert(&place(3), &job(3, true), PACK);
        shelf.warm(&place(3), &found, PACK);
        assert_eq!(shelf.get(&place(3), PACK).unwrap().1, job(3, true));
        for number in 0..count {
            shelf.remove(&place(number));
        }
        assert_eq!((shelf.len(), shelf.whole.len()), (0, 0));
    }
}
