//! Which of the processor's instructions kernels are compiled for: the most that it has, or fewer where [`VARIABLE`] says so. Reads
//! the environment once.

use std::{env, fmt, str::FromStr, sync::OnceLock};

/// Holds kernels to fewer instructions than the processor has, to find out whether these make a difference: `amx`, `avx512`,
/// `avx2` or `portable`.
pub const VARIABLE: &str = "CODEX_MAX_CPU_ISA";

/// Instruction sets, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512, with products of bf16 where there are any.
    Avx512,
    /// Tiles.
    Amx,
}

impl Isa {
    const ALL: [(Self, &str); 4] =
        [(Self::Portable, "portable"), (Self::Avx2, "avx2"), (Self::Avx512, "avx512"), (Self::Amx, "amx")];

    /// The most that may be used.
    ///
    /// # Errors
    /// When [`VARIABLE`] holds no name of a set.
    pub fn most() -> Result<Self, UnknownIsa> {
        env::var(VARIABLE).map_or(Ok(Self::Amx), |name| name.parse())
    }
}

/// A name that no instruction set has.
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
        f.write_str(Self::ALL.into_iter().find(|(isa, _)| isa == self).map_or("", |(_, name)| name))
    }
}

/// The most that may be used, as it was first seen; a name that is none holds nothing back.
pub(crate) fn most() -> Isa {
    static MOST: OnceLock<Isa> = OnceLock::new();
    *MOST.get_or_init(|| Isa::most().unwrap_or(Isa::Amx))
}

/// What pulp compiles kernels for here.
pub fn arch() -> pulp::Arch {
    static ARCH: OnceLock<pulp::Arch> = OnceLock::new();
    *ARCH.get_or_init(|| match most() {
        Isa::Amx | Isa::Avx512 => pulp::Arch::new(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
        _ => pulp::Arch::Scalar,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// All tests of this crate again, on what other processors have.
    #[test]
    fn lesser_processors_pass_every_test() {
        if env::var_os(VARIABLE).is_some() {
            return;
        }
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
            let tests = Command::new(env::current_exe().unwrap()).env(VARIABLE, isa.to_string()).output().unwrap();
            assert!(tests.status.success(), "{isa}: {}", String::from_utf8_lossy(&tests.stdout));
        }
    }

    #[test]
    fn a_name_is_known_or_refused() {
        for (isa, name) in Isa::ALL {
            assert_eq!((name.parse::<Isa>().unwrap(), isa.to_string()), (isa, name.to_owned()));
        }
        let said = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert_eq!(said, "CODEX_MAX_CPU_ISA is \"sse9\": write amx, avx512, avx2 or portable");
    }
}
