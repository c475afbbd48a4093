//! Reading of numbers, names and vectors of the binary format. Pure.

/// Why a file is no module that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The file does not begin as a module of version 1 does.
    #[error("it does not begin with the bytes of a module")]
    NoModule,
    /// The file ends within something.
    #[error("it ends early")]
    Ends,
    /// A part is malformed, or not valid by the specification.
    #[error("{what} at byte {at}")]
    At {
        /// What is wrong.
        what: &'static str,
        /// The byte after what is wrong, counted from 0.
        at: usize,
    },
    /// An instruction or type is of a proposal that is not supported.
    #[error("it uses {0}, which plugins cannot have")]
    Unsupported(&'static str),
    /// The module imports something.
    #[error("it imports {module:?}.{name:?}")]
    Import {
        /// The name of the module that should provide it.
        module: String,
        /// Its name.
        name: String,
    },
    /// The module has more of something than is accepted.
    #[error("it has too many {0}")]
    TooMany(&'static str),
}

/// Reads a file from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
    /// The position of `bytes` in the file.
    start: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], start: usize) -> Self {
        Self { bytes, at: 0, start }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Returns the position in the file.
    pub(crate) fn position(&self) -> usize {
        self.start + self.at
    }

    pub(crate) fn fail<T>(&self, what: &'static str) -> Result<T, Invalid> {
        Err(Invalid::At { what, at: self.position() })
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Invalid> {
        let byte = *self.bytes.get(self.at).ok_or(Invalid::Ends)?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Invalid> {
        let end = self.at.checked_add(count).ok_or(Invalid::Ends)?;
        let taken = self.bytes.get(self.at..end).ok_or(Invalid::Ends)?;
        self.at = end;
        Ok(taken)
    }

    /// Returns a reader of the next bytes.
    pub(crate) fn part(&mut self, count: usize) -> Result<Self, Invalid> {
        let start = self.position();
        Ok(Self::new(self.take(count)?, start))
    }

    /// Reads an unsigned number of 32 bits in LEB128.
    pub(crate) fn u32(&mut self) -> Result<u32, Invalid> {
        let mut number = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            if shift == 28 && byte > 0x0f {
                return self.fail("a number has more than 32 bits");
            }
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        self.fail("a number is too long")
    }

    pub(crate) fn count(&mut self) -> Result<usize, Invalid> {
        Ok(self.u32()? as usize)
    }

    /// Reads a signed number of `bits` bits in LEB128.
    fn signed(&mut self, bits: u32) -> Result<i64, Invalid> {
        let (mut number, mut shift) = (0_i64, 0);
        loop {
            let byte = self.byte()?;
            let part = i64::from(byte & 0x7f);
            if bits - shift < 7 {
                // The bits beyond the number repeat its sign.
                let beyond = (byte & 0x7f) >> (bits - shift - 1);
                let ones = 0x7f >> (bits - shift - 1);
                if beyond != 0 && beyond != ones || byte & 0x80 != 0 {
                    return self.fail("a number has too many bits");
                }
            }
            number |= part << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let negative = byte & 0x40 != 0 && shift < 64;
                return Ok(if negative { number | -1 << shift } else { number });
            }
            if shift >= bits {
                return self.fail("a number is too long");
            }
        }
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Invalid> {
        Ok(self.signed(32)? as i32)
    }

    /// Reads a signed number of 33 bits, which types of blocks have.
    pub(crate) fn i33(&mut self) -> Result<i64, Invalid> {
        self.signed(33)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Invalid> {
        self.signed(64)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Invalid> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn name(&mut self) -> Result<String, Invalid> {
        let count = self.count()?;
        match std::str::from_utf8(self.take(count)?) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => self.fail("a name is not UTF-8"),
        }
    }
}
