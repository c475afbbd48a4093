//! A module: its sections, read in their order and validated. Pure.

use std::collections::BTreeMap;

use crate::{
    binary::{Invalid, Reader},
    instructions::Function,
    validate::{self, Context},
};

/// The first bytes of a module of version 1.
const MAGIC: [u8; 8] = *b"\0asm\x01\0\0\0";
/// Bytes of a page.
pub(crate) const PAGE: usize = 1 << 16;
/// The most pages that 32 bits address.
const MOST_PAGES: u32 = 1 << 16;
/// The most functions and types.
const MOST_FUNCTIONS: usize = 20_000;
/// The most parameters or results of a type.
const MOST_VALUES: usize = 128;
/// The most elements of the table.
const MOST_ELEMENTS: u32 = 100_000;
/// The most globals.
const MOST_GLOBALS: usize = 1000;

/// A type of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A number of 32 bits.
    I32,
    /// A number of 64 bits.
    I64,
    /// A float of 32 bits.
    F32,
    /// A float of 64 bits.
    F64,
}

impl ValueType {
    pub(crate) fn read(reader: &mut Reader) -> Result<Self, Invalid> {
        match reader.byte()? {
            0x7f => Ok(Self::I32),
            0x7e => Ok(Self::I64),
            0x7d => Ok(Self::F32),
            0x7c => Ok(Self::F64),
            0x7b => Err(Invalid::Unsupported("SIMD")),
            0x70 | 0x6f => Err(Invalid::Unsupported("references as values")),
            _ => reader.fail("an unknown type"),
        }
    }
}

/// A type of functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionType {
    /// The types of its parameters.
    pub parameters: Vec<ValueType>,
    /// The types of its results.
    pub results: Vec<ValueType>,
}

/// What a module exports under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exported {
    /// The function with this index.
    Function(u32),
    /// Its table.
    Table,
    /// Its memory.
    Memory,
    /// The global with this index.
    Global(u32),
}

/// A global: its type, whether it changes, and its first value as bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Global {
    pub(crate) kind: ValueType,
    pub(crate) is_mutable: bool,
    pub(crate) bits: u64,
}

/// Functions that are put into the table, or bytes that are put into the memory, at an offset; `None` for bytes that only instructions
/// put there.
#[derive(Clone, Debug)]
pub(crate) struct Segment<T> {
    pub(crate) offset: Option<u32>,
    pub(crate) items: Vec<T>,
}

/// A validated module.
#[derive(Debug, Default)]
pub struct Module {
    pub(crate) types: Vec<FunctionType>,
    /// The type of each function.
    pub(crate) functions: Vec<u32>,
    pub(crate) code: Vec<Function>,
    /// The number of elements of the table.
    pub(crate) table: Option<u32>,
    /// The least and the most pages of the memory.
    pub(crate) memory: Option<(u32, Option<u32>)>,
    pub(crate) globals: Vec<Global>,
    exports: BTreeMap<String, Exported>,
    pub(crate) elements: Vec<Segment<u32>>,
    pub(crate) data: Vec<Segment<u8>>,
    /// The number of data segments that is told before the code.
    pub(crate) data_count: Option<u32>,
}

/// Returns the names that a module exports, without validating anything else.
///
/// # Errors
/// When the file is no module.
pub fn export_names(bytes: &[u8]) -> Result<Vec<String>, Invalid> {
    let mut names = Vec::new();
    for_each_section(bytes, |id, mut section| {
        if id == 7 {
            for _ in 0..section.count()? {
                names.push(section.name()?);
                section.byte()?;
                section.u32()?;
            }
        }
        Ok(())
    })?;
    Ok(names)
}

fn for_each_section<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(u8, Reader<'a>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    if !bytes.starts_with(&MAGIC) {
        return Err(Invalid::NoModule);
    }
    let mut reader = Reader::new(bytes, 0);
    reader.take(MAGIC.len())?;
    while !reader.is_empty() {
        let id = reader.byte()?;
        let size = reader.count()?;
        each(id, reader.part(size)?)?;
    }
    Ok(())
}

