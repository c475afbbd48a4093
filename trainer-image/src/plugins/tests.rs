use super::{testing::wat, *};

const MARK: &str = r#"(func (export "codex_plugin_v1"))"#;
const SIX: &str = "(param i32 i32 i32 i32 i32 i32) (result f64)";

fn metric(body: &str) -> Plugin {
    Plugin::load(&wat(&format!(r#"{MARK} (func (export "metric") {SIX} {body})"#)), Kind::Metric).unwrap()
}

fn refused(body: &str) -> String {
    Plugin::load(&wat(body), Kind::Metric).unwrap_err().to_string()
}

#[test]
fn texts_are_given_in_utf_8_and_calls_share_nothing() {
    // Length of the response over that of the reference; $calls would count calls if anything were kept.
    let body = r#"(global $calls (mut i32) (i32.const 0))
        (func (export "metric") (param $a i32) (param $b i32) (param $c i32) (param $d i32) (param $e i32) (param $f i32) (result f64)
            (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
            (if (i32.gt_u (global.get $calls) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load8_u (local.get $c)) (i32.const 0xc3)) (then unreachable))
            (f64.div (f64.convert_i32_u (local.get $d)) (f64.convert_i32_u (local.get $f))))"#;
    let plugin = Plugin::load(&wat(&format!("{MARK}{body}")), Kind::Metric).unwrap();
    for _ in 0..3 {
        assert_eq!(plugin.metric("prompt", "é", "four"), Ok(0.5));
    }
    assert_eq!(plugin.metric("", "ééé", "four"), Err(PluginError::Outside(1.5)));
    assert!(matches!(plugin.metric("", "e", "four"), Err(PluginError::Trap { function: "metric", .. })));
}

#[test]
fn versions_imports_and_exports_are_checked() {
    assert!(refused("").starts_with("the plugin does not tell the version of its interface: export codex_plugin_v1"));
    let other = refused(r#"(func (export "codex_plugin_v2"))"#);
    assert_eq!(
        other,
        "the plugin was written for version \"v2\" of the interface, but this program has v1: use a plugin that exports codex_plugin_v1, \
         or a program that has that version"
    );
    assert_eq!(
        refused(MARK),
        "the plugin does not export metric: it must export metric(i32, i32, i32, i32, i32, i32) -> f64"
    );
    let integer = format!(r#"{MARK} (func (export "metric") (param i32 i32) (result f64) (f64.const 0))"#);
    assert!(refused(&integer).starts_with("the plugin exports metric with another type: it must be metric(i32, i32"));
    let load = |text: &str| Plugin::load(&::wat::parse_str(text).unwrap(), Kind::Filter).unwrap_err().to_string();
    let import = format!(r#"(module (import "env" "clock" (func)) {MARK})"#);
    assert!(load(&import).starts_with("the plugin imports \"env\".\"clock\", but plugins have no imports"));
    assert!(load(&format!("(module {MARK})")).starts_with("the plugin does not export memory"));
    assert!(
        load(&format!(r#"(module {MARK} (memory (export "memory") 1025))"#)).contains("more than 64 MiB of memory")
    );
    let without_alloc = format!(r#"(module {MARK} (memory (export "memory") 1))"#);
    assert_eq!(load(&without_alloc), "the plugin does not export alloc: it must export alloc(i32) -> i32");
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    let load = |bytes: &[u8]| Plugin::load(bytes, Kind::Metric).unwrap_err().to_string();
    assert!(load(b"(module)").starts_with("the plugin is no WebAssembly module that can be run (it does not begin"));
    assert!(load(b"\0asm\x01\0\0\0\x01").starts_with("the plugin is no WebAssembly module"));
    assert!(load(&vec![0; MAX_BYTES + 1]).starts_with("the plugin has 4194305 bytes, but at most 4194304 are read"));
    let start = wat(&format!(r#"{MARK} (func $begin) (start $begin) (func (export "metric") {SIX} (f64.const 1))"#));
    assert!(load(&start).contains("without SIMD, threads, exceptions, 64-bit memory or a start function"));
    let simd = wat(&format!(r#"{MARK} (func (export "metric") {SIX} (f64x2.extract_lane 0 (v128.const f64x2 0 0)))"#));
    assert!(load(&simd).contains("without SIMD"));
}

#[test]
fn results_that_are_no_finite_numbers_are_refused() {
    let told = |body: &str| metric(body).metric("", "", "").unwrap_err().to_string();
    let nan = "(f64.div (f64.const 0) (f64.const 0))";
    assert_eq!(told(nan), "the plugin's metric returned NaN, which is not a finite number");
    assert_eq!(told("(f64.const -inf)"), "the plugin's metric returned -inf, which is not a finite number");
    assert_eq!(told("(f64.const -0.5)"), "the plugin's metric returned -0.5, which is not from 0 to 1");
    // NaN has one representation inside a plugin, too: the payload of an operand does not show.
    let bits = "(f64.convert_i64_u (i64.and (i64.const 0xff) (i64.reinterpret_f64 (f64.add (f64.const 1) (f64.const nan:0x8000000000001)))))";
    assert_eq!(metric(bits).metric("", "", ""), Ok(0.0));
}

#[test]
fn memory_and_instructions_of_a_call_are_bounded() {
    let told = |body: &str| metric(body).metric("", "", "").unwrap_err().to_string();
    let endless = "(loop $again (br $again)) (f64.const 0)";
    assert!(
        told(endless).starts_with("the plugin's metric used all of its fuel (100000000 units"),
        "{}",
        told(endless)
    );
    let greedy = "(drop (memory.grow (i32.const 1024))) (f64.const 0)";
    assert_eq!(told(greedy), "the plugin needs more than 64 MiB of memory, which is the most that it may have");
    assert_eq!(told("unreachable"), "the plugin's metric failed: it panicked (unreachable)");
    let outside = "(f64.load (i32.const 0x7fffffff))";
    assert!(told(outside).starts_with("the plugin's metric failed: "), "{}", told(outside));
    let deep = format!(
        r#"{MARK} (func $deep (export "metric") {SIX} (call $deep (local.get 0) (local.get 0) (local.get 0)
        (local.get 0) (local.get 0) (local.get 0)))"#
    );
    let deep = Plugin::load(&wat(&deep), Kind::Metric).unwrap();
    assert!(matches!(deep.metric("", "", ""), Err(PluginError::Trap { .. })));
    let text = "x".repeat(1 << 16);
    let long = metric("(f64.const 0)").metric("", &text, "").unwrap_err();
    assert_eq!(
        long.to_string(),
        "the plugin's alloc returned the address 1024 for 65536 bytes, which are not all in its memory"
    );
}

#[test]
fn filters_and_rewards_have_their_own_functions() {
    let filter = format!(
        r#"{MARK} (func (export "filter") (param i32 i32 i32 i32) (result i32) (i32.sub (local.get 3) (local.get 1)))"#
    );
    let plugin = Plugin::load(&wat(&filter), Kind::Filter).unwrap();
    assert_eq!((plugin.keeps("a", "b"), plugin.keeps("a", "bc")), (Ok(false), Ok(true)));
    assert_eq!(
        plugin.keeps("", "abc").unwrap_err().to_string(),
        "the plugin's filter returned 3, which is neither 0 (drop the record) nor 1 (keep it)"
    );
    assert!(Plugin::load(&wat(&filter), Kind::Reward).unwrap_err().to_string().contains("does not export reward"));
    let reward = format!(r#"{MARK} (func (export "reward") {SIX} (f64.const -2.5))"#);
    assert_eq!(Plugin::load(&wat(&reward), Kind::Reward).unwrap().reward("", "", ""), Ok(-2.5));
}

/// The example of `docs/plugins.md`.
#[test]
fn the_documented_plugin_works() {
    let page = include_str!("../../../docs/plugins.md");
    let text = page.split("```wat\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let plugin = Plugin::load(&::wat::parse_str(text).unwrap(), Kind::Metric).unwrap();
    assert_eq!(plugin.metric("", &"x".repeat(25), ""), Ok(0.75));
    assert_eq!(plugin.metric(&"x".repeat(1 << 20), &"x".repeat(1 << 20), &"x".repeat(1 << 20)), Ok(0.0));
    for kind in [Kind::Metric, Kind::Reward, Kind::Filter] {
        assert!(page.contains(kind.function()), "{kind:?}");
    }
}
