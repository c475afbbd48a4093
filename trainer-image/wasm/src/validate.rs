//! Validation of functions, by the algorithm in the appendix of the specification, and their translation. Pure.

use crate::{
    binary::{Invalid, Reader},
    instructions::{Function, Instruction, Jump},
    module::{FunctionType, Module, ValueType},
    numeric,
};

/// The most local variables of a function.
const MOST_LOCALS: u32 = 50_000;

use ValueType::{F32, F64, I32, I64};

/// What a function is validated in.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) module: &'a Module,
    /// The type of the function.
    pub(crate) kind: u32,
}

/// What has begun and not ended.
struct Frame {
    opcode: u8,
    start: Vec<ValueType>,
    end: Vec<ValueType>,
    /// Number of operands below it.
    height: usize,
    is_unreachable: bool,
    /// Where a loop begins.
    target: u32,
    /// Jumps that go to its end.
    pending: Vec<u32>,
    /// The instruction that goes to `else`, or to the end if there is none.
    unless: Option<usize>,
}

impl Frame {
    /// Returns what a branch to it takes along.
    fn label(&self) -> &[ValueType] {
        if self.opcode == LOOP { &self.start } else { &self.end }
    }
}

const BLOCK: u8 = 0x02;
const LOOP: u8 = 0x03;
const IF: u8 = 0x04;
const ELSE: u8 = 0x05;

struct Validator<'a, 'b> {
    context: Context<'b>,
    reader: Reader<'a>,
    locals: Vec<ValueType>,
    /// The types of operands; `None` for any type, which exists only after an unconditional branch.
    operands: Vec<Option<ValueType>>,
    frames: Vec<Frame>,
    most: usize,
    instructions: Vec<Instruction>,
    jumps: Vec<Jump>,
}

