//! The interpreter against another one, wasmi, on every instruction and on whole programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { memory: 4 << 20, fuel: 5_000_000 };

/// What a call returned: the bits of its results, or why it ended.
type Outcome = Result<Vec<u64>, String>;

fn bits(value: &Value) -> u64 {
    match *value {
        Value::I32(x) => u64::from(x),
        Value::I64(x) => x,
        Value::F32(x) => u64::from(x.to_bits()),
        Value::F64(x) => x.to_bits(),
    }
}

fn value(kind: ValueType, bits: u64) -> Value {
    match kind {
        ValueType::I32 => Value::I32(bits as u32),
        ValueType::I64 => Value::I64(bits),
        ValueType::F32 => Value::F32(f32::from_bits(bits as u32)),
        ValueType::F64 => Value::F64(f64::from_bits(bits)),
    }
}

/// A module in both interpreters.
struct Both {
    own: Module,
    other: wasmi::Module,
}

impl Both {
    fn of(bytes: &[u8]) -> Self {
        let mut config = wasmi::Config::default();
        config.consume_fuel(true);
        let other = wasmi::Module::new(&wasmi::Engine::new(&config), bytes).expect("the oracle takes it");
        Self { own: Module::parse(bytes).expect("valid"), other }
    }

    fn wat(text: &str) -> Self {
        Self::of(&wat::parse_str(text).expect("valid text"))
    }

    fn own(&self, name: &str, arguments: &[u64]) -> Outcome {
        let Some(Exported::Function(index)) = self.own.export(name) else { panic!("{name}") };
        let kinds = &self.own.function_type(index).expect("a type").parameters;
        let arguments: Vec<Value> = kinds.iter().zip(arguments).map(|(kind, bits)| value(*kind, *bits)).collect();
        let mut instance = Instance::new(&self.own, LIMITS).expect("an instance");
        let results = instance.call(name, &arguments).map_err(|trap| format!("{trap:?}"))?;
        Ok(results.iter().map(bits).collect())
    }

    fn other(&self, name: &str, arguments: &[u64]) -> Outcome {
        use wasmi::{F32, F64, TrapCode, Val, ValType};
        let mut store = wasmi::Store::new(self.other.engine(), ());
        store.set_fuel(1 << 40).expect("fuel");
        let instance = wasmi::Linker::new(self.other.engine())
            .instantiate_and_start(&mut store, &self.other)
            .expect("an instance");
        let function = instance.get_func(&store, name).expect("a function");
        let kind = function.ty(&store);
        let arguments: Vec<Val> = kind
            .params()
            .iter()
            .zip(arguments)
            .map(|(kind, bits)| match kind {
                ValType::I32 => Val::I32((*bits as u32).cast_signed()),
                ValType::I64 => Val::I64(bits.cast_signed()),
                ValType::F32 => Val::F32(F32::from_bits(*bits as u32)),
                _ => Val::F64(F64::from_bits(*bits)),
            })
            .collect();
        let mut results = vec![Val::I32(0); kind.results().len()];
        function.call(&mut store, &arguments, &mut results).map_err(|error| {
            let trap = match error.as_trap_code() {
                Some(TrapCode::UnreachableCodeReached) => Trap::Unreachable,
                Some(TrapCode::MemoryOutOfBounds) => Trap::Memory,
                Some(TrapCode::TableOutOfBounds | TrapCode::IndirectCallToNull) => Trap::Table,
                Some(TrapCode::BadSignature) => Trap::Type,
                Some(TrapCode::IntegerDivisionByZero) => Trap::DivisionByZero,
                Some(TrapCode::IntegerOverflow) => Trap::Overflow,
                Some(TrapCode::BadConversionToInteger) => Trap::Conversion,
                Some(TrapCode::StackOverflow) => Trap::Stack,
                _ => return error.to_string(),
            };
            format!("{trap:?}")
        })?;
        let bits = |value: &Val| match value {
            Val::I32(x) => u64::from(x.cast_unsigned()),
            Val::I64(x) => x.cast_unsigned(),
            Val::F32(x) => u64::from(x.to_bits()),
            Val::F64(x) => x.to_bits(),
            _ => panic!("a reference"),
        };
        Ok(results.iter().map(bits).collect())
    }

    fn agree(&self, name: &str, arguments: &[u64]) -> Outcome {
        let (own, other) = (self.own(name, arguments), self.other(name, arguments));
        assert_eq!(own, other, "{name} {arguments:x?}");
        own
    }
}

