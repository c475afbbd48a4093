//! Runs functions of a module. Pure: an instance is its memory, its globals and its fuel.

use crate::{
    instructions::{Function, Instruction, Jump},
    module::{Exported, Module, PAGE, ValueType},
    numeric,
};

/// The most functions that have begun and not ended.
const MOST_CALLS: usize = 2000;
/// The most values on the stack: parameters, local variables and operands of all these functions.
const MOST_VALUES: usize = 1 << 18;
/// Bytes of a copy for a unit of fuel.
const BYTES: u64 = 16;
/// Fuel of a new page.
const PAGE_FUEL: u64 = 1024;

/// A value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A number of 32 bits.
    I32(u32),
    /// A number of 64 bits.
    I64(u64),
    /// A float of 32 bits.
    F32(f32),
    /// A float of 64 bits.
    F64(f64),
}

impl Value {
    fn bits(self) -> u64 {
        match self {
            Self::I32(x) => u64::from(x),
            Self::I64(x) => x,
            Self::F32(x) => u64::from(x.to_bits()),
            Self::F64(x) => x.to_bits(),
        }
    }

    fn of(kind: ValueType, bits: u64) -> Self {
        match kind {
            ValueType::I32 => Self::I32(bits as u32),
            ValueType::I64 => Self::I64(bits),
            ValueType::F32 => Self::F32(f32::from_bits(bits as u32)),
            ValueType::F64 => Self::F64(f64::from_bits(bits)),
        }
    }

    fn kind(self) -> ValueType {
        match self {
            Self::I32(_) => ValueType::I32,
            Self::I64(_) => ValueType::I64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
        }
    }
}

/// Bounds of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of its memory.
    pub memory: usize,
    /// Fuel of all its calls, about one unit for each instruction.
    pub fuel: u64,
}

/// Why a function ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trap {
    /// `unreachable`, which is how Rust panics.
    #[error("it panicked (unreachable)")]
    Unreachable,
    /// An access beyond the memory.
    #[error("it accessed memory that it does not have")]
    Memory,
    /// A call through a place of the table that does not exist or is empty.
    #[error("it called a function that does not exist")]
    Table,
    /// A call through the table of a function of another type.
    #[error("it called a function as one of another type")]
    Type,
    /// A division by 0.
    #[error("it divided by 0")]
    DivisionByZero,
    /// An integer that does not have its type's number of bits.
    #[error("an integer overflowed")]
    Overflow,
    /// NaN became an integer.
    #[error("it converted NaN to an integer")]
    Conversion,
    /// Too many calls within calls.
    #[error("its stack overflowed")]
    Stack,
    /// All fuel was used.
    #[error("it used all of its fuel")]
    Fuel,
    /// The memory is to be larger than the limit.
    #[error("it needs more memory than it may have")]
    OutOfMemory,
    /// The module has no such function, or another number or type of arguments.
    #[error("it has no such function")]
    Missing,
}

/// A module with its memory.
#[derive(Debug)]
pub struct Instance<'a> {
    module: &'a Module,
    memory: Vec<u8>,
    globals: Vec<u64>,
    /// Functions by their places; `None` for empty ones.
    table: Vec<Option<u32>>,
    /// Data segments that instructions have dropped.
    dropped: Vec<bool>,
    limits: Limits,
    stack: Vec<u64>,
}

/// A function that has begun.
#[derive(Clone, Copy)]
struct Call<'a> {
    function: &'a Function,
    /// The next instruction.
    next: usize,
    /// The place of its first parameter on the stack.
    base: usize,
}

impl<'a> Instance<'a> {
    /// Makes the memory, globals and table of a module.
    ///
    /// # Errors
    /// The memory is larger than the limit, or elements or data are not within table or memory.
    pub fn new(module: &'a Module, limits: Limits) -> Result<Self, Trap> {
        let pages = module.memory.map_or(0, |(least, _)| least as usize);
        if pages.saturating_mul(PAGE) > limits.memory {
            return Err(Trap::OutOfMemory);
        }
        let mut memory = vec![0; pages * PAGE];
        let mut table = vec![None; module.table.unwrap_or(0) as usize];
        for segment in &module.elements {
            let start = segment.offset.unwrap_or(0) as usize;
            let places = table.get_mut(start..start.saturating_add(segment.items.len())).ok_or(Trap::Table)?;
            places.iter_mut().zip(&segment.items).for_each(|(place, index)| *place = Some(*index));
        }
        let mut dropped = Vec::new();
        for segment in &module.data {
            if let Some(start) = segment.offset {
                let start = start as usize;
                let end = start.saturating_add(segment.items.len());
                memory.get_mut(start..end).ok_or(Trap::Memory)?.copy_from_slice(&segment.items);
            }
            dropped.push(segment.offset.is_some());
        }
        let globals = module.globals.iter().map(|global| global.bits).collect();
        Ok(Self { module, memory, globals, table, dropped, limits, stack: Vec::new() })
    }

    /// Returns the fuel that is left.
    pub fn fuel(&self) -> u64 {
        self.limits.fuel
    }

