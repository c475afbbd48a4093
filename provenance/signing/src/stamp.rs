//! Requests for timestamps: RFC 3161, section 2.4.1, in DER. Pure.
//!
//! `sigstore-tsa` has such a request as well, in its private module `asn1` and only with its feature `client`, which brings an HTTP client.

use der::{
    Encode as _, Sequence,
    asn1::{ObjectIdentifier, OctetStringRef},
};

const VERSION: u8 = 1;
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// `TimeStampReq`. There is no policy and no nonce: what is stamped is a signature that was just made, so that no earlier answer fits.
#[derive(Sequence)]
struct Request<'a> {
    version: u8,
    imprint: Imprint<'a>,
    /// Whether the answer must hold the certificate of the authority. DER leaves out `false`, so only `true` is written.
    certificate: bool,
}

/// `MessageImprint`: the digest of what is stamped.
#[derive(Sequence)]
struct Imprint<'a> {
    algorithm: Algorithm,
    digest: OctetStringRef<'a>,
}

/// `AlgorithmIdentifier`. A hash has no parameters.
#[derive(Sequence)]
struct Algorithm {
    name: ObjectIdentifier,
}

/// Returns the request to stamp a signature.
///
/// # Errors
/// If a length does not fit into DER.
pub(crate) fn request(signature: &[u8]) -> Result<Vec<u8>, der::Error> {
    let digest = sigstore_verify::crypto::sha256(signature);
    let imprint = Imprint { algorithm: Algorithm { name: SHA256 }, digest: OctetStringRef::new(digest.as_slice())? };
    Request { version: VERSION, imprint, certificate: true }.to_der()
}

#[cfg(test)]
mod tests {
    use super::request;

    /// The request of `openssl ts -query -data FILE -sha256 -cert -no_nonce`, whose algorithm has parameters (NULL) that RFC 5754, section 2,
    /// leaves out.
    #[test]
    fn a_request_has_the_bytes_of_rfc_3161() {
        let before = [
            0x30, 0x37, 0x02, 0x01, 0x01, 0x30, 0x2f, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04,
            0x02, 0x01, 0x04, 0x20,
        ];
        let digest = sigstore_verify::crypto::sha256(b"signature");
        let expected = [before.as_slice(), digest.as_slice(), &[0x01, 0x01, 0xff]].concat();
        assert_eq!(request(b"signature"), Ok(expected));
    }
}
