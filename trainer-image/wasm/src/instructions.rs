//! What functions are translated to: instructions whose branches know where they go. Pure.
//!
//! An instruction costs one unit of fuel. `block`, `loop`, `end` and `nop` are no instructions here and cost nothing. Copies of memory also
//! cost a unit for each 16 bytes, and each new page costs 1,024.

/// A branch: where it goes, how many values it takes along, and how many stay below them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Jump {
    /// Index of the instruction.
    pub(crate) target: u32,
    /// Number of values that are taken along.
    pub(crate) keep: u32,
    /// Number of operands of the function that stay below.
    pub(crate) height: u32,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instruction {
    Unreachable,
    /// Branches always. Jumps are by index in the function.
    Branch(u32),
    /// Branches if the operand is not 0.
    BranchIf(u32),
    /// Goes to an instruction if the operand is 0.
    Unless(u32),
    /// Branches by the operand: the first jump, and the number of jumps without the last one, which is that of all other operands.
    Table(u32, u32),
    Return,
    Call(u32),
    /// Calls the function at a place in the table, which must have this type.
    CallIndirect(u32),
    Drop,
    Select,
    LocalGet(u32),
    LocalSet(u32),
    LocalTee(u32),
    GlobalGet(u32),
    GlobalSet(u32),
    /// Reads memory: the byte of the instruction, and an offset.
    Load(u8, u32),
    /// Writes memory: the byte of the instruction, and an offset.
    Store(u8, u32),
    MemorySize,
    MemoryGrow,
    MemoryInit(u32),
    DataDrop(u32),
    MemoryCopy,
    MemoryFill,
    /// The bits of a number.
    Constant(u64),
    /// Computes: the byte of the instruction.
    Numeric(u8),
    /// Converts a float to an integer without a trap: the number after the byte 0xfc.
    Saturate(u8),
}

/// A function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// The number of its parameters.
    pub(crate) parameters: u32,
    /// The number of its results.
    pub(crate) results: u32,
    /// The number of its local variables, without the parameters.
    pub(crate) locals: u32,
    /// The most operands that it has at once.
    pub(crate) most: u32,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) jumps: Vec<Jump>,
}