impl Module {
    /// Reads and validates a module, and translates its functions.
    ///
    /// # Errors
    /// [`Invalid`] says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut module = Self::default();
        let mut last = 0;
        let mut bodies = Vec::new();
        for_each_section(bytes, |id, mut section| {
            // The number of data segments stands before the code.
            let place = match id {
                0 => {
                    section.name()?;
                    return Ok(());
                }
                12 => 10,
                10 | 11 => id + 1,
                1..=9 => id,
                13 => return Err(Invalid::Unsupported("exceptions")),
                _ => return section.fail("an unknown section"),
            };
            if place <= last {
                return section.fail("a section is out of order");
            }
            last = place;
            module.section(id, &mut section, &mut bodies)?;
            if section.is_empty() { Ok(()) } else { section.fail("a section is longer than what is in it") }
        })?;
        if bodies.len() != module.functions.len() {
            return Err(Invalid::At { what: "functions without code", at: bytes.len() });
        }
        if module.data_count.is_some_and(|count| count as usize != module.data.len()) {
            return Err(Invalid::At { what: "a wrong number of data segments", at: bytes.len() });
        }
        for (kind, body) in module.functions.iter().zip(bodies) {
            let function = validate::function(&Context { module: &module, kind: *kind }, body)?;
            module.code.push(function);
        }
        Ok(module)
    }

    /// Returns what is exported under a name.
    pub fn export(&self, name: &str) -> Option<Exported> {
        self.exports.get(name).copied()
    }

    /// Returns the type of the function with this index.
    pub fn function_type(&self, index: u32) -> Option<&FunctionType> {
        self.types.get(*self.functions.get(index as usize)? as usize)
    }

    /// Returns the bytes that its memory has at first; `None` without a memory.
    pub fn memory_size(&self) -> Option<u64> {
        Some(u64::from(self.memory?.0) * PAGE as u64)
    }

    fn section<'a>(&mut self, id: u8, section: &mut Reader<'a>, bodies: &mut Vec<Reader<'a>>) -> Result<(), Invalid> {
        let count = if id == 8 { 1 } else { section.count()? };
        match id {
            1 => {
                if count > MOST_FUNCTIONS {
                    return Err(Invalid::TooMany("types"));
                }
                for _ in 0..count {
                    self.types.push(function_type(section)?);
                }
            }
            2 => {
                if count > 0 {
                    return Err(Invalid::Import { module: section.name()?, name: section.name()? });
                }
            }
            3 => {
                if count > MOST_FUNCTIONS {
                    return Err(Invalid::TooMany("functions"));
                }
                for _ in 0..count {
                    let kind = section.u32()?;
                    if kind as usize >= self.types.len() {
                        return section.fail("an unknown type of a function");
                    }
                    self.functions.push(kind);
                }
            }
            4 => {
                for _ in 0..count {
                    if self.table.is_some() {
                        return Err(Invalid::TooMany("tables"));
                    }
                    match section.byte()? {
                        0x70 => {}
                        0x6f => return Err(Invalid::Unsupported("references as values")),
                        _ => return section.fail("an unknown type of a table"),
                    }
                    let (least, most) = limits(section)?;
                    if least > MOST_ELEMENTS {
                        return Err(Invalid::TooMany("elements of a table"));
                    }
                    if most.is_some_and(|most| most < least) {
                        return section.fail("a table with a maximum below its minimum");
                    }
                    self.table = Some(least);
                }
            }
            5 => {
                for _ in 0..count {
                    if self.memory.is_some() {
                        return Err(Invalid::TooMany("memories"));
                    }
                    let (least, most) = limits(section)?;
                    if least > MOST_PAGES || most.is_some_and(|most| most < least || most > MOST_PAGES) {
                        return section.fail("a memory of an impossible size");
                    }
                    self.memory = Some((least, most));
                }
            }
            6 => {
                if count > MOST_GLOBALS {
                    return Err(Invalid::TooMany("globals"));
                }
                for _ in 0..count {
                    let kind = ValueType::read(section)?;
                    let is_mutable = match section.byte()? {
                        0 => false,
                        1 => true,
                        _ => return section.fail("an unknown mutability"),
                    };
                    let bits = constant(section, kind)?;
                    self.globals.push(Global { kind, is_mutable, bits });
                }
            }
            7 => {
                for _ in 0..count {
                    self.export_of(section)?;
                }
            }
            8 => return Err(Invalid::Unsupported("a start function")),
            9 => {
                for _ in 0..count {
                    self.element_of(section)?;
                }
            }
            12 => self.data_count = Some(count as u32),
            10 => {
                for _ in 0..count {
                    let size = section.count()?;
                    bodies.push(section.part(size)?);
                }
            }
            _ => {
                for _ in 0..count {
                    self.data_of(section)?;
                }
            }
        }
        Ok(())
    }

    fn export_of(&mut self, section: &mut Reader) -> Result<(), Invalid> {
        let name = section.name()?;
        let kind = section.byte()?;
        let index = section.u32()?;
        let exported = match kind {
            0 if (index as usize) < self.functions.len() => Exported::Function(index),
            1 if index == 0 && self.table.is_some() => Exported::Table,
            2 if index == 0 && self.memory.is_some() => Exported::Memory,
            3 if (index as usize) < self.globals.len() => Exported::Global(index),
            0..=3 => return section.fail("an export of nothing"),
            _ => return section.fail("an unknown kind of export"),
        };
        match self.exports.insert(name, exported) {
            None => Ok(()),
            Some(_) => section.fail("two exports of one name"),
        }
    }

    fn element_of(&mut self, section: &mut Reader) -> Result<(), Invalid> {
        let flags = section.u32()?;
        let has_offset = match flags {
            0 => true,
            2 if section.u32()? == 0 => true,
            // Only declares that functions are referred to.
            3 => false,
            1 | 2 | 4..=7 => return Err(Invalid::Unsupported("references as values")),
            _ => return section.fail("an unknown kind of elements"),
        };
        let offset = has_offset.then(|| constant(section, ValueType::I32)).transpose()?;
        if has_offset && self.table.is_none() {
            return section.fail("elements without a table");
        }
        if flags != 0 && section.byte()? != 0 {
            return section.fail("an unknown kind of elements");
        }
        let count = section.count()?;
        let mut items = Vec::new();
        for _ in 0..count {
            let index = section.u32()?;
            if index as usize >= self.functions.len() {
                return section.fail("an unknown function among elements");
            }
            items.push(index);
        }
        if let Some(offset) = offset {
            self.elements.push(Segment { offset: Some(offset as u32), items });
        }
        Ok(())
    }

    fn data_of(&mut self, section: &mut Reader) -> Result<(), Invalid> {
        let offset = match section.u32()? {
            0 => Some(constant(section, ValueType::I32)? as u32),
            1 => None,
            2 if section.u32()? == 0 => Some(constant(section, ValueType::I32)? as u32),
            _ => return section.fail("an unknown kind of data"),
        };
        if offset.is_some() && self.memory.is_none() {
            return section.fail("data without a memory");
        }
        let count = section.count()?;
        self.data.push(Segment { offset, items: section.take(count)?.to_vec() });
        Ok(())
    }
}

