//! Queues of objects to be reconciled, one for each reconciled kind.

use std::collections::BTreeMap;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube::{Resource, runtime::reflector::ObjectRef};

use super::waiting::Waiting;
use crate::kinds::kinds;

/// A kind with a queue.
pub trait Queued: Resource<DynamicType = ()> {
    /// Returns the sender of its queue.
    fn sender(queues: &Queues) -> &UnboundedSender<ObjectRef<Self>>
    where
        Self: Sized;
}

macro_rules! declare_queues {
    (reconciled { $($field:ident: $kind:ty, $label:expr;)* } referenced { $($referenced:tt)* }) => {
        /// The senders of the queues.
        #[derive(Clone)]
        pub struct Queues {
            $($field: UnboundedSender<ObjectRef<$kind>>,)*
            waiting: Waiting,
        }

        /// The receivers of the queues.
        pub struct Requests {
            $(
                #[doc = concat!("The objects of kind `", stringify!($kind), "`.")]
                pub $field: UnboundedReceiver<ObjectRef<$kind>>,
            )*
        }

        impl Queues {
            /// Creates the queues.
            pub fn new() -> (Self, Requests) {
                $(let $field = unbounded();)*
                (Self { $($field: $field.0,)* waiting: Waiting::default() }, Requests { $($field: $field.1,)* })
            }

            /// Queues the object of the kind with this name. Kinds without a queue are ignored.
            pub fn add_kind(&self, kind: &str, namespace: &str, name: &str) {
                $(if kind == <$kind>::kind(&()) {
                    self.add::<$kind>(namespace, name);
                })*
            }

            /// Queues the object that a pod works for, by the labels of the pod.
            pub fn add_labelled(&self, namespace: &str, labels: &BTreeMap<String, String>) {
                let mut found = None;
                $(if let Some(name) = labels.get($label) {
                    found = Some((<$kind>::kind(&()), name));
                })*
                if let Some((kind, name)) = found {
                    self.add_kind(&kind, namespace, name);
                }
            }

            /// Closes the queues: reconciliations in progress end, and no further ones start.
            pub fn close(&self) {
                $(self.$field.close_channel();)*
            }
        }

        $(impl Queued for $kind {
            fn sender(queues: &Queues) -> &UnboundedSender<ObjectRef<Self>> {
                &queues.$field
            }
        })*
    };
}

kinds!(declare_queues);

impl Queues {
    /// Returns the objects that wait.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Queues the object `name` of `namespace`.
    pub fn add<K: Queued>(&self, namespace: &str, name: &str) {
        self.queue::<K>(namespace, name, false);
    }

    /// Queues an object that has changed itself.
    pub fn add_changed<K: Queued>(&self, namespace: &str, name: &str) {
        self.queue::<K>(namespace, name, true);
    }

    fn queue<K: Queued>(&self, namespace: &str, name: &str, own: bool) {
        self.waiting.added(&K::kind(&()), namespace, name, own);
        // The queue is closed only when the process stops.
        let _ = K::sender(self).unbounded_send(ObjectRef::new(name).within(namespace));
    }
}
