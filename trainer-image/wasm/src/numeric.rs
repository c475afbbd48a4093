//! Instructions that compute: their types, and what they do with the bits of their operands. Pure.
//!
//! Where the specification lets a NaN have any bits, it has those of the canonical one, so that results have the same bits everywhere.

use crate::{machine::Trap, module::ValueType};

use ValueType::{F32, F64, I32, I64};

/// The canonical NaN.
const NAN32: u32 = 0x7fc0_0000;
/// The canonical NaN.
const NAN64: u64 = 0x7ff8_0000_0000_0000;

/// Returns the types of the operands and of the result of an instruction from 0x45 to 0xc4.
pub(crate) fn signature(opcode: u8) -> (&'static [ValueType], ValueType) {
    match opcode {
        0x45 | 0x67..=0x69 | 0xc0 | 0xc1 => (&[I32], I32),
        0x46..=0x4f | 0x6a..=0x78 => (&[I32, I32], I32),
        0x50 | 0xa7 => (&[I64], I32),
        0x51..=0x5a => (&[I64, I64], I32),
        0x5b..=0x60 => (&[F32, F32], I32),
        0x61..=0x66 => (&[F64, F64], I32),
        0x79..=0x7b | 0xc2..=0xc4 => (&[I64], I64),
        0x7c..=0x8a => (&[I64, I64], I64),
        0x8b..=0x91 => (&[F32], F32),
        0x92..=0x98 => (&[F32, F32], F32),
        0x99..=0x9f => (&[F64], F64),
        0xa0..=0xa6 => (&[F64, F64], F64),
        0xa8 | 0xa9 | 0xbc => (&[F32], I32),
        0xaa | 0xab => (&[F64], I32),
        0xac | 0xad => (&[I32], I64),
        0xae | 0xaf => (&[F32], I64),
        0xb0 | 0xb1 | 0xbd => (&[F64], I64),
        0xb2 | 0xb3 | 0xbe => (&[I32], F32),
        0xb4 | 0xb5 => (&[I64], F32),
        0xb6 => (&[F64], F32),
        0xb7 | 0xb8 => (&[I32], F64),
        0xb9 | 0xba | 0xbf => (&[I64], F64),
        _ => (&[F32], F64),
    }
}

/// Whether an instruction has two operands.
pub(crate) fn is_binary(opcode: u8) -> bool {
    signature(opcode).0.len() == 2
}

fn canonical32(x: f32) -> u64 {
    u64::from(if x.is_nan() { NAN32 } else { x.to_bits() })
}

fn canonical64(x: f64) -> u64 {
    if x.is_nan() { NAN64 } else { x.to_bits() }
}

/// The operands' bits as numbers.
fn i32_of(bits: u64) -> i32 {
    (bits as u32).cast_signed()
}

fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn of_i32(x: i32) -> u64 {
    u64::from(x.cast_unsigned())
}

macro_rules! minimum_and_maximum {
    ($float:ident, $min:ident, $max:ident) => {
        /// The smaller operand; −0 is smaller than 0, and NaN is passed on.
        #[allow(clippy::float_cmp, reason = "equal operands are those that differ in their sign at most")]
        fn $min(a: $float, b: $float) -> $float {
            if a.is_nan() || b.is_nan() {
                $float::NAN
            } else if a == b {
                $float::from_bits(a.to_bits() | b.to_bits())
            } else {
                a.min(b)
            }
        }

        /// The larger operand; 0 is larger than −0, and NaN is passed on.
        #[allow(clippy::float_cmp, reason = "equal operands are those that differ in their sign at most")]
        fn $max(a: $float, b: $float) -> $float {
            if a.is_nan() || b.is_nan() {
                $float::NAN
            } else if a == b {
                $float::from_bits(a.to_bits() & b.to_bits())
            } else {
                a.max(b)
            }
        }
    };
}

minimum_and_maximum!(f32, min32, max32);
minimum_and_maximum!(f64, min64, max64);

/// Returns the integer part of a float that lies between these bounds, without them.
fn integer(x: f64, above: f64, below: f64) -> Result<f64, Trap> {
    if x.is_nan() {
        Err(Trap::Conversion)
    } else if x > above && x < below {
        Ok(x.trunc())
    } else {
        Err(Trap::Overflow)
    }
}

