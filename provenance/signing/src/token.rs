//! Tokens of Kubernetes service accounts, and the identity that a certificate authority gives their holders. Pure.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use codex_provenance::{Identity, text::Printable};
use jiff::Timestamp;
use serde_json::Value;
use zeroize::Zeroizing;

/// Maximum size of a token in bytes.
pub const MAX_TOKEN: usize = 64 << 10;

/// Reasons why a token is refused. They quote no part of the token but its names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is not a token.
    #[error("it is not a JSON Web Token: {0}")]
    Shape(&'static str),
    /// The token lacks a claim.
    #[error("it has no claim {0}: give the projected token of a Kubernetes service account")]
    Lacks(&'static str),
    /// The token is for somebody else.
    #[error("its audience is {}, not {}: set it in the projected volume", Printable(found), Printable(wanted))]
    Audience {
        /// The audiences of the token, separated by commas.
        found: String,
        /// The wanted audience.
        wanted: String,
    },
}

/// The token of a service account. Nothing here verifies it: the certificate authority does. `Debug` prints no part of it.
pub struct Token {
    text: Zeroizing<String>,
    /// The claim `sub`, which the holder signs to prove that it has its key.
    subject: String,
    identity: Identity,
    expires: Option<Timestamp>,
}

impl Token {
    /// Reads a token with the audience `audience`.
    ///
    /// # Errors
    /// If the text is not a token of a Kubernetes service account, or has another audience.
    pub fn read(text: &str, audience: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Shape("it is too large"));
        }
        let mut parts = text.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Shape("it does not have three parts"));
        };
        let claims = URL_SAFE_NO_PAD
            .decode(claims.trim_end_matches('='))
            .map_err(|_| TokenError::Shape("its claims are not base64"))?;
        let claims: Value =
            codex_json::from_slice(&claims).map_err(|_| TokenError::Shape("its claims are not JSON"))?;
        let claim = |path: &str, name| {
            let text = claims.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or(TokenError::Lacks(name))
        };
        let issuer = claim("/iss", "iss")?;
        let subject = claim("/sub", "sub")?;
        let namespace = claim("/kubernetes.io/namespace", "kubernetes.io.namespace")?;
        let account = claim("/kubernetes.io/serviceaccount/name", "kubernetes.io.serviceaccount.name")?;
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !audiences.contains(&audience) {
            return Err(TokenError::Audience { found: audiences.join(", "), wanted: audience.to_owned() });
        }
        let expires = claims["exp"].as_i64().and_then(|seconds| Timestamp::from_second(seconds).ok());
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
            subject,
            // As Fulcio writes it for issuers of the type kubernetes.
            identity: Identity {
                issuer,
                subject: format!("https://kubernetes.io/namespaces/{namespace}/serviceaccounts/{account}"),
            },
            expires,
        })
    }

    /// Returns the identity that a certificate for this token names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns when the token expires, if it says so.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::{Token, TokenError};

    fn claims() -> Value {
        json!({
            "iss": "https://kubernetes.default.svc.cluster.local",
            "sub": "system:serviceaccount:codex-system:codex-controller",
            "aud": ["sigstore"],
            "exp": 1_800_000_000,
            "kubernetes.io": {"namespace": "codex-system", "serviceaccount": {"name": "codex-controller", "uid": "u"}},
        })
    }

    fn read(claims: &Value) -> Result<Token, TokenError> {
        Token::read(&format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims.to_string())), "sigstore")
    }

    #[test]
    fn a_service_account_has_the_identity_that_fulcio_gives_it() {
        let token = read(&claims()).unwrap();
        assert_eq!(token.identity().issuer, "https://kubernetes.default.svc.cluster.local");
        assert_eq!(
            token.identity().subject,
            "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller"
        );
        assert_eq!(token.subject(), "system:serviceaccount:codex-system:codex-controller");
        assert_eq!(token.expires().unwrap().as_second(), 1_800_000_000);
        assert!(!format!("{token:?}").contains("c2ln"), "no part of it is printed");
    }

    #[test]
    fn other_tokens_are_refused() {
        let edited = |path: &str, value: Value| {
            let mut claims = claims();
            *claims.pointer_mut(path).unwrap() = value;
            read(&claims).unwrap_err()
        };
        assert_eq!(edited("/iss", json!("")), TokenError::Lacks("iss"));
        assert_eq!(edited("/sub", json!(1)), TokenError::Lacks("sub"));
        assert_eq!(edited("/kubernetes.io", json!({})), TokenError::Lacks("kubernetes.io.namespace"));
        assert_eq!(
            edited("/kubernetes.io/serviceaccount", json!({})),
            TokenError::Lacks("kubernetes.io.serviceaccount.name")
        );
        let told = edited("/aud", json!(["vault", "api"])).to_string();
        assert_eq!(told, "its audience is vault, api, not sigstore: set it in the projected volume");
        assert!(matches!(edited("/aud", json!(null)), TokenError::Audience { .. }));
        for text in ["", "a.b", "a.b.c.d", "e30.!.c", "e30.bm8.c", &"x".repeat(100_000)] {
            assert!(matches!(Token::read(text, "sigstore"), Err(TokenError::Shape(_))), "{text:.20}");
        }
    }
}
