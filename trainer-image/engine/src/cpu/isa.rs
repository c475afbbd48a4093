//! The instruction sets that kernels use: the best that the processor has, limited by [`VARIABLE`]. Reads the environment
//! once.

use std::{env, fmt, str::FromStr, sync::OnceLock};

/// The environment variable that limits the instruction sets, for comparison: `amx`, `avx512`, `avx2` or `portable`.
pub const VARIABLE: &str = "CODEX_MAX_CPU_ISA";

/// Instruction sets in ascending order; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of the architecture.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512, with bf16 dot products if the processor has them.
    Avx512,
    /// AMX tiles.
    Amx,
}

impl Isa {
    const ALL: [(Self, &str); 4] =
        [(Self::Portable, "portable"), (Self::Avx2, "avx2"), (Self::Avx512, "avx512"), (Self::Amx, "amx")];

    /// Returns the best instruction set that [`VARIABLE`] allows.
    ///
    /// # Errors
    /// The variable holds an unknown name.
    pub fn limit() -> Result<Self, UnknownIsa> {
        env::var(VARIABLE).ok().filter(|name| !name.is_empty()).map_or(Ok(Self::Amx), |name| name.parse())
    }

    /// Returns the widest registers that kernels use on this processor, at most those of `limit`: AMX multiplies tiles only, which the
    /// path of an engine names.
    pub fn of_kernels(limit: Self) -> Self {
        let wide = [Self::Avx512, Self::Avx2].into_iter().find(|isa| *isa <= limit && isa.is_supported());
        wide.unwrap_or(Self::Portable)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(isa, _)| *isa == self).map_or("", |(_, name)| name)
    }

    /// Returns whether this processor has the instruction set.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::x86::V4::try_new().is_some(),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Self::Amx => amx::is_supported(),
            #[allow(unreachable_patterns, reason = "reached on other architectures")]
            _ => false,
        }
    }
}

/// The name of an instruction set is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE} is {0:?}: write amx, avx512, avx2 or portable")]
pub struct UnknownIsa(String);

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let found = Self::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(isa, _)| isa).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the allowed instruction set as first read; an unknown name sets no limit.
pub(crate) fn limit() -> Isa {
    static LIMIT: OnceLock<Isa> = OnceLock::new();
    *LIMIT.get_or_init(|| Isa::limit().unwrap_or(Isa::Amx))
}

/// The version of the arithmetic of all kernels on processors. It is raised with every change that gives other bits on some
/// processor, so that what was recorded with another version is not compared bit for bit.
pub const KERNELS: u32 = 1;

/// Returns the name of the instruction set that kernels use, but for products of matrices in `bf16`, whose code path names it.
pub fn instruction_set() -> &'static str {
    Isa::of_kernels(limit()).name()
}

/// Returns the instruction set that pulp dispatches to.
pub fn arch() -> pulp::Arch {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    *ARCH.get_or_init(|| match limit() {
        Isa::Amx | Isa::Avx512 => pulp::Arch::new(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
        _ => pulp::Arch::Scalar,
    })
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod amx {
    #![allow(unsafe_code)]

    use std::{arch::asm, sync::OnceLock};

    /// Returns whether the processor has `bf16` tiles and the operating system lets this process use them.
    pub(super) fn is_supported() -> bool {
        static SUPPORTED: OnceLock<bool> = OnceLock::new();
        *SUPPORTED.get_or_init(|| {
            // Leaf 7, edx: AMX-BF16 is bit 22, AMX-TILE is bit 24.
            let leaves = std::arch::x86_64::__cpuid(0).eax;
            if leaves < 7 || !std::is_x86_feature_detected!("avx512f") {
                return false;
            }
            let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
            features >> 22 & 1 == 1 && features >> 24 & 1 == 1 && permitted()
        })
    }

    /// Requests the tile state from the kernel, once per process; threads that start later inherit it.
    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XFEATURE_XTILEDATA: i64 = 18;
        let result: i64;
        // SAFETY: the call takes two numbers, accesses no memory of this process, and clobbers rcx and r11 as every system
        // call does.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write as _},
        process::Command,
    };

    use super::*;

    /// Runs all tests of this crate again under each smaller instruction set that this processor has.
    #[test]
    fn all_tests_pass_under_smaller_instruction_sets() {
        if env::var_os(VARIABLE).is_some() {
            return;
        }
        for (isa, name) in Isa::ALL {
            if !isa.is_supported() {
                // Written directly: the test harness captures `eprintln!`.
                writeln!(io::stderr(), "SKIPPED: engine tests under {name}: this processor does not have it").unwrap();
            } else if isa < Isa::Amx {
                let tests = Command::new(env::current_exe().unwrap()).env(VARIABLE, name).output().unwrap();
                assert!(tests.status.success(), "{name}: {}", String::from_utf8_lossy(&tests.stdout));
            }
        }
    }

    #[test]
    fn kernels_use_what_the_processor_has_and_the_limit_allows() {
        assert_eq!(Isa::of_kernels(Isa::Portable), Isa::Portable);
        for (limit, _) in Isa::ALL {
            let isa = Isa::of_kernels(limit);
            assert!(isa <= limit && isa < Isa::Amx && isa.is_supported(), "{limit}: {isa}");
        }
        let path = match arch() {
            pulp::Arch::Scalar => Isa::Portable,
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V3(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            pulp::Arch::V4(_) => Isa::Avx512,
            #[allow(unreachable_patterns, reason = "other architectures have others")]
            _ => Isa::Portable,
        };
        assert_eq!(Isa::of_kernels(limit()), path, "the registers that kernels are dispatched to");
    }

    #[test]
    fn names_are_parsed_or_refused() {
        for (isa, name) in Isa::ALL {
            assert_eq!((name.parse::<Isa>().unwrap(), isa.to_string()), (isa, name.to_owned()));
        }
        let said = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert_eq!(said, "CODEX_MAX_CPU_ISA is \"sse9\": write amx, avx512, avx2 or portable");
    }
}