    /// Returns its memory.
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Writes bytes into its memory.
    ///
    /// # Errors
    /// They are not within it.
    pub fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Trap> {
        let at = at as usize;
        let place = self.memory.get_mut(at..at.saturating_add(bytes.len())).ok_or(Trap::Memory)?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// Calls the function that is exported under a name.
    ///
    /// # Errors
    /// There is no such function with these arguments, or it traps.
    pub fn call(&mut self, name: &str, arguments: &[Value]) -> Result<Vec<Value>, Trap> {
        let Some(Exported::Function(index)) = self.module.export(name) else { return Err(Trap::Missing) };
        let kind = self.module.function_type(index).ok_or(Trap::Missing)?;
        if !kind.parameters.iter().copied().eq(arguments.iter().map(|value| value.kind())) {
            return Err(Trap::Missing);
        }
        self.stack.clear();
        self.stack.extend(arguments.iter().map(|value| value.bits()));
        self.run(index)?;
        Ok(kind.results.iter().zip(&self.stack).map(|(kind, bits)| Value::of(*kind, *bits)).collect())
    }

    fn pop(&mut self) -> u64 {
        // Validation has counted the operands.
        self.stack.pop().unwrap_or_default()
    }

    fn pop_u32(&mut self) -> u32 {
        self.pop() as u32
    }

    fn spend(&mut self, fuel: u64) -> Result<(), Trap> {
        self.limits.fuel = self.limits.fuel.checked_sub(fuel).ok_or(Trap::Fuel)?;
        Ok(())
    }

    /// Begins a function whose arguments are on the stack.
    fn begin(&mut self, index: u32, calls: usize) -> Result<Call<'a>, Trap> {
        let function = &self.module.code[index as usize];
        let base = self.stack.len() - function.parameters as usize;
        let most = self.stack.len() + (function.locals + function.most) as usize;
        if calls >= MOST_CALLS || most > MOST_VALUES {
            return Err(Trap::Stack);
        }
        self.stack.resize(self.stack.len() + function.locals as usize, 0);
        Ok(Call { function, next: 0, base })
    }

    fn jump(&mut self, call: &mut Call, index: u32) {
        let Jump { target, keep, height } = call.function.jumps[index as usize];
        let operands = call.base + (call.function.parameters + call.function.locals) as usize;
        self.keep(operands + height as usize, keep as usize);
        call.next = target as usize;
    }

    /// Moves the last `count` values down to `place`.
    fn keep(&mut self, place: usize, count: usize) {
        let from = self.stack.len() - count;
        if from > place {
            self.stack.copy_within(from.., place);
            self.stack.truncate(place + count);
        }
    }

    fn run(&mut self, index: u32) -> Result<(), Trap> {
        let mut outer: Vec<Call> = Vec::new();
        let mut call = self.begin(index, 0)?;
        loop {
            self.spend(1)?;
            let instruction = call.function.instructions[call.next];
            call.next += 1;
            match instruction {
                Instruction::Unreachable => return Err(Trap::Unreachable),
                Instruction::Branch(jump) => self.jump(&mut call, jump),
                Instruction::BranchIf(jump) => {
                    if self.pop_u32() != 0 {
                        self.jump(&mut call, jump);
                    }
                }
                Instruction::Unless(target) => {
                    if self.pop_u32() == 0 {
                        call.next = target as usize;
                    }
                }
                Instruction::Table(first, count) => {
                    let chosen = self.pop_u32().min(count);
                    self.jump(&mut call, first + chosen);
                }
                Instruction::Return => {
                    self.keep(call.base, call.function.results as usize);
                    match outer.pop() {
                        Some(caller) => call = caller,
                        None => return Ok(()),
                    }
                }
                Instruction::Call(index) => {
                    let called = self.begin(index, outer.len() + 1)?;
                    outer.push(std::mem::replace(&mut call, called));
                }
                Instruction::CallIndirect(kind) => {
                    let place = self.pop_u32() as usize;
                    let index = self.table.get(place).copied().flatten().ok_or(Trap::Table)?;
                    let found = self.module.functions[index as usize];
                    if self.module.types[found as usize] != self.module.types[kind as usize] {
                        return Err(Trap::Type);
                    }
                    let called = self.begin(index, outer.len() + 1)?;
                    outer.push(std::mem::replace(&mut call, called));
                }
                Instruction::Drop => _ = self.pop(),
                Instruction::Select => {
                    let (condition, other) = (self.pop_u32(), self.pop());
                    if condition == 0 {
                        self.pop();
                        self.stack.push(other);
                    }
                }
                Instruction::LocalGet(index) => self.stack.push(self.stack[call.base + index as usize]),
                Instruction::LocalSet(index) => {
                    let value = self.pop();
                    self.stack[call.base + index as usize] = value;
                }
                Instruction::LocalTee(index) => {
                    let value = self.stack.last().copied().unwrap_or_default();
                    self.stack[call.base + index as usize] = value;
                }
                Instruction::GlobalGet(index) => self.stack.push(self.globals[index as usize]),
                Instruction::GlobalSet(index) => {
                    let value = self.pop();
                    self.globals[index as usize] = value;
                }
                Instruction::Load(opcode, offset) => {
                    let at = u64::from(self.pop_u32()) + u64::from(offset);
                    let value = load(&self.memory, opcode, at).ok_or(Trap::Memory)?;
                    self.stack.push(value);
                }
                Instruction::Store(opcode, offset) => {
                    let value = self.pop();
                    let at = u64::from(self.pop_u32()) + u64::from(offset);
                    store(&mut self.memory, opcode, at, value).ok_or(Trap::Memory)?;
                }
                Instruction::Constant(bits) => self.stack.push(bits),
                Instruction::Numeric(opcode) if numeric::is_binary(opcode) => {
                    let (b, a) = (self.pop(), self.pop());
                    self.stack.push(numeric::binary(opcode, a, b)?);
                }
                Instruction::Numeric(opcode) => {
                    let a = self.pop();
                    self.stack.push(numeric::unary(opcode, a)?);
                }
                Instruction::Saturate(number) => {
                    let a = self.pop();
                    self.stack.push(numeric::saturate(number, a));
                }
                Instruction::MemorySize => self.stack.push((self.memory.len() / PAGE) as u64),
                Instruction::MemoryGrow => self.grow()?,
                Instruction::MemoryInit(_)
                | Instruction::DataDrop(_)
                | Instruction::MemoryCopy
                | Instruction::MemoryFill => self.bulk(instruction)?,
            }
        }
    }

