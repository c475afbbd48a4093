//! A response as it is generated: its text in parts, until it ends. No I/O of its own.

use std::sync::Arc;

use codex_engine::{End, LogProbabilities};

use super::{
    error::ApiError,
    respond::Text,
    scores::Scored,
    split::{Part, Splitter},
};
use crate::{
    safety::Direction,
    serving::{
        batcher::{Piece, Pieces, RequestError, Token},
        filter::{Check, Refusal},
        phase::ServedModel,
    },
    text::{Stops, TextStream, TokenizerError},
};

/// How a response is made of tokens.
#[derive(Clone, Debug)]
pub(super) struct Form {
    /// Texts that end the response and are not part of it.
    pub(super) stop: Vec<String>,
    /// Takes the text apart; `None` leaves it whole.
    pub(super) splitter: Option<Splitter>,
    /// Whether the response ends with its first call of a tool.
    pub(super) one_call: bool,
    /// Checks the whole response before any of it is passed on.
    pub(super) check: Option<Check>,
    /// The tokens of the prompt, if the text begins with it.
    pub(super) echo: Option<Arc<[u32]>>,
}

/// What is new in a response.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) parts: Vec<Part>,
    /// Those of the tokens of the parts, if they were asked for.
    pub(super) scored: Vec<Scored>,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    /// Generated tokens, including the end token.
    pub(super) tokens: usize,
    /// Those of them that are reasoning.
    pub(super) reasoning: usize,
    /// Tokens of the prompt that came from the prefix cache.
    pub(super) cached: usize,
    /// Characters of the prompt at the beginning of the text.
    pub(super) echoed: usize,
    pub(super) reason: Reason,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The model ended it, or a stop text did.
    Stop,
    /// A limit did.
    Length,
    /// The model waits for the results of tools.
    Calls,
    /// A safety rule blocks the response.
    Filtered,
}

impl Reason {
    /// Returns OpenAI's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Calls => "tool_calls",
            Self::Filtered => "content_filter",
        }
    }
}

/// The state of a response.
struct Progress<'a> {
    model: &'a ServedModel,
    stream: TextStream<'a>,
    stops: Stops<'a>,
    splitter: Option<Splitter>,
    one_call: bool,
    /// Scores of tokens whose text is held back.
    scored: Vec<Scored>,
    /// The tokens of the prompt, until they are the beginning of the text.
    echo: Option<Arc<[u32]>>,
    /// Characters of the prompt at the beginning of the text.
    echoed: usize,
    /// Characters of the text so far.
    characters: usize,
    called: bool,
    tokens: usize,
    reasoning: usize,
    cached: usize,
}

/// Turns tokens into parts until the response ends, and passes them on: as they come, or at the end if they are checked.
///
/// # Errors
/// The generation fails, or the response cannot be checked.
pub(super) async fn generate(
    model: &ServedModel,
    pieces: Pieces,
    form: Form,
    mut said: impl FnMut(Chunk) + Send,
) -> Result<Finished, ApiError> {
    let Some(check) = form.check.clone() else { return unchecked(model, pieces, form, said).await };
    let mut text = Text::default();
    let mut finished = unchecked(model, pieces, form, |chunk| text.add(chunk)).await?;
    match checked(&check, &mut text) {
        Ok(cut) => {
            finished.reason = if cut { Reason::Length } else { finished.reason };
            said(text.into_chunk());
        }
        Err(Refusal::Blocked(_)) => finished.reason = Reason::Filtered,
        Err(refusal @ Refusal::Unchecked(_)) => return Err(refusal.into()),
    }
    Ok(finished)
}

