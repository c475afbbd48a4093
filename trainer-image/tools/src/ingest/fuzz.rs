//! Mutated documents; see [`codex_fuzz`].

mod targets {
    use codex_fuzz::{TEXT, Target};

    use crate::ingest::document::{decode, encoding};

    pub(super) fn documents() -> Target {
        let chosen = encoding("auto").unwrap();
        let seeds = ["naïve café\r\n".as_bytes(), b"\xff\xfea\0b\0", b"na\xefve caf\xe9\n"].map(<[u8]>::to_vec);
        Target::new("documents", seeds.to_vec(), TEXT, move |bytes| decode(bytes, chosen).is_ok())
    }
}

codex_fuzz::tests! { documents }
