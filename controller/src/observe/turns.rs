//! Fairness between namespaces: objects that wait are reconciled in turns of their namespaces, so that one namespace with thousands of
//! objects delays those of another by a bounded number.
//!
//! kube's runner takes all that its queue has, first come, first served. [`Turns`] holds back what waits, and gives the runner only
//! as many objects as it soon begins.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures::{Stream, StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{Resource, runtime::reflector::ObjectRef};

use super::cache::Listed;

/// The most objects that the runner has been given and has not begun. It waits a moment before it begins each, so that few more than
/// it works on would leave it idle.
const GIVEN: usize = 128;

/// The objects that the runner has been given and has not begun, by namespace and name.
#[derive(Clone, Default)]
pub struct Given(Arc<Mutex<Begun>>);

#[derive(Default)]
struct Begun {
    objects: HashSet<(String, String)>,
    /// Wakes the stream that waits for room.
    waker: Option<Waker>,
}

impl Given {
    /// Locks the set. A task that panicked while it held the lock left whole entries, so the poison is ignored.
    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the runner begins an object, or drops it because it is gone: there is room for another one.
    pub fn begun(&self, namespace: &str, name: &str) {
        let waker = {
            let mut given = self.lock();
            given.objects.remove(&(namespace.to_owned(), name.to_owned()));
            given.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Records that the runner is given an object. Returns false if it has been given enough; then `task` is woken once there is room.
    fn give(&self, namespace: &str, name: &str, task: &Context<'_>) -> bool {
        let mut given = self.lock();
        if given.objects.len() >= GIVEN {
            given.waker = Some(task.waker().clone());
            return false;
        }
        given.objects.insert((namespace.to_owned(), name.to_owned()));
        true
    }
}

/// The objects that wait, by namespace. An object that is queued again while it waits keeps its place.
#[derive(Default)]
struct Namespaces {
    names: HashMap<String, VecDeque<String>>,
    waiting: HashSet<(String, String)>,
    /// The namespaces with objects that wait, in the order of their turns.
    turns: VecDeque<String>,
}

impl Namespaces {
    fn add(&mut self, namespace: String, name: String) {
        if !self.waiting.insert((namespace.clone(), name.clone())) {
            return;
        }
        let names = self.names.entry(namespace.clone()).or_default();
        if names.is_empty() {
            self.turns.push_back(namespace);
        }
        names.push_back(name);
    }

    /// Returns the object whose turn it is.
    fn first(&self) -> Option<(&str, &str)> {
        let namespace = self.turns.front()?;
        Some((namespace, self.names.get(namespace)?.front()?))
    }

    /// Removes the object whose turn it is. Its namespace is last from now on.
    fn take(&mut self) -> Option<(String, String)> {
        let namespace = self.turns.pop_front()?;
        let names = self.names.get_mut(&namespace)?;
        let name = names.pop_front()?;
        if names.is_empty() {
            self.names.remove(&namespace);
        } else {
            self.turns.push_back(namespace.clone());
        }
        let object = (namespace, name);
        self.waiting.remove(&object);
        Some(object)
    }
}

/// A queue as the stream that kube's `applier` takes, in turns of the namespaces.
pub struct Turns<K: Resource<DynamicType = ()> + 'static> {
    queue: UnboundedReceiver<ObjectRef<K>>,
    namespaces: Namespaces,
    given: Given,
}

impl<K: Resource<DynamicType = ()> + 'static> Turns<K> {
    /// Returns the stream of a queue. Who takes from it tells `given` which objects it begins.
    pub fn of(queue: UnboundedReceiver<ObjectRef<K>>, given: Given) -> Self {
        Self { queue, namespaces: Namespaces::default(), given }
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Stream for Turns<K> {
    type Item = Result<ObjectRef<Listed<K>>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let turns = self.get_mut();
        while let Poll::Ready(queued) = turns.queue.poll_next_unpin(task) {
            // The queue is closed when the process stops: what waits is left to the next leader.
            let Some(object) = queued else { return Poll::Ready(None) };
            turns.namespaces.add(object.namespace.unwrap_or_default(), object.name);
        }
        let room = turns.namespaces.first().is_some_and(|(namespace, name)| turns.given.give(namespace, name, task));
        let Some((namespace, name)) = room.then(|| turns.namespaces.take()).flatten() else { return Poll::Pending };
        let listed = ObjectRef::new(&name);
        Poll::Ready(Some(Ok(if namespace.is_empty() { listed } else { listed.within(&namespace) })))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::{Context, Wake},
    };

    use codex_crds::TrainingRun;
    use futures::{FutureExt, StreamExt, channel::mpsc::unbounded};
    use kube::runtime::reflector::ObjectRef;

    use super::{GIVEN, Given, Turns};

    fn object(namespace: &str, name: &str) -> ObjectRef<TrainingRun> {
        ObjectRef::new(name).within(namespace)
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Returns what the stream gives now.
    fn given(turns: &mut Turns<TrainingRun>) -> Vec<String> {
        let next = std::iter::from_fn(|| turns.next().now_or_never().flatten());
        next.map(|object| object.unwrap()).map(|it| format!("{}/{}", it.namespace.unwrap(), it.name)).collect()
    }

    #[test]
    fn ten_thousand_objects_of_one_namespace_delay_another_by_a_bounded_number() {
        let ((sender, queue), runner) = (unbounded(), Given::default());
        let mut turns = Turns::of(queue, runner.clone());
        for number in 0..10_000 {
            sender.unbounded_send(object("big", &format!("run-{number}"))).unwrap();
        }
        assert_eq!(given(&mut turns).len(), GIVEN, "the runner is given as many as it soon begins");
        sender.unbounded_send(object("small", "a")).unwrap();
        sender.unbounded_send(object("small", "b")).unwrap();
        assert_eq!(given(&mut turns), [""; 0], "there is no room");
        let mut order = Vec::new();
        for number in 0..4 {
            runner.begun("big", &format!("run-{number}"));
            order.extend(given(&mut turns));
        }
        let first = |number: usize| format!("big/run-{number}");
        assert_eq!(order, [first(GIVEN), "small/a".to_owned(), first(GIVEN + 1), "small/b".to_owned()]);
    }

    #[test]
    fn an_object_that_is_queued_again_while_it_waits_is_given_once() {
        let ((sender, queue), runner) = (unbounded(), Given::default());
        let mut turns = Turns::of(queue, runner.clone());
        for name in ["a", "b", "a"] {
            sender.unbounded_send(object("team", name)).unwrap();
        }
        assert_eq!(given(&mut turns), ["team/a", "team/b"]);
        sender.unbounded_send(object("team", "a")).unwrap();
        assert_eq!(given(&mut turns), ["team/a"], "it changed after it was given");
        runner.begun("team", "a");
        runner.begun("team", "b");
        assert!(runner.lock().objects.is_empty());
    }

    #[test]
    fn room_wakes_the_stream_and_a_closed_queue_ends_it() {
        let ((sender, queue), runner) = (unbounded(), Given::default());
        let mut turns = Turns::of(queue, runner.clone());
        for number in 0..=GIVEN {
            sender.unbounded_send(object("team", &number.to_string())).unwrap();
        }
        given(&mut turns);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        assert!(turns.poll_next_unpin(&mut Context::from_waker(&woken.clone().into())).is_pending());
        runner.begun("team", "0");
        assert!(woken.0.load(Ordering::Relaxed));
        sender.close_channel();
        assert_eq!(turns.next().now_or_never(), Some(None));
    }
}