    /// `memory.grow`: −1 if the module's own maximum forbids it.
    fn grow(&mut self) -> Result<(), Trap> {
        let more = u64::from(self.pop_u32());
        let before = (self.memory.len() / PAGE) as u64;
        let most = self.module.memory.and_then(|(_, most)| most).unwrap_or(1 << 16);
        if before + more > u64::from(most) {
            self.stack.push(u64::from(u32::MAX));
            return Ok(());
        }
        let bytes = (before + more) * PAGE as u64;
        if bytes > self.limits.memory as u64 {
            return Err(Trap::OutOfMemory);
        }
        self.spend(more * PAGE_FUEL)?;
        self.memory.resize(bytes as usize, 0);
        self.stack.push(before);
        Ok(())
    }

    /// Instructions on many bytes of memory.
    fn bulk(&mut self, instruction: Instruction) -> Result<(), Trap> {
        if let Instruction::DataDrop(index) = instruction {
            self.dropped[index as usize] = true;
            return Ok(());
        }
        let (count, from, to) = (self.pop_u32(), self.pop_u32(), self.pop_u32());
        let range = |start: u32| {
            let end = start as usize + count as usize;
            start as usize..end
        };
        let is_within = |length: usize, start: u32| range(start).end <= length;
        if !is_within(self.memory.len(), to) {
            return Err(Trap::Memory);
        }
        self.spend(u64::from(count) / BYTES)?;
        match instruction {
            Instruction::MemoryFill => self.memory[range(to)].fill(from as u8),
            Instruction::MemoryCopy if is_within(self.memory.len(), from) => {
                self.memory.copy_within(range(from), to as usize);
            }
            Instruction::MemoryInit(index) => {
                let whole = self.module.data[index as usize].items.as_slice();
                let items = if self.dropped[index as usize] { &[] } else { whole };
                if !is_within(items.len(), from) {
                    return Err(Trap::Memory);
                }
                self.memory[range(to)].copy_from_slice(&items[range(from)]);
            }
            _ => return Err(Trap::Memory),
        }
        Ok(())
    }
}

/// Reads `N` bytes; `None` if they are not within the memory.
fn bytes<const N: usize>(memory: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    memory.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn load(memory: &[u8], opcode: u8, at: u64) -> Option<u64> {
    let signed = |x: i32| u64::from(x.cast_unsigned());
    Some(match opcode {
        0x28 | 0x2a | 0x35 => u64::from(u32::from_le_bytes(bytes(memory, at)?)),
        0x29 | 0x2b => u64::from_le_bytes(bytes(memory, at)?),
        0x2c => signed(i32::from(i8::from_le_bytes(bytes(memory, at)?))),
        0x2d | 0x31 => u64::from(u8::from_le_bytes(bytes(memory, at)?)),
        0x2e => signed(i32::from(i16::from_le_bytes(bytes(memory, at)?))),
        0x2f | 0x33 => u64::from(u16::from_le_bytes(bytes(memory, at)?)),
        0x30 => i64::from(i8::from_le_bytes(bytes(memory, at)?)).cast_unsigned(),
        0x32 => i64::from(i16::from_le_bytes(bytes(memory, at)?)).cast_unsigned(),
        _ => i64::from(i32::from_le_bytes(bytes(memory, at)?)).cast_unsigned(),
    })
}

fn store(memory: &mut [u8], opcode: u8, at: u64, value: u64) -> Option<()> {
    let width = match opcode {
        0x37 | 0x39 => 8,
        0x36 | 0x38 | 0x3e => 4,
        0x3b | 0x3d => 2,
        _ => 1,
    };
    let at = usize::try_from(at).ok()?;
    memory.get_mut(at..at.checked_add(width)?)?.copy_from_slice(&value.to_le_bytes()[..width]);
    Some(())
}