/// Validates a function, and translates it.
///
/// # Errors
/// [`Invalid`] says what is wrong with it.
pub(crate) fn function(context: &Context, mut reader: Reader) -> Result<Function, Invalid> {
    let kind = &context.module.types[context.kind as usize];
    let mut locals = kind.parameters.clone();
    let mut all = 0_u32;
    for _ in 0..reader.count()? {
        let count = reader.u32()?;
        let kind = ValueType::read(&mut reader)?;
        all = all.checked_add(count).filter(|all| *all <= MOST_LOCALS).ok_or(Invalid::TooMany("local variables"))?;
        locals.extend(std::iter::repeat_n(kind, count as usize));
    }
    let (operands, frames, instructions, jumps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut validator = Validator { context: *context, reader, locals, operands, frames, most: 0, instructions, jumps };
    validator.begin(BLOCK, Vec::new(), kind.results.clone());
    while !validator.frames.is_empty() {
        validator.instruction()?;
    }
    if !validator.reader.is_empty() {
        return validator.reader.fail("a function is longer than its body");
    }
    validator.emit(Instruction::Return);
    let Validator { most, instructions, jumps, .. } = validator;
    Ok(Function {
        parameters: kind.parameters.len() as u32,
        results: kind.results.len() as u32,
        locals: all,
        most: most as u32,
        instructions,
        jumps,
    })
}

impl Validator<'_, '_> {
    fn emit(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }

    fn push(&mut self, kind: ValueType) {
        self.operands.push(Some(kind));
        self.most = self.most.max(self.operands.len());
    }

    fn push_all(&mut self, kinds: &[ValueType]) {
        for kind in kinds {
            self.push(*kind);
        }
    }

    /// Removes an operand of any type, and returns its type.
    fn pop_any(&mut self) -> Result<Option<ValueType>, Invalid> {
        let Some(frame) = self.frames.last() else { return self.reader.fail("an instruction after the end") };
        if self.operands.len() == frame.height {
            return if frame.is_unreachable { Ok(None) } else { self.reader.fail("an operand is missing") };
        }
        Ok(self.operands.pop().flatten())
    }

    fn pop(&mut self, kind: ValueType) -> Result<(), Invalid> {
        match self.pop_any()? {
            Some(found) if found != kind => self.reader.fail("an operand has another type"),
            _ => Ok(()),
        }
    }

    fn pop_all(&mut self, kinds: &[ValueType]) -> Result<(), Invalid> {
        kinds.iter().rev().try_for_each(|kind| self.pop(*kind))
    }

    fn begin(&mut self, opcode: u8, start: Vec<ValueType>, end: Vec<ValueType>) {
        let (height, target) = (self.operands.len(), self.instructions.len() as u32);
        self.push_all(&start);
        let (is_unreachable, pending, unless) = (false, Vec::new(), None);
        self.frames.push(Frame { opcode, start, end, height, is_unreachable, target, pending, unless });
    }

    /// Ends the innermost frame, without what follows it.
    fn finish(&mut self) -> Result<Frame, Invalid> {
        let Some(frame) = self.frames.last() else { return self.reader.fail("an end of nothing") };
        let (end, height) = (frame.end.clone(), frame.height);
        self.pop_all(&end)?;
        if self.operands.len() != height {
            return self.reader.fail("operands are left over");
        }
        self.frames.pop().map_or_else(|| self.reader.fail("an end of nothing"), Ok)
    }

    /// After an unconditional branch, operands have any type.
    fn unreachable(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            self.operands.truncate(frame.height);
            frame.is_unreachable = true;
        }
    }

    fn frame(&self, depth: u32) -> Result<&Frame, Invalid> {
        let index = self.frames.len().checked_sub(depth as usize + 1);
        index.map_or_else(|| self.reader.fail("a branch to nothing"), |index| Ok(&self.frames[index]))
    }

    /// Makes a jump to a frame, and returns its index.
    fn jump(&mut self, depth: u32) -> Result<u32, Invalid> {
        let frame = self.frame(depth)?;
        let jump = Jump { target: frame.target, keep: frame.label().len() as u32, height: frame.height as u32 };
        let (index, is_loop) = (self.jumps.len() as u32, frame.opcode == LOOP);
        self.jumps.push(jump);
        if !is_loop {
            let at = self.frames.len() - 1 - depth as usize;
            self.frames[at].pending.push(index);
        }
        Ok(index)
    }

    fn block_type(&mut self) -> Result<FunctionType, Invalid> {
        let kind = self.reader.i33()?;
        let result = match kind {
            -64 => return Ok(FunctionType::default()),
            -1 => I32,
            -2 => I64,
            -3 => F32,
            -4 => F64,
            -5 => return Err(Invalid::Unsupported("SIMD")),
            0.. => {
                let known = usize::try_from(kind).ok().and_then(|index| self.context.module.types.get(index));
                return known.map_or_else(|| self.reader.fail("an unknown type of a block"), |it| Ok(it.clone()));
            }
            _ => return Err(Invalid::Unsupported("references as values")),
        };
        Ok(FunctionType { parameters: Vec::new(), results: vec![result] })
    }

    fn local(&mut self) -> Result<(u32, ValueType), Invalid> {
        let index = self.reader.u32()?;
        let kind = self.locals.get(index as usize).copied();
        kind.map_or_else(|| self.reader.fail("an unknown local variable"), |kind| Ok((index, kind)))
    }

    fn needs_memory(&self) -> Result<(), Invalid> {
        match self.context.module.memory {
            Some(_) => Ok(()),
            None => self.reader.fail("an instruction on a memory that does not exist"),
        }
    }

    fn zero(&mut self) -> Result<(), Invalid> {
        if self.reader.byte()? == 0 { Ok(()) } else { self.reader.fail("an unknown memory or table") }
    }

    /// Reads alignment and offset of an access to `width` bytes of memory.
    fn access(&mut self, width: u32) -> Result<u32, Invalid> {
        self.needs_memory()?;
        let align = self.reader.u32()?;
        if align >= 32 || 1 << align > width {
            return self.reader.fail("an alignment larger than what is accessed");
        }
        self.reader.u32()
    }

    fn data(&mut self) -> Result<u32, Invalid> {
        let index = self.reader.u32()?;
        match self.context.module.data_count {
            Some(count) if index < count => Ok(index),
            _ => self.reader.fail("an unknown data segment"),
        }
    }

    fn call(&mut self, kind: &FunctionType) -> Result<(), Invalid> {
        self.pop_all(&kind.parameters)?;
        self.push_all(&kind.results);
        Ok(())
    }

    fn instruction(&mut self) -> Result<(), Invalid> {
        let opcode = self.reader.byte()?;
        match opcode {
            0x00 => {
                self.emit(Instruction::Unreachable);
                self.unreachable();
            }
            0x01 => {}
            BLOCK | LOOP => {
                let FunctionType { parameters, results } = self.block_type()?;
                self.pop_all(&parameters)?;
                self.begin(opcode, parameters, results);
            }
            IF => {
                let FunctionType { parameters, results } = self.block_type()?;
                self.pop(I32)?;
                self.pop_all(&parameters)?;
                let unless = self.instructions.len();
                self.emit(Instruction::Unless(0));
                self.begin(opcode, parameters, results);
                if let Some(frame) = self.frames.last_mut() {
                    frame.unless = Some(unless);
                }
            }
            ELSE => self.otherwise()?,
            0x0b => self.end()?,
            0x0c..=0x0f => self.branch(opcode)?,
            0x10 => {
                let index = self.reader.u32()?;
                let Some(kind) = self.context.module.function_type(index) else {
                    return self.reader.fail("a call of an unknown function");
                };
                self.call(&kind.clone())?;
                self.emit(Instruction::Call(index));
            }
            0x11 => {
                let index = self.reader.u32()?;
                if self.reader.u32()? != 0 || self.context.module.table.is_none() {
                    return self.reader.fail("a call through a table that does not exist");
                }
                let Some(kind) = self.context.module.types.get(index as usize) else {
                    return self.reader.fail("a call of an unknown type");
                };
                self.pop(I32)?;
                self.call(&kind.clone())?;
                self.emit(Instruction::CallIndirect(index));
            }
            0x1a => {
                self.pop_any()?;
                self.emit(Instruction::Drop);
            }
            0x1b => {
                self.pop(I32)?;
                let (one, other) = (self.pop_any()?, self.pop_any()?);
                if one.is_some() && other.is_some() && one != other {
                    return self.reader.fail("an operand has another type");
                }
                self.operands.push(one.or(other));
                self.emit(Instruction::Select);
            }
            0x1c => {
                if self.reader.u32()? != 1 {
                    return self.reader.fail("a selection of other than one value");
                }
                let kind = ValueType::read(&mut self.reader)?;
                self.pop_all(&[kind, kind, I32])?;
                self.push(kind);
                self.emit(Instruction::Select);
            }
            0x20 => {
                let (index, kind) = self.local()?;
                self.push(kind);
                self.emit(Instruction::LocalGet(index));
            }
            0x21 => {
                let (index, kind) = self.local()?;
                self.pop(kind)?;
                self.emit(Instruction::LocalSet(index));
            }
            0x22 => {
                let (index, kind) = self.local()?;
                self.pop(kind)?;
                self.push(kind);
                self.emit(Instruction::LocalTee(index));
            }
            0x23 | 0x24 => {
                let index = self.reader.u32()?;
                let Some(global) = self.context.module.globals.get(index as usize).copied() else {
                    return self.reader.fail("an unknown global");
                };
                if opcode == 0x23 {
                    self.push(global.kind);
                    self.emit(Instruction::GlobalGet(index));
                } else if global.is_mutable {
                    self.pop(global.kind)?;
                    self.emit(Instruction::GlobalSet(index));
                } else {
                    return self.reader.fail("a change of a constant global");
                }
            }
            0x28..=0x35 => {
                let (kind, width) = load(opcode);
                let offset = self.access(width)?;
                self.pop(I32)?;
                self.push(kind);
                self.emit(Instruction::Load(opcode, offset));
            }
            0x36..=0x3e => {
                let (kind, width) = store(opcode);
                let offset = self.access(width)?;
                self.pop_all(&[I32, kind])?;
                self.emit(Instruction::Store(opcode, offset));
            }
            0x3f => {
                self.needs_memory()?;
                self.zero()?;
                self.push(I32);
                self.emit(Instruction::MemorySize);
            }
            0x40 => {
                self.needs_memory()?;
                self.zero()?;
                self.pop(I32)?;
                self.push(I32);
                self.emit(Instruction::MemoryGrow);
            }
            0x41 => {
                let bits = u64::from(self.reader.i32()?.cast_unsigned());
                self.constant(I32, bits);
            }
            0x42 => {
                let bits = self.reader.i64()?.cast_unsigned();
                self.constant(I64, bits);
            }
            0x43 => {
                let bits = u64::from(u32::from_le_bytes(self.reader.array()?));
                self.constant(F32, bits);
            }
            0x44 => {
                let bits = u64::from_le_bytes(self.reader.array()?);
                self.constant(F64, bits);
            }
            0x45..=0xc4 => {
                let (parameters, result) = numeric::signature(opcode);
                self.pop_all(parameters)?;
                self.push(result);
                self.emit(Instruction::Numeric(opcode));
            }
            0xfc => self.prefixed()?,
            0xfd => return Err(Invalid::Unsupported("SIMD")),
            0xfe => return Err(Invalid::Unsupported("threads")),
            0x06..=0x0a | 0x18 | 0x19 | 0x1f => return Err(Invalid::Unsupported("exceptions")),
            0x12..=0x15 => return Err(Invalid::Unsupported("tail calls")),
            0x25 | 0x26 | 0xd0..=0xd6 | 0xfb => return Err(Invalid::Unsupported("references as values")),
            _ => return self.reader.fail("an unknown instruction"),
        }
        Ok(())
    }

    fn constant(&mut self, kind: ValueType, bits: u64) {
        self.push(kind);
        self.emit(Instruction::Constant(bits));
    }

    /// `else`
    fn otherwise(&mut self) -> Result<(), Invalid> {
        if self.frames.last().is_none_or(|frame| frame.opcode != IF) {
            return self.reader.fail("an else without an if");
        }
        // What was true goes to the end.
        let jump = self.jump(0)?;
        self.emit(Instruction::Branch(jump));
        let Frame { start, end, pending, unless, .. } = self.finish()?;
        let here = self.instructions.len() as u32;
        if let Some(unless) = unless {
            self.instructions[unless] = Instruction::Unless(here);
        }
        self.begin(ELSE, start, end);
        if let Some(frame) = self.frames.last_mut() {
            frame.pending = pending;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Invalid> {
        let Frame { opcode, start, end, pending, unless, .. } = self.finish()?;
        if opcode == IF && start != end {
            return self.reader.fail("an if without an else has other results than parameters");
        }
        let here = self.instructions.len() as u32;
        if let Some(unless) = unless {
            self.instructions[unless] = Instruction::Unless(here);
        }
        for index in pending {
            self.jumps[index as usize].target = here;
        }
        self.push_all(&end);
        Ok(())
    }

    fn branch(&mut self, opcode: u8) -> Result<(), Invalid> {
        match opcode {
            0x0c => {
                let depth = self.reader.u32()?;
                let label = self.frame(depth)?.label().to_vec();
                let jump = self.jump(depth)?;
                self.pop_all(&label)?;
                self.emit(Instruction::Branch(jump));
                self.unreachable();
            }
            0x0d => {
                let depth = self.reader.u32()?;
                let label = self.frame(depth)?.label().to_vec();
                let jump = self.jump(depth)?;
                self.pop(I32)?;
                self.pop_all(&label)?;
                self.push_all(&label);
                self.emit(Instruction::BranchIf(jump));
            }
            0x0e => {
                let count = self.reader.u32()?;
                if count as usize > self.reader.left() {
                    return Err(Invalid::Ends);
                }
                self.pop(I32)?;
                let first = self.jumps.len() as u32;
                let mut kept = None;
                for place in 0..=count {
                    let depth = self.reader.u32()?;
                    let label = self.frame(depth)?.label().to_vec();
                    if kept.is_some_and(|kept| kept != label.len()) {
                        return self.reader.fail("branches that take along other numbers of values");
                    }
                    kept = Some(label.len());
                    self.jump(depth)?;
                    let mut taken = Vec::with_capacity(label.len());
                    for kind in label.iter().rev() {
                        let found = self.pop_any()?;
                        if found.is_some_and(|found| found != *kind) {
                            return self.reader.fail("an operand has another type");
                        }
                        taken.push(found);
                    }
                    // The other branches take the same values along.
                    if place < count {
                        self.operands.extend(taken.into_iter().rev());
                    }
                }
                self.emit(Instruction::Table(first, count));
                self.unreachable();
            }
            _ => {
                let results = self.context.module.types[self.context.kind as usize].results.clone();
                self.pop_all(&results)?;
                self.emit(Instruction::Return);
                self.unreachable();
            }
        }
        Ok(())
    }

    fn prefixed(&mut self) -> Result<(), Invalid> {
        let number = self.reader.u32()?;
        match number {
            0..=7 => {
                let from = if number & 2 == 0 { F32 } else { F64 };
                self.pop(from)?;
                self.push(if number < 4 { I32 } else { I64 });
                self.emit(Instruction::Saturate(number as u8));
            }
            8 => {
                let index = self.data()?;
                self.needs_memory()?;
                self.zero()?;
                self.pop_all(&[I32, I32, I32])?;
                self.emit(Instruction::MemoryInit(index));
            }
            9 => {
                let index = self.data()?;
                self.emit(Instruction::DataDrop(index));
            }
            10 => {
                self.needs_memory()?;
                self.zero()?;
                self.zero()?;
                self.pop_all(&[I32, I32, I32])?;
                self.emit(Instruction::MemoryCopy);
            }
            11 => {
                self.needs_memory()?;
                self.zero()?;
                self.pop_all(&[I32, I32, I32])?;
                self.emit(Instruction::MemoryFill);
            }
            12..=17 => return Err(Invalid::Unsupported("references as values")),
            19..=22 => return Err(Invalid::Unsupported("wide arithmetic")),
            _ => return self.reader.fail("an unknown instruction"),
        }
        Ok(())
    }
}

/// Returns the type of what is read, and the bytes that are read.
fn load(opcode: u8) -> (ValueType, u32) {
    match opcode {
        0x28 => (I32, 4),
        0x29 => (I64, 8),
        0x2a => (F32, 4),
        0x2b => (F64, 8),
        0x2c | 0x2d => (I32, 1),
        0x2e | 0x2f => (I32, 2),
        0x30 | 0x31 => (I64, 1),
        0x32 | 0x33 => (I64, 2),
        _ => (I64, 4),
    }
}

/// Returns the type of what is written, and the bytes that are written.
fn store(opcode: u8) -> (ValueType, u32) {
    match opcode {
        0x36 => (I32, 4),
        0x37 => (I64, 8),
        0x38 => (F32, 4),
        0x39 => (F64, 8),
        0x3a => (I32, 1),
        0x3b => (I32, 2),
        0x3c => (I64, 1),
        0x3d => (I64, 2),
        _ => (I64, 4),
    }
}