/// 2³¹, 2³², 2⁶³ and 2⁶⁴.
const P31: f64 = 2_147_483_648.0;
const P32: f64 = 4_294_967_296.0;
const P63: f64 = 9_223_372_036_854_775_808.0;
const P64: f64 = 18_446_744_073_709_551_616.0;
/// The float below −2⁶³.
const BELOW63: f64 = -9_223_372_036_854_777_856.0;

fn to_i32(x: f64) -> Result<u64, Trap> {
    integer(x, -P31 - 1.0, P31).map(|x| of_i32(x as i32))
}

fn to_u32(x: f64) -> Result<u64, Trap> {
    integer(x, -1.0, P32).map(|x| u64::from(x as u32))
}

fn to_i64(x: f64) -> Result<u64, Trap> {
    integer(x, BELOW63, P63).map(|x| (x as i64).cast_unsigned())
}

fn to_u64(x: f64) -> Result<u64, Trap> {
    integer(x, -1.0, P64).map(|x| x as u64)
}

/// Converts a float without a trap: NaN to 0, others to the nearest integer that there is. `number` stands after the byte 0xfc.
pub(crate) fn saturate(number: u8, bits: u64) -> u64 {
    let x = if number & 2 == 0 { f64::from(f32_of(bits)) } else { f64::from_bits(bits) };
    match number {
        0 | 2 => of_i32(x as i32),
        1 | 3 => u64::from(x as u32),
        4 | 6 => (x as i64).cast_unsigned(),
        _ => x as u64,
    }
}

/// Computes an instruction of one operand.
pub(crate) fn unary(opcode: u8, bits: u64) -> Result<u64, Trap> {
    let (x, long) = (bits as u32, bits);
    let (single, double) = (f32_of(bits), f64::from_bits(bits));
    Ok(match opcode {
        0x45 => u64::from(x == 0),
        0x50 => u64::from(long == 0),
        0x67 => u64::from(x.leading_zeros()),
        0x68 => u64::from(x.trailing_zeros()),
        0x69 => u64::from(x.count_ones()),
        0x79 => u64::from(long.leading_zeros()),
        0x7a => u64::from(long.trailing_zeros()),
        0x7b => u64::from(long.count_ones()),
        // Signs of NaN are kept, because these change bits and compute nothing.
        0x8b => u64::from(x & 0x7fff_ffff),
        0x8c => u64::from(x ^ 0x8000_0000),
        0x8d => canonical32(single.ceil()),
        0x8e => canonical32(single.floor()),
        0x8f => canonical32(single.trunc()),
        0x90 => canonical32(single.round_ties_even()),
        0x91 => canonical32(single.sqrt()),
        0x99 => long & !(1 << 63),
        0x9a => long ^ 1 << 63,
        0x9b => canonical64(double.ceil()),
        0x9c => canonical64(double.floor()),
        0x9d => canonical64(double.trunc()),
        0x9e => canonical64(double.round_ties_even()),
        0x9f => canonical64(double.sqrt()),
        0xa8 => to_i32(f64::from(single))?,
        0xa9 => to_u32(f64::from(single))?,
        0xaa => to_i32(double)?,
        0xab => to_u32(double)?,
        0xac => i64::from(i32_of(bits)).cast_unsigned(),
        0xae => to_i64(f64::from(single))?,
        0xaf => to_u64(f64::from(single))?,
        0xb0 => to_i64(double)?,
        0xb1 => to_u64(double)?,
        0xb2 => canonical32(i32_of(bits) as f32),
        0xb3 => canonical32(x as f32),
        0xb4 => canonical32(long.cast_signed() as f32),
        0xb5 => canonical32(long as f32),
        0xb6 => canonical32(double as f32),
        0xb7 => canonical64(f64::from(i32_of(bits))),
        0xb8 => canonical64(f64::from(x)),
        0xb9 => canonical64(long.cast_signed() as f64),
        0xba => canonical64(long as f64),
        0xbb => canonical64(f64::from(single)),
        // The lower bits, or the same bits as another type.
        0xa7 | 0xad | 0xbc | 0xbe => u64::from(x),
        0xc0 => of_i32(i32::from((x as u8).cast_signed())),
        0xc1 => of_i32(i32::from((x as u16).cast_signed())),
        0xc2 => i64::from((long as u8).cast_signed()).cast_unsigned(),
        0xc3 => i64::from((long as u16).cast_signed()).cast_unsigned(),
        0xc4 => i64::from((long as u32).cast_signed()).cast_unsigned(),
        // 0xbd and 0xbf: the same bits as another type.
        _ => long,
    })
}

