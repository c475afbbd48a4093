//! Links the controller small: functions of equal code become one, and relative relocations take a bit instead of 24 bytes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Rust's own linker on this target is LLD; elsewhere these are not known.
    let known = ["CARGO_CFG_TARGET_OS", "CARGO_CFG_TARGET_ENV", "CARGO_CFG_TARGET_ARCH"].map(std::env::var);
    if known.iter().map(|value| value.as_deref()).eq([Ok("linux"), Ok("gnu"), Ok("x86_64")]) {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all,-z,pack-relative-relocs");
    }
}