/// Checks every text of a response and leaves what may be passed on. Returns whether a text was cut.
fn checked(check: &Check, text: &mut Text) -> Result<bool, Refusal> {
    let mut all_cut = false;
    let mut changed = false;
    for call in &text.calls {
        // What is left of a name is the name of nothing, or of another function.
        if check.text(&call.name, Direction::Answer)?.0 != call.name {
            check.refuse(Direction::Answer);
            return Err(Refusal::Blocked("name of a call".to_owned()));
        }
    }
    let arguments = text.calls.iter_mut().map(|call| &mut call.arguments);
    for (is_call, part) in
        [(false, &mut text.reasoning), (false, &mut text.content)].into_iter().chain(arguments.map(|it| (true, it)))
    {
        let (left, cut) = check.text(part, Direction::Answer)?;
        changed |= left != *part;
        all_cut |= cut;
        // A redacted number leaves no JSON.
        if is_call && serde_json::from_str::<serde_json::Value>(&left).is_err() {
            check.refuse(Direction::Answer);
            return Err(Refusal::Blocked("arguments of a call".to_owned()));
        }
        *part = left;
    }
    if changed {
        // The tokens would tell what was redacted.
        text.scored.clear();
    }
    Ok(all_cut)
}

/// Turns tokens into parts until the response ends, and passes them on. Dropping the pieces ends the generation.
async fn unchecked(
    model: &ServedModel,
    mut pieces: Pieces,
    form: Form,
    mut said: impl FnMut(Chunk) + Send,
) -> Result<Finished, ApiError> {
    let mut progress = Progress {
        model,
        stream: model.tokenizer.stream(),
        stops: Stops::new(&form.stop),
        splitter: form.splitter,
        one_call: form.one_call,
        scored: Vec::new(),
        echo: form.echo,
        echoed: 0,
        characters: 0,
        called: false,
        tokens: 0,
        reasoning: 0,
        cached: 0,
    };
    loop {
        match pieces.recv().await {
            Some(Piece::Prompt(scores)) => {
                let parts = progress.prompt(Some(scores))?;
                progress.say(parts, &mut said);
            }
            Some(Piece::Token(token)) => {
                let mut parts = progress.prompt(None)?;
                parts.extend(progress.token(&token)?);
                progress.say(parts, &mut said);
                if progress.stops.reached() || (progress.called && progress.one_call) {
                    pieces.stopped();
                    return Ok(progress.end(Reason::Stop, &mut said));
                }
            }
            Some(Piece::End(end)) => {
                let end = end.map_err(RequestError::from)?;
                let mut parts = progress.prompt(None)?;
                let rest = progress.rest()?;
                parts.extend(progress.split(rest));
                progress.say(parts, &mut said);
                let stopped = end == Some(End::Stop) || progress.stops.reached();
                return Ok(progress.end(if stopped { Reason::Stop } else { Reason::Length }, &mut said));
            }
            Some(Piece::Late(limit)) => return Err(RequestError::Late { limit }.into()),
            None => return Err(RequestError::Ended.into()),
        }
    }
}

fn undecodable(error: &TokenizerError) -> ApiError {
    let told = format!("the response cannot be decoded: {error}");
    ApiError::other(axum::http::StatusCode::INTERNAL_SERVER_ERROR, told)
}