/// Computes an instruction of two operands.
pub(crate) fn binary(opcode: u8, a: u64, b: u64) -> Result<u64, Trap> {
    match opcode {
        0x46..=0x4f => Ok(u64::from(compared(opcode - 0x46, (i32_of(a), a as u32), (i32_of(b), b as u32)))),
        0x51..=0x5a => Ok(u64::from(compared(opcode - 0x51, (a.cast_signed(), a), (b.cast_signed(), b)))),
        0x5b..=0x60 => Ok(u64::from(ordered(opcode - 0x5b, f64::from(f32_of(a)), f64::from(f32_of(b))))),
        0x61..=0x66 => Ok(u64::from(ordered(opcode - 0x61, f64::from_bits(a), f64::from_bits(b)))),
        0x6a..=0x78 => short(opcode - 0x6a, a as u32, b as u32).map(u64::from),
        0x7c..=0x8a => long(opcode - 0x7c, a, b),
        0x92..=0x98 => Ok(single(opcode - 0x92, f32_of(a), f32_of(b))),
        _ => Ok(double(opcode.wrapping_sub(0xa0), f64::from_bits(a), f64::from_bits(b))),
    }
}

/// Compares integers, as signed ones and as unsigned ones.
fn compared<S: PartialOrd + Copy, U: PartialOrd + Copy>(kind: u8, a: (S, U), b: (S, U)) -> bool {
    match kind {
        0 => a.1 == b.1,
        1 => a.1 != b.1,
        2 => a.0 < b.0,
        3 => a.1 < b.1,
        4 => a.0 > b.0,
        5 => a.1 > b.1,
        6 => a.0 <= b.0,
        7 => a.1 <= b.1,
        8 => a.0 >= b.0,
        _ => a.1 >= b.1,
    }
}

#[allow(clippy::float_cmp, reason = "the instructions compare exactly")]
fn ordered(kind: u8, a: f64, b: f64) -> bool {
    match kind {
        0 => a == b,
        1 => a != b,
        2 => a < b,
        3 => a > b,
        4 => a <= b,
        _ => a >= b,
    }
}

macro_rules! integers {
    ($name:ident, $unsigned:ident, $signed:ident) => {
        fn $name(kind: u8, a: $unsigned, b: $unsigned) -> Result<$unsigned, Trap> {
            let (x, y) = (a.cast_signed(), b.cast_signed());
            if (3..=6).contains(&kind) && b == 0 {
                return Err(Trap::DivisionByZero);
            }
            Ok(match kind {
                0 => a.wrapping_add(b),
                1 => a.wrapping_sub(b),
                2 => a.wrapping_mul(b),
                3 => x.checked_div(y).ok_or(Trap::Overflow)?.cast_unsigned(),
                4 => a / b,
                5 => x.wrapping_rem(y).cast_unsigned(),
                6 => a % b,
                7 => a & b,
                8 => a | b,
                9 => a ^ b,
                10 => a.wrapping_shl(b as u32),
                11 => x.wrapping_shr(b as u32).cast_unsigned(),
                12 => a.wrapping_shr(b as u32),
                13 => a.rotate_left(b as u32 % $unsigned::BITS),
                _ => a.rotate_right(b as u32 % $unsigned::BITS),
            })
        }
    };
}

integers!(short, u32, i32);
integers!(long, u64, i64);

fn single(kind: u8, a: f32, b: f32) -> u64 {
    match kind {
        0 => canonical32(a + b),
        1 => canonical32(a - b),
        2 => canonical32(a * b),
        3 => canonical32(a / b),
        4 => canonical32(min32(a, b)),
        5 => canonical32(max32(a, b)),
        _ => u64::from(a.to_bits() & 0x7fff_ffff | b.to_bits() & 0x8000_0000),
    }
}

fn double(kind: u8, a: f64, b: f64) -> u64 {
    match kind {
        0 => canonical64(a + b),
        1 => canonical64(a - b),
        2 => canonical64(a * b),
        3 => canonical64(a / b),
        4 => canonical64(min64(a, b)),
        5 => canonical64(max64(a, b)),
        _ => a.to_bits() & !(1 << 63) | b.to_bits() & 1 << 63,
    }
}