fn leb(mut number: usize, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn section(id: u8, items: &[Vec<u8>]) -> Vec<u8> {
    let mut content = Vec::new();
    leb(items.len(), &mut content);
    content.extend(items.concat());
    let mut section = vec![id];
    leb(content.len(), &mut section);
    section.extend(content);
    section
}

/// A module with a function for each instruction that computes, exported by its bytes in hexadecimal.
fn every_instruction() -> (Vec<u8>, Vec<(String, Vec<ValueType>)>) {
    let byte = |kind: ValueType| match kind {
        ValueType::I32 => 0x7f,
        ValueType::I64 => 0x7e,
        ValueType::F32 => 0x7d,
        ValueType::F64 => 0x7c,
    };
    let saturating = |number: u8| {
        let from: &[ValueType] = if number & 2 == 0 { &[ValueType::F32] } else { &[ValueType::F64] };
        (vec![0xfc, number], from, if number < 4 { ValueType::I32 } else { ValueType::I64 })
    };
    let all = (0x45..=0xc4).map(|opcode| {
        let (parameters, result) = numeric::signature(opcode);
        (vec![opcode], parameters, result)
    });
    let (mut types, mut functions, mut exports, mut code, mut names) = (vec![], vec![], vec![], vec![], vec![]);
    for (index, (opcode, parameters, result)) in all.chain((0..8).map(saturating)).enumerate() {
        let mut kind = vec![0x60, parameters.len() as u8];
        kind.extend(parameters.iter().map(|kind| byte(*kind)));
        kind.extend([1, byte(result)]);
        types.push(kind);
        let mut number = Vec::new();
        leb(index, &mut number);
        functions.push(number.clone());
        let name = opcode.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        let mut export = vec![name.len() as u8];
        export.extend(name.bytes());
        export.push(0);
        export.extend(number);
        exports.push(export);
        let mut body = vec![0];
        (0..parameters.len() as u8).for_each(|local| body.extend([0x20, local]));
        body.extend(&opcode);
        body.push(0x0b);
        let mut sized = Vec::new();
        leb(body.len(), &mut sized);
        sized.extend(body);
        code.push(sized);
        names.push((name, parameters.to_vec()));
    }
    let sections = [section(1, &types), section(3, &functions), section(7, &exports), section(10, &code)];
    ([b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat(), names)
}

/// Numbers at the ends of what types hold, and between.
fn interesting(kind: ValueType) -> Vec<u64> {
    let floats = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.0,
        -1.0,
        1.5,
        2.5,
        -3.5,
        1e-45,
        -1e-310,
        0.1,
        3.999_999,
        1e10,
        -1e10,
        2_147_483_647.0,
        2_147_483_648.0,
        -2_147_483_648.0,
        -2_147_483_648.9,
        -2_147_483_649.0,
        4_294_967_295.0,
        4_294_967_295.9,
        4_294_967_296.0,
        -0.999,
        9.3e18,
        9_223_372_036_854_775_808.0,
        -9_223_372_036_854_775_808.0,
        -9_223_372_036_854_777_856.0,
        1.9e19,
        18_446_744_073_709_551_616.0,
        3.4e38,
        -3.5e38,
        1e300,
        f64::MAX,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        -f64::NAN,
    ];
    match kind {
        ValueType::I32 => {
            [0, 1, 2, 7, 31, 32, 33, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0x8000_0001]
                .into_iter()
                .chain([0xffff_fffe, u64::from(u32::MAX), 0x1234_5678])
                .collect()
        }
        ValueType::I64 => {
            [0, 1, 2, 7, 63, 64, 65, 0x80, 0x8000, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, i64::MAX.cast_unsigned()]
                .into_iter()
                .chain([1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX, 0x0123_4567_89ab_cdef, (1 << 53) + 1])
                .collect()
        }
        ValueType::F32 => floats
            .iter()
            .map(|x| u64::from((*x as f32).to_bits()))
            .chain([0x7fa0_0001, 0xffff_ffff, 0x7f80_0001, 0x0000_0001, 0x4eff_ffff, 0xcf00_0000])
            .collect(),
        ValueType::F64 => floats
            .iter()
            .map(|x| x.to_bits())
            .chain([0x7ff4_0000_0000_0001, u64::MAX, 0x7ff0_0000_0000_0001, 1])
            .collect(),
    }
}

#[test]
fn every_instruction_computes_what_the_oracle_computes() {
    let (bytes, names) = every_instruction();
    let both = Both::of(&bytes);
    assert_eq!(names.len(), 136);
    let mut compared = 0;
    for (name, parameters) in names {
        let first = interesting(parameters[0]);
        for a in first {
            let others = parameters.get(1).map_or_else(|| vec![0], |kind| interesting(*kind));
            for b in others {
                drop(both.agree(&name, &[a, b][..parameters.len()]));
                compared += 1;
            }
        }
    }
    assert!(compared > 20_000, "{compared}");
}

proptest! {
    #[test]
    fn random_numbers_compute_what_the_oracle_computes(which in 0_usize..136, a in any::<u64>(), b in any::<u64>(), near in any::<bool>()) {
        let (bytes, names) = every_instruction();
        let both = Both::of(&bytes);
        let (name, parameters) = &names[which];
        let b = if near { a ^ (b & 1) } else { b };
        let arguments: Vec<u64> = parameters
            .iter()
            .zip([a, b])
            .map(|(kind, bits)| if matches!(kind, ValueType::I32 | ValueType::F32) { bits & 0xffff_ffff } else { bits })
            .collect();
        drop(both.agree(name, &arguments));
    }
}

const PROGRAMS: &str = r#"(module
    (type $binary (func (param i32 i32) (result i32)))
    (memory (export "memory") 1 3)
    (table 6 funcref)
    (elem (i32.const 1) $add $sub $swap $deep)
    (data (i32.const 16) "\01\02\03\04\05\06\07\08")
    (data $passive "passive bytes")
    (global $count (mut i64) (i64.const 5))
    (global $third f64 (f64.const 0x1.5555555555555p-2))
    (func $add (type $binary) (i32.add (local.get 0) (local.get 1)))
    (func $sub (type $binary) (i32.sub (local.get 0) (local.get 1)))
    (func $swap (param i32 i64) (result i64 i32) (local.get 1) (local.get 0))
    (func $fibonacci (export "fibonacci") (param i32) (result i64)
        (if (result i64) (i32.lt_u (local.get 0) (i32.const 2))
            (then (i64.extend_i32_u (local.get 0)))
            (else (i64.add (call $fibonacci (i32.sub (local.get 0) (i32.const 1)))
                           (call $fibonacci (i32.sub (local.get 0) (i32.const 2)))))))
    (func $deep (export "deep") (param i32) (result i32)
        (if (result i32) (local.get 0)
            (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
            (else (i32.const 0))))
    (func (export "indirect") (param i32 i32 i32) (result i32)
        (call_indirect (type $binary) (local.get 1) (local.get 2) (local.get 0)))
    (func (export "several") (param i32 i64) (result i64 i32 f64)
        (call $swap (local.get 0) (local.get 1)) (global.get $third))
    (func (export "sum") (param $n i32) (result i32 i64)
        (local $i i32) (local $total i32)
        (block $out
            (loop $again
                (br_if $out (i32.ge_u (local.get $i) (local.get $n)))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.and (local.get $i) (i32.const 1)))
                (local.set $total (i32.add (local.get $total) (local.get $i)))
                (global.set $count (i64.mul (global.get $count) (i64.const 3)))
                (br $again)))
        (local.get $total) (global.get $count))
    (func (export "switch") (param i32) (result i32)
        (block $d (block $c (block $b (block $a
            (br_table $a $b $c $d (local.get 0)))
            (return (i32.const 10)))
            (return (i32.const 20)))
            (return (i32.const 30)))
        (i32.const 40))
    (func (export "kept") (param i32) (result i32)
        ;; Branches that take a value along over others.
        (block $outer (result i32)
            (i32.const 1) (i32.const 2)
            (block $inner (result i32)
                (i32.const 100) (i32.const 7) (local.get 0)
                (br_table $inner $outer $inner (local.get 0)))
            (i32.add) (i32.mul)))
    (func (export "loops") (param i32) (result i32)
        (local.get 0)
        (loop $with (param i32) (result i32)
            (i32.sub (i32.const 3))
            (local.tee 0)
            (br_if $with (i32.gt_s (local.get 0) (i32.const 10)))))
    (func (export "chosen") (param i32 f64 f64) (result f64) (select (local.get 1) (local.get 2) (local.get 0)))
    (func (export "typed") (param i32 i64 i64) (result i64) (select (result i64) (local.get 1) (local.get 2) (local.get 0)))
    (func (export "else") (param i32) (result i32)
        (i32.const 5)
        (if (param i32) (result i32) (local.get 0) (then (i32.const 2) (i32.mul)) (else (i32.const 1) (i32.add))))
    (func (export "dead") (param i32) (result i32)
        (block (result i32) (br 0 (local.get 0)) (i32.add) (drop) (i64.const 1) (drop)))
    (func (export "loads") (param i32) (result i64)
        (i64.load8_s offset=1 (local.get 0)) (i64.load16_u offset=2 (local.get 0)) (i64.load32_s (local.get 0))
        (i64.load8_u (local.get 0)) (i64.load16_s (local.get 0)) (i64.load32_u (local.get 0)) (i64.load (local.get 0))
        (i64.extend_i32_u (i32.load8_s (local.get 0))) (i64.extend_i32_s (i32.load16_s (local.get 0)))
        (i64.extend_i32_u (i32.load8_u (local.get 0))) (i64.extend_i32_s (i32.load16_u (local.get 0)))
        (i64.extend_i32_u (i32.load (local.get 0)))
        (i64.rotl (i64.const 3)) (i64.xor) (i64.rotl (i64.const 3)) (i64.xor) (i64.rotl (i64.const 3)) (i64.xor)
        (i64.rotl (i64.const 3)) (i64.xor) (i64.rotl (i64.const 3)) (i64.xor) (i64.rotl (i64.const 3)) (i64.xor)
        (i64.xor) (i64.xor) (i64.xor) (i64.xor) (i64.xor))
    (func (export "stores") (param i32 i64 f32 f64) (result i64)
        (i64.store8 (local.get 0) (local.get 1)) (i64.store16 offset=1 (local.get 0) (local.get 1))
        (i64.store32 offset=3 (local.get 0) (local.get 1)) (i32.store8 offset=9 (local.get 0) (i32.wrap_i64 (local.get 1)))
        (i32.store16 offset=10 (local.get 0) (i32.wrap_i64 (local.get 1))) (f32.store offset=12 (local.get 0) (local.get 2))
        (f64.store offset=16 (local.get 0) (local.get 3)) (i32.store offset=24 (local.get 0) (i32.wrap_i64 (local.get 1)))
        (i64.xor (i64.xor (i64.load (local.get 0)) (i64.load offset=8 (local.get 0)))
                 (i64.xor (i64.load offset=16 (local.get 0)) (i64.load offset=24 (local.get 0)))))
    (func (export "bulk") (param i32 i32 i32) (result i64)
        (memory.fill (i32.const 64) (i32.const 7) (local.get 2))
        (memory.copy (local.get 0) (local.get 1) (local.get 2))
        (memory.init $passive (i32.const 100) (i32.const 3) (i32.const 5))
        (data.drop $passive)
        (memory.init $passive (i32.const 100) (i32.const 0) (i32.const 0))
        (i64.xor (i64.load (i32.const 100)) (i64.xor (i64.load (local.get 0)) (i64.load (i32.const 64)))))
    (func (export "dropped") (param i32) (result i32)
        (data.drop $passive) (memory.init $passive (i32.const 0) (i32.const 0) (local.get 0)) (i32.const 1))
    (func (export "grow") (param i32) (result i32 i32 i32)
        (memory.grow (local.get 0)) (memory.size) (memory.grow (i32.const 3)))
    (func (export "divide") (param f32 f32) (result i32) (i32.trunc_f32_s (f32.div (local.get 0) (local.get 1))))
    (func (export "stop") (unreachable)))"#;