impl Progress<'_> {
    /// Returns the prompt as the beginning of the text, once and only if it was asked for. Texts in `stop` do not end it.
    fn prompt(&mut self, scores: Option<Vec<LogProbabilities>>) -> Result<Vec<Part>, ApiError> {
        let Some(ids) = self.echo.take() else { return Ok(Vec::new()) };
        let model = self.model;
        let mut scores = scores.map(Vec::into_iter);
        let mut text = String::new();
        for (at, id) in ids.iter().enumerate() {
            if let Some(scores) = &mut scores {
                // The first token has nothing before it that would make it likely.
                let own = if at == 0 { None } else { scores.next() };
                self.scored.push(match own {
                    Some(own) => Scored::new(&model.tokenizer, *id, &own, self.characters),
                    None => Scored::unscored(&model.tokenizer, *id, self.characters),
                });
            }
            let piece = model.specials.text(&mut self.stream, *id).map_err(|error| undecodable(&error))?;
            self.characters += piece.chars().count();
            text.push_str(&piece);
        }
        self.echoed = self.characters;
        Ok(if text.is_empty() { Vec::new() } else { vec![Part::Content(text)] })
    }

    /// Takes a token and returns the parts that it completes.
    fn token(&mut self, token: &Token) -> Result<Vec<Part>, ApiError> {
        self.tokens += 1;
        self.cached = token.cached;
        if let Some(scores) = &token.scores {
            self.scored.push(Scored::new(&self.model.tokenizer, token.id, scores, self.characters));
        }
        let before = self.splitter.as_ref().is_some_and(Splitter::is_reasoning);
        let text = self.model.specials.text(&mut self.stream, token.id).map_err(|error| undecodable(&error))?;
        self.characters += text.chars().count();
        let text = self.stops.push(&text);
        let parts = self.split(text);
        if before || self.splitter.as_ref().is_some_and(Splitter::is_reasoning) {
            self.reasoning += 1;
        }
        Ok(parts)
    }

    /// Returns the text that was held back, once there are no more tokens.
    fn rest(&mut self) -> Result<String, ApiError> {
        let stream = std::mem::replace(&mut self.stream, self.model.tokenizer.stream());
        let text = stream.finish().map_err(|error| undecodable(&error))?;
        let mut text = self.stops.push(&text);
        if !self.stops.reached() {
            text.push_str(&std::mem::replace(&mut self.stops, Stops::new(&[])).finish());
        }
        Ok(text)
    }

    fn split(&mut self, text: String) -> Vec<Part> {
        match &mut self.splitter {
            Some(splitter) => splitter.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Part::Content(text)],
        }
    }

    fn say(&mut self, mut parts: Vec<Part>, said: &mut impl FnMut(Chunk)) {
        if self.called && self.one_call {
            return;
        }
        if let Some(at) = parts.iter().position(|part| matches!(part, Part::Call(_))) {
            self.called = true;
            if self.one_call {
                parts.truncate(at + 1);
            }
        }
        if !parts.is_empty() {
            said(Chunk { parts, scored: std::mem::take(&mut self.scored) });
        }
    }

    /// Passes on what is left.
    fn end(mut self, reason: Reason, said: &mut impl FnMut(Chunk)) -> Finished {
        let parts = self.splitter.take().map(Splitter::finish).unwrap_or_default();
        self.say(parts, said);
        if !self.scored.is_empty() {
            said(Chunk { parts: Vec::new(), scored: std::mem::take(&mut self.scored) });
        }
        let reason = if self.called && reason == Reason::Stop { Reason::Calls } else { reason };
        let Self { tokens, reasoning, cached, echoed, .. } = self;
        Finished { tokens, reasoning, cached, echoed, reason }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Check, Refusal, Text, checked};
    use crate::serving::{
        filter::{Filter, Settings},
        metrics::Metrics,
        openai::split::Call,
    };

    #[test]
    fn a_call_whose_name_a_rule_blocks_or_redacts_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules.yaml");
        let written = "rules: [{ id: word, action: block, literal: bomb }, { id: ticket, action: redact, regex: 'ticket_[0-9]+' }]";
        std::fs::write(&rules, written).unwrap();
        let settings = Settings { rules: Some(rules), events: Some(folder.path().join("events.ndjson")) };
        let filter = Filter::new(&settings, Arc::default(), Arc::new(Metrics::new().unwrap())).unwrap().unwrap();
        let check = Check::new(filter, "/v1/chat/completions", "alice");
        let called = |name: &str| {
            let call = Call { name: name.to_owned(), arguments: "{}".to_owned() };
            checked(&check, &mut Text { calls: vec![call], ..Text::default() })
        };
        assert_eq!(called("add"), Ok(false));
        assert_eq!(called("build_bomb"), Err(Refusal::Blocked("word".to_owned())));
        assert_eq!(called("close_ticket_7"), Err(Refusal::Blocked("name of a call".to_owned())));
    }
}
