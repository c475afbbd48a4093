//! The items of a response, and the events that announce them. Pure.

use serde_json::{Map, Value, json};

use super::status;
use crate::serving::openai::{
    generation::{Chunk, Reason},
    respond::identifier,
    split::{Call, Part},
};

/// What an item with text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
}

/// An item whose text is not complete.
struct Open {
    kind: Kind,
    id: String,
    text: String,
}

/// Collects the items of a response, and passes on the events of a stream: their types and fields.
pub(super) struct Output<E> {
    items: Vec<Value>,
    open: Option<Open>,
    emit: E,
}

impl<E: FnMut(&str, Map<String, Value>)> Output<E> {
    pub(super) fn new(emit: E) -> Self {
        Self { items: Vec::new(), open: None, emit }
    }

    /// Adds what is new.
    pub(super) fn add(&mut self, chunk: Chunk) {
        for part in chunk.parts {
            match part {
                Part::Reasoning(text) => self.text(Kind::Reasoning, &text),
                Part::Content(text) => self.text(Kind::Message, &text),
                Part::Call(call) => self.call(&call),
            }
        }
    }

    /// Returns the items of the response. There is always one.
    pub(super) fn finish(mut self, reason: Reason) -> Vec<Value> {
        if self.open.is_none() && self.items.is_empty() {
            self.text(Kind::Message, "");
        }
        self.close(status(reason));
        self.items
    }

    fn emit(&mut self, kind: &str, data: Value) {
        if let Value::Object(mut data) = data {
            data.insert("output_index".to_owned(), self.items.len().into());
            (self.emit)(kind, data);
        }
    }

    fn text(&mut self, kind: Kind, delta: &str) {
        if self.open.as_ref().is_some_and(|open| open.kind != kind) {
            self.close("completed");
        }
        if self.open.is_none() {
            let id = identifier(if kind == Kind::Message { "msg_" } else { "rs_" });
            let open = Open { kind, id: id.clone(), text: String::new() };
            let item = open.item("in_progress", false);
            self.emit("response.output_item.added", json!({ "item": item }));
            let part = open.part();
            self.emit("response.content_part.added", json!({ "item_id": id, "content_index": 0, "part": part }));
            self.open = Some(open);
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(delta);
        let mut data = json!({ "item_id": open.id, "content_index": 0, "delta": delta });
        let event = open.event("delta", &mut data);
        if !delta.is_empty() {
            self.emit(event, data);
        }
    }

    fn close(&mut self, status: &str) {
        let Some(open) = self.open.take() else { return };
        let mut data = json!({ "item_id": open.id, "content_index": 0, "text": open.text });
        let event = open.event("done", &mut data);
        self.emit(event, data);
        let part = open.part();
        self.emit("response.content_part.done", json!({ "item_id": open.id, "content_index": 0, "part": part }));
        self.done(open.item(status, true));
    }

    fn call(&mut self, call: &Call) {
        self.close("completed");
        let id = identifier("fc_");
        let mut item = json!({
            "type": "function_call", "id": id, "call_id": identifier("call_"), "name": call.name, "arguments": "",
            "status": "in_progress",
        });
        self.emit("response.output_item.added", json!({ "item": item }));
        let delta = json!({ "item_id": id, "delta": call.arguments });
        self.emit("response.function_call_arguments.delta", delta);
        let done = json!({ "item_id": id, "name": call.name, "arguments": call.arguments });
        self.emit("response.function_call_arguments.done", done);
        item["arguments"] = call.arguments.as_str().into();
        item["status"] = "completed".into();
        self.done(item);
    }

    fn done(&mut self, item: Value) {
        self.emit("response.output_item.done", json!({ "item": item }));
        self.items.push(item);
    }
}

impl Open {
    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": self.text }),
            Kind::Message => json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": [] }),
        }
    }

    /// Returns the item, with its content once it is `complete`.
    fn item(&self, status: &str, complete: bool) -> Value {
        let content = if complete { json!([self.part()]) } else { json!([]) };
        match self.kind {
            Kind::Reasoning => {
                json!({ "type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status })
            }
            Kind::Message => {
                json!({ "type": "message", "id": self.id, "role": "assistant", "status": status, "content": content })
            }
        }
    }

    /// Returns the type of an event about the text, and adds the fields that only it has.
    fn event(&self, ending: &str, data: &mut Value) -> &'static str {
        if self.kind == Kind::Message {
            data["logprobs"] = json!([]);
        }
        match (self.kind, ending) {
            (Kind::Reasoning, "delta") => "response.reasoning_text.delta",
            (Kind::Reasoning, _) => "response.reasoning_text.done",
            (Kind::Message, "delta") => "response.output_text.delta",
            (Kind::Message, _) => "response.output_text.done",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_announced_filled_and_closed() {
        let mut events = Vec::new();
        let mut output = Output::new(|kind: &str, data: Map<String, Value>| events.push((kind.to_owned(), data)));
        let call = Call { name: "f".to_owned(), arguments: "{}".to_owned() };
        for part in [
            Part::Reasoning("h".to_owned()),
            Part::Reasoning("m".to_owned()),
            Part::Content("yes".to_owned()),
            Part::Call(call),
        ] {
            output.add(Chunk { parts: vec![part], scored: Vec::new() });
        }
        let items = output.finish(Reason::Calls);
        let kinds: Vec<&str> = items.iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call"]);
        assert_eq!((&items[0]["content"][0]["text"], &items[1]["content"][0]["text"]), (&json!("hm"), &json!("yes")));
        assert!(items.iter().all(|item| item["status"] == "completed"));
        let told: Vec<(&str, u64)> = events
            .iter()
            .map(|(kind, data)| (kind.strip_prefix("response.").unwrap(), data["output_index"].as_u64().unwrap()))
            .collect();
        assert_eq!(
            told,
            [
                ("output_item.added", 0),
                ("content_part.added", 0),
                ("reasoning_text.delta", 0),
                ("reasoning_text.delta", 0),
                ("reasoning_text.done", 0),
                ("content_part.done", 0),
                ("output_item.done", 0),
                ("output_item.added", 1),
                ("content_part.added", 1),
                ("output_text.delta", 1),
                ("output_text.done", 1),
                ("content_part.done", 1),
                ("output_item.done", 1),
                ("output_item.added", 2),
                ("function_call_arguments.delta", 2),
                ("function_call_arguments.done", 2),
                ("output_item.done", 2),
            ]
        );
        assert_eq!(events.last().unwrap().1["item"], items[2]);
    }

    #[test]
    fn an_empty_response_has_an_empty_message() {
        let items = Output::new(|_: &str, _: Map<String, Value>| ()).finish(Reason::Length);
        assert_eq!((items.len(), &items[0]["status"]), (1, &json!("incomplete")));
        assert_eq!(items[0]["content"][0]["text"], "");
    }
}
