//! Who may send requests, and how many: API keys from a Secret, a rate limit and a token budget for each of them.
//!
//! Probes and metrics stay open. Without keys every request is admitted, and limits hold for all clients together. Keys are
//! read again every few seconds, so that a rotated Secret needs no restart. Limits are those of this process: several servers
//! each grant them.

mod keys;
mod quota;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

pub(crate) use self::{keys::KeysError, quota::Quota};
use self::{
    keys::{Key, Keys},
    quota::Used,
};
use super::{
    http::App,
    metrics::{Endpoint, Metrics},
    openai::ApiError,
};

/// How often keys are read again.
pub(super) const RELOAD: Duration = Duration::from_secs(5);

/// What clients need and get.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The directory or file of API keys; `None` admits everybody.
    pub(super) keys: Option<PathBuf>,
    /// The rate limit of keys without their own.
    pub(super) rate: Option<Quota>,
    /// The token budget of keys without their own.
    pub(super) tokens: Option<Quota>,
}

/// Admits clients.
pub(super) struct Access {
    settings: Settings,
    keys: Option<RwLock<Keys>>,
    /// The clients by the names of their keys. Without keys, there is one with an empty name.
    clients: Mutex<BTreeMap<String, Client>>,
    /// The problems of entries that were logged.
    problems: Mutex<Vec<String>>,
    metrics: Arc<Metrics>,
}

/// What a client has used. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The name of its key; empty without keys.
    name: String,
    used: Mutex<Usage>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Usage {
    requests: Option<Used>,
    tokens: Option<Used>,
}

impl Client {
    /// Returns a client without a name or limits.
    pub(super) fn anonymous(metrics: Arc<Metrics>) -> Self {
        let used = Mutex::new(Usage { requests: None, tokens: None });
        Self(Arc::new(Shared { name: String::new(), used, metrics }))
    }

    /// Returns the name of the key; empty without keys.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Records tokens of a prompt or of a response.
    pub(super) fn spend(&self, tokens: usize) {
        let amount = tokens as u64;
        if let Some(used) = &mut self.0.used.lock().unwrap_or_else(PoisonError::into_inner).tokens {
            used.spend(Instant::now(), amount);
        }
        if !self.0.name.is_empty() {
            self.0.metrics.spent(&self.0.name, amount);
        }
    }

    /// Counts another request beside the one that was admitted, because that stands for several.
    pub(super) fn count(&self) {
        if let Some(used) = &mut self.0.used.lock().unwrap_or_else(PoisonError::into_inner).requests {
            used.spend(Instant::now(), 1);
        }
    }

    /// Counts a request, or refuses it until the returned time is over.
    fn admit(&self, now: Instant) -> Result<(), (Limit, Quota, Duration)> {
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        for limit in [Limit::Rate, Limit::Tokens] {
            let used = if limit == Limit::Rate { &mut used.requests } else { &mut used.tokens };
            if let Some(used) = used
                && let Some(wait) = used.wait(now)
            {
                return Err((limit, used.quota(), wait));
            }
        }
        if let Some(requests) = &mut used.requests {
            requests.spend(now, 1);
        }
        Ok(())
    }
}

/// What a client used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Rate,
    Tokens,
}