#[test]
fn programs_do_what_the_oracle_does() {
    let both = Both::wat(PROGRAMS);
    assert_eq!(both.agree("fibonacci", &[15]), Ok(vec![610]));
    for depth in [0, 1, 500] {
        assert_eq!(both.agree("deep", &[depth]), Ok(vec![depth]));
    }
    let mut traps = 0;
    for place in 0..9 {
        traps += usize::from(both.agree("indirect", &[place, 7, 4]).is_err());
    }
    assert_eq!(traps, 7);
    assert_eq!(both.agree("several", &[9, 1 << 40]).unwrap()[..2], [1 << 40, 9]);
    for n in 0..20 {
        drop(both.agree("sum", &[n]));
        drop(both.agree("switch", &[n]));
        drop(both.agree("kept", &[n]));
        drop(both.agree("loops", &[n * 7]));
        drop(both.agree("else", &[n % 2]));
        drop(both.agree("dead", &[n]));
        drop(both.agree("loads", &[n]));
        drop(both.agree("grow", &[n % 4]));
        drop(both.agree("dropped", &[n % 3]));
        drop(both.agree("stores", &[n * 3, 0x0123_4567_89ab_cdef << n, 0x4048_f5c3 + n, 0x4009_21fb_5444_2d18 + n]));
    }
    for at in [65_527, 65_528, 65_529, 65_535, 65_536, 0xffff_fff8, 0xffff_ffff] {
        drop(both.agree("loads", &[at]));
        drop(both.agree("stores", &[at, 1, 0, 0]));
    }
    for (to, from, count) in
        [(70, 64, 20), (64, 70, 20), (0, 65_530, 6), (65_530, 0, 7), (0, 65_530, 7), (65_472, 0, 65_472), (5, 5, 0)]
    {
        drop(both.agree("bulk", &[to, from, count]));
    }
    for chosen in [0, 1, 1 << 31] {
        drop(both.agree("chosen", &[chosen, 1, 2]));
        drop(both.agree("typed", &[chosen, 1, 2]));
    }
    drop(both.agree("divide", &[0, 0]));
    drop(both.agree("divide", &[0x3f80_0000, 0]));
    assert_eq!(both.agree("stop", &[]), Err("Unreachable".to_owned()));
}

