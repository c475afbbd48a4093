//! DSSE, the envelope of in-toto statements, and the bytes that a signature covers. Pure.
//!
//! Source: <https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md>.

/// The payload type of in-toto statements in JSON.
pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Returns the pre-authentication encoding of an in-toto payload: the bytes that a signature covers. They include the payload
/// type, so that a signature is not valid for the same bytes of another type.
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