impl Access {
    /// Reads the keys and says which clients are admitted.
    ///
    /// # Errors
    /// The keys cannot be read, or one of them is invalid.
    pub(super) fn new(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, KeysError> {
        let keys = match &settings.keys {
            None => {
                tracing::warn!(
                    "no API keys are configured: every client that reaches this server may use it; give --api-keys"
                );
                None
            }
            Some(path) => {
                let (keys, problems) = Keys::read(path)?;
                if let Some(problem) = problems.into_iter().next() {
                    return Err(problem);
                }
                tracing::info!(keys = keys.all().count(), "API keys are required");
                Some(RwLock::new(keys))
            }
        };
        let access = Self { settings, keys, clients: Mutex::default(), problems: Mutex::default(), metrics };
        access.arrange();
        Ok(access)
    }

    /// Admits every client, without limits.
    #[cfg(test)]
    pub(super) fn open(metrics: Arc<Metrics>) -> Arc<Self> {
        let access = Self {
            settings: Settings::default(),
            keys: None,
            clients: Mutex::default(),
            problems: Mutex::default(),
            metrics,
        };
        access.arrange();
        Arc::new(access)
    }

    /// Reads the keys again. Problems are logged: an invalid entry admits nobody; keys that cannot be read stay as they are.
    ///
    /// # Errors
    /// One sentence: an entry is invalid, or the keys cannot be read or were removed.
    pub(super) fn reload(&self) -> Result<(), String> {
        let (Some(path), Some(keys)) = (&self.settings.keys, &self.keys) else { return Ok(()) };
        match Keys::read(path) {
            Ok((new, problems)) => {
                let problems: Vec<String> = problems.iter().map(|problem| crate::error::chain(problem)).collect();
                let result = if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) };
                let mut told = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
                if *told != problems {
                    for problem in &problems {
                        tracing::error!("{problem}; it admits nobody");
                    }
                    *told = problems;
                }
                if new.equals(&keys.read().unwrap_or_else(PoisonError::into_inner)) {
                    return result;
                }
                tracing::info!(keys = new.all().count(), "the API keys changed");
                *keys.write().unwrap_or_else(PoisonError::into_inner) = new;
                self.arrange();
                result
            }
            Err(KeysError::Count { count: 0, .. }) => {
                let mut keys = keys.write().unwrap_or_else(PoisonError::into_inner);
                let told = "all API keys were removed: nobody is admitted";
                if keys.all().next().is_some() {
                    tracing::error!("{told}");
                    *keys = Keys::default();
                }
                Err(told.to_owned())
            }
            Err(error) => {
                let told = crate::error::chain(&error);
                tracing::error!("{told}; the former keys stay valid");
                Err(told)
            }
        }
    }

    /// Gives every key its limits, and forgets those of removed keys. What a key has used stays used.
    fn arrange(&self) {
        let anonymous = Key { name: String::new(), rate: None, tokens: None, endpoints: Vec::new() };
        let keys: Vec<Key> = match &self.keys {
            Some(keys) => keys.read().unwrap_or_else(PoisonError::into_inner).all().cloned().collect(),
            None => vec![anonymous],
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|name, _| {
            let kept = keys.iter().any(|key| key.name == *name);
            if !kept {
                self.metrics.forget(name);
            }
            kept
        });
        for key in keys {
            let default = self.keys.is_some().then_some(Quota::REQUESTS);
            let rate = key.rate.or(self.settings.rate).or(default);
            let tokens = key.tokens.or(self.settings.tokens);
            let client = clients.entry(key.name.clone()).or_insert_with(|| {
                let used = Mutex::new(Usage { requests: None, tokens: None });
                Client(Arc::new(Shared { name: key.name, used, metrics: Arc::clone(&self.metrics) }))
            });
            let mut used = client.0.used.lock().unwrap_or_else(PoisonError::into_inner);
            let Usage { requests, tokens: spent } = &mut *used;
            for (used, quota) in [(requests, rate), (spent, tokens)] {
                match (used.as_mut(), quota) {
                    (Some(used), Some(quota)) => used.set(quota),
                    (_, quota) => *used = quota.map(Used::new),
                }
            }
        }
    }

    /// Finds the client of a request and counts the request, if it generates.
    fn admit(&self, headers: &HeaderMap, path: &str, counts: bool, now: Instant) -> Result<Client, ApiError> {
        let (name, endpoints) = match &self.keys {
            None => (String::new(), Vec::new()),
            Some(keys) => {
                let presented = presented(headers).ok_or_else(|| unauthorized("an API key is required"))?;
                let keys = keys.read().unwrap_or_else(PoisonError::into_inner);
                let key = keys.find(presented).ok_or_else(|| unauthorized("the API key is not valid"))?;
                (key.name.clone(), key.endpoints.clone())
            }
        };
        let found = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        let client = found.ok_or_else(|| unauthorized("the API key is not valid"))?;
        if !endpoints.is_empty() && !endpoints.iter().any(|endpoint| endpoint == path) {
            self.metrics.admitted(&name, "forbidden");
            let told = format!("the API key {name:?} may not call {path}: it is for {}", endpoints.join(", "));
            return Err(ApiError {
                code: Some("endpoint_not_allowed"),
                ..ApiError::other(StatusCode::FORBIDDEN, told)
            });
        }
        if counts {
            let admitted = client.admit(now);
            if !name.is_empty() {
                let result = match &admitted {
                    Ok(()) => "admitted",
                    Err((Limit::Rate, ..)) => "rate_limited",
                    Err((Limit::Tokens, ..)) => "over_budget",
                };
                self.metrics.admitted(&name, result);
            }
            admitted.map_err(|(limit, quota, wait)| limited(limit, quota, wait))?;
        }
        Ok(client)
    }
}

/// Returns the key of a request: that of `x-api-key`, else the bearer token.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().as_bytes())
}

fn unauthorized(why: &str) -> ApiError {
    let told = format!("{why}: send it as x-api-key or as Authorization: Bearer");
    ApiError { code: Some("invalid_api_key"), ..ApiError::other(StatusCode::UNAUTHORIZED, told) }
}

fn limited(limit: Limit, quota: Quota, wait: Duration) -> ApiError {
    // Rounded up, so that a client that waits is admitted.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let (what, code) = match limit {
        Limit::Rate => ("the rate limit of", "rate_limit_exceeded"),
        Limit::Tokens => ("the token budget of", "token_budget_exceeded"),
    };
    let told = format!("{what} {quota} is used up: retry in {seconds} s");
    let error = ApiError::other(StatusCode::TOO_MANY_REQUESTS, told);
    ApiError { code: Some(code), retry_after: Some(seconds.max(1)), ..error }
}

/// Admits a request, or answers it with 401, 403 or 429. Requests that are admitted carry their [`Client`].
pub(super) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let endpoint = Endpoint::of(&path);
    match app.access().admit(request.headers(), &path, endpoint.is_some(), Instant::now()) {
        Ok(client) => {
            request.extensions_mut().insert(client);
            let response = next.run(request).await;
            if let Some(endpoint) = endpoint.filter(|_| response.status() == StatusCode::INTERNAL_SERVER_ERROR) {
                app.errors().request(endpoint);
            }
            response
        }
        Err(error) => {
            if let Some(endpoint) = endpoint {
                app.metrics().arrived(endpoint);
                app.metrics().answered(endpoint, error.status);
            }
            let unknown = error.status == StatusCode::UNAUTHORIZED;
            let mut response = error.into_response();
            if unknown {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}