#[test]
fn fuel_calls_and_memory_are_bounded() {
    let text = r#"(module (memory 1)
        (func (export "endless") (loop (br 0)))
        (func $deep (export "deep") (call $deep))
        (func (export "wide") (param i32) (result i32) (local i64 i64 i64) (i32.add (local.get 0) (i32.const 1)))
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
        (func (export "fill") (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536))))"#;
    let module = Module::parse(&wat::parse_str(text).unwrap()).unwrap();
    let with = |limits| Instance::new(&module, limits).unwrap();
    let mut instance = with(LIMITS);
    assert_eq!(instance.call("endless", &[]).unwrap_err(), Trap::Fuel);
    assert_eq!(instance.fuel(), 0);
    assert_eq!(with(LIMITS).call("deep", &[]).unwrap_err(), Trap::Stack);
    // Each instruction costs one: two reads, the sum and the return.
    let mut instance = with(Limits { fuel: 4, ..LIMITS });
    assert!(matches!(instance.call("wide", &[Value::I32(41)]).unwrap()[..], [Value::I32(42)]));
    assert_eq!(instance.fuel(), 0);
    assert_eq!(with(Limits { fuel: 3, ..LIMITS }).call("wide", &[Value::I32(1)]).unwrap_err(), Trap::Fuel);
    assert_eq!(with(LIMITS).call("wide", &[Value::I64(1)]).unwrap_err(), Trap::Missing);
    assert_eq!(with(LIMITS).call("nothing", &[]).unwrap_err(), Trap::Missing);
    let grow = |pages| with(LIMITS).call("grow", &[Value::I32(pages)]);
    assert!(matches!(grow(63).unwrap()[..], [Value::I32(1)]));
    assert_eq!(grow(64).unwrap_err(), Trap::OutOfMemory);
    assert!(matches!(grow(u32::MAX).unwrap()[..], [Value::I32(u32::MAX)]));
    let mut instance = with(LIMITS);
    instance.call("fill", &[]).unwrap();
    assert_eq!(LIMITS.fuel - instance.fuel(), 5 + 4096);
    assert!(instance.memory().iter().all(|byte| *byte == 1));
    assert!(matches!(Instance::new(&module, Limits { memory: 65_535, ..LIMITS }), Err(Trap::OutOfMemory)));
    assert_eq!(with(LIMITS).write(65_530, &[0; 7]), Err(Trap::Memory));
}