fn function_type(section: &mut Reader) -> Result<FunctionType, Invalid> {
    if section.byte()? != 0x60 {
        return section.fail("a type that is none of functions");
    }
    let mut read = || -> Result<Vec<ValueType>, Invalid> {
        let count = section.count()?;
        if count > MOST_VALUES {
            return Err(Invalid::TooMany("parameters or results"));
        }
        (0..count).map(|_| ValueType::read(section)).collect()
    };
    Ok(FunctionType { parameters: read()?, results: read()? })
}

fn limits(section: &mut Reader) -> Result<(u32, Option<u32>), Invalid> {
    match section.byte()? {
        0 => Ok((section.u32()?, None)),
        1 => Ok((section.u32()?, Some(section.u32()?))),
        2 | 3 => Err(Invalid::Unsupported("threads")),
        4..=7 => Err(Invalid::Unsupported("64-bit memories")),
        _ => section.fail("unknown limits"),
    }
}

/// Reads an expression that is one constant, and returns its bits.
fn constant(section: &mut Reader, kind: ValueType) -> Result<u64, Invalid> {
    let (found, bits) = match section.byte()? {
        0x41 => (ValueType::I32, u64::from(section.i32()?.cast_unsigned())),
        0x42 => (ValueType::I64, section.i64()?.cast_unsigned()),
        0x43 => (ValueType::F32, u64::from(u32::from_le_bytes(section.array()?))),
        0x44 => (ValueType::F64, u64::from_le_bytes(section.array()?)),
        0xd0 | 0xd2 => return Err(Invalid::Unsupported("references as values")),
        _ => return section.fail("a constant that is none"),
    };
    if found != kind {
        return section.fail("a constant of another type");
    }
    if section.byte()? == 0x0b { Ok(bits) } else { section.fail("a constant that does not end") }
}
