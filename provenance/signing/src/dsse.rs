//! DSSE, the envelope of in-toto statements: what is really signed. Pure.
//!
//! Source: <https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md>.

/// The payload type of in-toto statements in JSON.
pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";

/// The pre-authentication encoding of an in-toto payload: the bytes that a signature covers. It binds the type, so
/// that a payload of another type with the same bytes has another signature.
pub(crate) fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("DSSEv1 {} {IN_TOTO} {} ", IN_TOTO.len(), payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_counts_bytes() {
        let encoded = pre_authentication("{é}".as_bytes());
        assert_eq!(encoded, "DSSEv1 28 application/vnd.in-toto+json 4 {é}".as_bytes());
    }
}