#[test]
fn what_is_not_supported_is_named() {
    let told = |text: &str| Module::parse(&wat::parse_str(text).unwrap()).unwrap_err().to_string();
    assert_eq!(told(r#"(module (import "env" "clock" (func)))"#), "it imports \"env\".\"clock\"");
    assert_eq!(told("(module (func $f) (start $f))"), "it uses a start function, which plugins cannot have");
    for (text, what) in [
        ("(module (func (param v128)))", "SIMD"),
        ("(module (func (drop (v128.const i64x2 0 0))))", "SIMD"),
        ("(module (func (param externref)))", "references as values"),
        ("(module (table 1 externref))", "references as values"),
        ("(module (table 1 funcref) (func (drop (table.size))))", "references as values"),
        ("(module (memory i64 1))", "64-bit memories"),
        ("(module (memory 1 2 shared))", "threads"),
        ("(module (func $f (return_call $f)))", "tail calls"),
        ("(module (tag))", "exceptions"),
    ] {
        assert_eq!(told(text), format!("it uses {what}, which plugins cannot have"), "{text}");
    }
    assert_eq!(told("(module (memory 1) (memory 1))"), "it has too many memories");
    assert_eq!(Module::parse(b"(module)").unwrap_err(), Invalid::NoModule);
    let names = export_names(&wat::parse_str(r#"(module (import "a" "b" (func)) (func (export "x")))"#).unwrap());
    assert_eq!(names.unwrap(), ["x"]);
}

/// Files that the specification does not allow are refused by both.
#[test]
fn invalid_modules_are_refused() {
    let config = wasmi::Config::default();
    let both = |bytes: &[u8], text: &str| {
        let other = wasmi::Module::new(&wasmi::Engine::new(&config), bytes);
        assert!(Module::parse(bytes).is_err() && other.is_err(), "{text}");
    };
    for body in [
        "(func (result i32))",
        "(func (result i32) (i64.const 1))",
        "(func (result i32) (i32.const 1) (i32.const 2))",
        "(func (i32.add (i32.const 1) (f32.const 2)) (drop))",
        "(func (drop))",
        "(func (local.get 0) (drop))",
        "(func (block (result i32) (br 0)) (drop))",
        "(func (br 1))",
        "(func (if (i32.const 1) (then (i32.const 1)) (else)))",
        "(func (if (result i32) (i32.const 1) (then (i32.const 1))) (drop))",
        "(func (result i32) (block (result i32) (block (br_table 0 1 (i32.const 1) (i32.const 0))) (i32.const 1)))",
        "(func (call 5))",
        "(func (call_indirect (i32.const 0)))",
        "(func (i32.load (i32.const 0)) (drop))",
        "(func (i32.load align=8 (i32.const 0)) (drop)) (memory 1)",
        "(global i32 (i64.const 1))",
        "(global $g i32 (i32.const 1)) (func (global.set $g (i32.const 2)))",
        "(export \"f\" (func 3))",
        "(data (i32.const 0) \"x\")",
        "(elem (i32.const 0) 0) (func)",
        "(memory 3 2)",
        "(memory 65537)",
        "(func (select (i32.const 1) (i64.const 2) (i32.const 0)) (drop))",
        "(func (result i32) (unreachable) (i64.const 1))",
        "(func (result i32) (return) (i32.const 1))",
    ] {
        both(&wat::parse_str(format!("(module {body})")).unwrap(), body);
    }
    let valid = wat::parse_str(PROGRAMS).unwrap();
    for cut in (0..valid.len()).step_by(7) {
        if cut != 8 {
            assert!(
                Module::parse(&valid[..cut]).is_err()
                    || wasmi::Module::new(&wasmi::Engine::new(&config), &valid[..cut]).is_ok()
            );
        }
    }
}

proptest! {
    /// Whatever the bytes are, reading and running them ends, within the bounds. What the oracle refuses is refused.
    #[test]
    fn any_change_of_a_file_is_survived(at in any::<prop::sample::Index>(), byte in any::<u8>(), other in any::<prop::sample::Index>(), more in any::<u8>()) {
        let mut bytes = wat::parse_str(PROGRAMS).unwrap();
        let (at, other) = (at.index(bytes.len()), other.index(bytes.len()));
        bytes[at] = byte;
        bytes[other] ^= more & 1;
        let Ok(module) = Module::parse(&bytes) else { return Ok(()) };
        prop_assert!(wasmi::Module::new(&wasmi::Engine::new(&wasmi::Config::default()), &bytes[..]).is_ok(), "the oracle refuses it");
        let limits = Limits { memory: 1 << 20, fuel: 20_000 };
        for name in export_names(&bytes).unwrap() {
            let Some(Exported::Function(index)) = module.export(&name) else { continue };
            let kinds = module.function_type(index).unwrap().parameters.clone();
            let arguments: Vec<Value> = kinds.iter().map(|kind| value(*kind, 12)).collect();
            if let Ok(mut instance) = Instance::new(&module, limits) {
                drop(instance.call(&name, &arguments));
                prop_assert!(instance.memory().len() <= limits.memory);
            }
        }
    }
}
