//! Where spans are sent, from the environment variables that OpenTelemetry defines:
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

use std::time::Duration;

use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};

/// The variables of this kind, which hold for every signal. `OTEL_EXPORTER_OTLP_TRACES_…` goes before `OTEL_EXPORTER_OTLP_…`.
const PREFIX: &str = "OTEL_EXPORTER_OTLP_";
/// The most milliseconds that an answer may take.
const TIMEOUT: u64 = 10_000;

/// Where spans are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The URL that requests are posted to.
    pub url: String,
    /// The headers of each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Certificate authorities in PEM, besides Mozilla's.
    pub authorities: Option<String>,
    /// The attributes of this process.
    pub resource: Vec<(String, String)>,
}

/// Reads the configuration; `None` if no collector is named. `variable` returns an environment variable.
///
/// # Errors
/// A sentence that names the variable and says what to write.
pub fn config(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Config>, String> {
    // An empty variable is an absent one.
    let variable = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let either = |what: &str| {
        let names = [format!("{PREFIX}TRACES_{what}"), format!("{PREFIX}{what}")];
        names.into_iter().find_map(|name| Some((variable(&name)?, name)))
    };
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let none = variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
    let Some((endpoint, named)) = either("ENDPOINT").filter(|_| !disabled && !none) else { return Ok(None) };
    let url = url(&endpoint, &named)?;
    if let Some((protocol, named)) = either("PROTOCOL")
        && protocol != "http/json"
    {
        return Err(format!(
            "{named} is {protocol:?}: only http/json is supported, which collectors accept on port 4318"
        ));
    }
    let timeout =
        match either("TIMEOUT") {
            None => TIMEOUT,
            Some((text, named)) => text.parse().ok().filter(|time| *time > 0).ok_or_else(|| {
                format!("{named} is {text:?}: write a number of milliseconds above 0, such as {TIMEOUT}")
            })?,
        };
    let headers = either("HEADERS").map(|(text, named)| headers(&text, &named)).transpose()?.unwrap_or_default();
    let authorities = either("CERTIFICATE").map(|(path, named)| {
        std::fs::read_to_string(&path).map_err(|why| format!("{named} names {path:?}, which cannot be read: {why}"))
    });
    let mut resource: Vec<_> = match variable("OTEL_RESOURCE_ATTRIBUTES") {
        Some(text) => pairs(&text, "OTEL_RESOURCE_ATTRIBUTES")?,
        None => Vec::new(),
    };
    let given = resource.iter().position(|(name, _)| name == "service.name").map(|at| resource.remove(at).1);
    let service = variable("OTEL_SERVICE_NAME").or(given).unwrap_or_else(|| "codex-controller".to_owned());
    resource.insert(0, ("service.name".to_owned(), service));
    resource.push(("service.version".to_owned(), crate::BUILD.to_owned()));
    let (timeout, authorities) = (Duration::from_millis(timeout), authorities.transpose()?);
    Ok(Some(Config { url, headers, timeout, authorities, resource }))
}

/// Returns the URL of the traces. The endpoint of all signals is the part before `/v1/traces`.
fn url(endpoint: &str, named: &str) -> Result<String, String> {
    let wrong = || format!("{named} is {endpoint:?}: write a URL such as http://otel-collector.observability:4318");
    let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
    if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!(
            "{named} holds a user or a password: write it into {PREFIX}HEADERS, such as authorization=Basic%20TEXT"
        ));
    }
    let whole = named.contains("_TRACES_");
    Ok(if whole { endpoint.to_owned() } else { format!("{}/v1/traces", endpoint.trim_end_matches('/')) })
}

fn headers(text: &str, named: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let header = |(name, value): (String, String)| {
        // The value may be a secret, so it is not told.
        let name = name.to_ascii_lowercase();
        let header = (name.parse().ok(), HeaderValue::from_str(&value).ok());
        let (Some(known), Some(mut value)) = header else {
            return Err(format!("{named} has an invalid header {name:?}: write NAME=VALUE"));
        };
        value.set_sensitive(true);
        Ok((known, value))
    };
    pairs(text, named)?.into_iter().map(header).collect()
}

/// Reads `name=value` pairs between commas. Values are percent-encoded.
fn pairs(text: &str, named: &str) -> Result<Vec<(String, String)>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).enumerate();
    items
        .map(|(at, item)| {
            let pair = item.split_once('=').and_then(|(name, value)| Some((name.trim(), decoded(value.trim())?)));
            let pair = pair.filter(|(name, _)| !name.is_empty());
            let (name, value) = pair.ok_or_else(|| {
                format!("{named} has no NAME=VALUE at place {}: write such pairs, separated by commas", at + 1)
            })?;
            Ok((name.to_owned(), value))
        })
        .collect()
}

/// Decodes `%20` and the like; `None` if the text is not UTF-8 then.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let encoded = (*first == b'%').then(|| others.get(..2)).flatten();
        let encoded = encoded.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        rest = if encoded.is_some() { &others[2..] } else { others };
        bytes.push(encoded.unwrap_or(*first));
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Config, config};

    fn of(variables: &[(&str, &str)]) -> Result<Option<Config>, String> {
        config(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn nothing_is_sent_without_an_endpoint() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert_eq!(of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(of(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
    }

    #[test]
    fn the_variables_of_opentelemetry_are_read() {
        let read = of(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!((read.url.as_str(), read.timeout), ("http://collector:4318/v1/traces", Duration::from_secs(10)));
        assert_eq!(read.resource[0], ("service.name".to_owned(), "codex-controller".to_owned()));
        let read = of(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/spans"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20a%2Cb, x-team = t"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a,deployment.environment.name=test"),
        ]);
        let read = read.unwrap().unwrap();
        assert_eq!((read.url.as_str(), read.timeout), ("https://other/spans", Duration::from_millis(250)));
        assert_eq!((read.headers[0].0.as_str(), read.headers[0].1.as_bytes()), ("authorization", &b"Bearer a,b"[..]));
        assert_eq!((read.headers[1].0.as_str(), read.headers[1].1.as_bytes()), ("x-team", &b"t"[..]));
        let names: Vec<_> = read.resource.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(names[..2], ["service.name=a", "deployment.environment.name=test"]);
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (name, value, told) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318", "write a URL such as http://"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:b@c", "holds a user"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/json is supported"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "a number of milliseconds"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization", "NAME=VALUE at place 1"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c", "invalid header \"a b\""),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none", "cannot be read"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=1,=2", "at place 2"),
        ] {
            let why = of(&[ENDPOINT, (name, value)]).unwrap_err();
            assert!(why.starts_with(name) && why.contains(told) && !why.contains("a:b"), "{why}");
        }
    }
}
