//! The programs of the cluster, built from pinned Go modules and cached by version.
//!
//! The modules (`tools/`) travel inside this crate, so that a built command needs no checkout. To add a tool, add a
//! [`Module`].

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::layout::cache;
use crate::privilege::Lock;
use crate::report::Progress;
use crate::{Error, Result, command, host};

/// A Go module and its programs.
pub(crate) struct Module {
    /// Its folder, also its name in the output.
    name: &'static str,
    /// The requirement that gives the module its version.
    pin: &'static str,
    /// Its files.
    files: &'static [(&'static str, &'static str)],
    /// Its programs.
    programs: &'static [Program],
    /// Variables of the linker that take the version.
    stamps: &'static [&'static str],
}

/// One program of a module.
struct Program {
    /// The name of the file.
    name: &'static str,
    /// Its package.
    package: &'static str,
    /// The name that the Go command gives it.
    built: &'static str,
}

const KUBERNETES: Module = Module {
    name: "kubernetes",
    pin: "k8s.io/kubernetes",
    files: &[
        ("go.mod", include_str!("../tools/kubernetes/go.mod")),
        ("go.sum", include_str!("../tools/kubernetes/go.sum")),
    ],
    programs: &[
        program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        Program { name: "etcd", package: "go.etcd.io/etcd/server/v3", built: "server" },
    ],
    stamps: &["k8s.io/component-base/version.gitVersion"],
};

const COREDNS: Module = Module {
    name: "coredns",
    pin: "github.com/coredns/coredns",
    files: &[
        ("go.mod", include_str!("../tools/coredns/go.mod")),
        ("go.sum", include_str!("../tools/coredns/go.sum")),
        ("main.go", include_str!("../tools/coredns/main.go")),
    ],
    programs: &[program("coredns", ".")],
    stamps: &[],
};

/// All modules, in build order.
pub(crate) const MODULES: &[Module] = &[KUBERNETES, COREDNS];

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package, built: name }
}

/// Returns the path of a program in the cache, whether or not it is built; `None` if no module builds it.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let module = MODULES.iter().find(|module| module.programs.iter().any(|program| program.name == name))?;
    Some(module.bin().join(name))
}

/// Builds all programs that the cache lacks.
///
/// # Errors
/// If Go or a C compiler is missing, or a build fails.
pub(crate) fn build_all() -> Result<()> {
    MODULES.iter().try_for_each(|module| module.build(&module.names()))
}

/// Builds one program if the cache lacks it, and returns its path.
///
/// # Errors
/// If no module has it, Go is missing, or the build fails.
pub(crate) fn build_one(name: &str) -> Result<PathBuf> {
    for module in MODULES {
        if let Some(program) = module.programs.iter().find(|program| program.name == name) {
            module.build(&[program.name])?;
            return Ok(module.bin().join(name));
        }
    }
    let known: Vec<_> = MODULES.iter().flat_map(Module::names).collect();
    Err(Error::Input {
        field: "program",
        value: name.into(),
        expected: format!("one of {}; other tools come from the PATH", known.join(", ")),
    })
}

/// Returns a text that identifies the programs of a cluster.
pub(crate) fn revision() -> String {
    MODULES.iter().map(Module::key).collect::<Vec<_>>().join(" ")
}

impl Module {
    fn names(&self) -> Vec<&'static str> {
        self.programs.iter().map(|program| program.name).collect()
    }

    /// Returns the version pinned in the module file.
    fn version(&self) -> &'static str {
        let lines = self.files.iter().filter(|(name, _)| *name == "go.mod").flat_map(|(_, text)| text.lines());
        lines
            .filter_map(|line| line.trim().trim_start_matches("require ").strip_prefix(self.pin)?.strip_prefix(' '))
            .find_map(|rest| rest.split_whitespace().next().filter(|word| word.starts_with('v')))
            .unwrap_or("v0")
    }

    fn linker_flags(&self) -> String {
        let version = self.version();
        let stamps = self.stamps.iter().map(|stamp| format!(" -X {stamp}={version}"));
        std::iter::once("-s -w".to_owned()).chain(stamps).collect()
    }

    /// Returns the name of the module's folder in the cache: its version and a hash of all inputs of its programs.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        for (name, text) in self.files {
            hash.update(name);
            hash.update([0]);
            hash.update(text);
            hash.update([0]);
        }
        hash.update(self.linker_flags());
        format!("{}-{}-{}", self.name, self.version(), &hex::encode(hash.finalize())[..12])
    }

    fn bin(&self) -> PathBuf {
        cache().join(self.key()).join("bin")
    }

    fn missing<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let bin = self.bin();
        names.iter().copied().filter(|name| !bin.join(name).is_file()).collect()
    }

    fn build(&self, names: &[&str]) -> Result<()> {
        if self.missing(names).is_empty() {
            return Ok(());
        }
        let go = host::go()?;
        let root = cache().join(self.key());
        fs::create_dir_all(root.join("bin")).map_err(Error::io("create", &root))?;
        let _lock = Lock::take(&root.join("lock"), &format!("build {}", self.name))?;
        // The process that held the lock may have built it.
        let missing = self.missing(names);
        if missing.is_empty() {
            return Ok(());
        }
        let source = root.join("source");
        fs::create_dir_all(&source).map_err(Error::io("create", &source))?;
        for (name, text) in self.files {
            fs::write(source.join(name), text).map_err(Error::io("write", source.join(name)))?;
        }
        let wanted: Vec<&Program> = self.programs.iter().filter(|program| missing.contains(&program.name)).collect();
        let fresh = root.join(format!("new-{}", std::process::id()));
        fs::create_dir_all(&fresh).map_err(Error::io("create", &fresh))?;
        let built = self.compile(&go, &source, &fresh, &wanted);
        let moved = built.and_then(|()| {
            wanted.iter().try_for_each(|program| {
                let (from, to) = (fresh.join(program.built), root.join("bin").join(program.name));
                fs::rename(&from, &to).map_err(Error::io("create", to))
            })
        });
        let _ = fs::remove_dir_all(&fresh);
        moved
    }

    fn compile(&self, go: &Path, source: &Path, target: &Path, wanted: &[&Program]) -> Result<()> {
        let packages: Vec<&str> = wanted.iter().map(|program| program.package).collect();
        let mut progress = Progress::start(&format!("build {} {}", self.name, self.version()));
        progress.update("reading modules");
        let mut list = go_command(go, source);
        list.args(["list", "-deps"]).args(&packages).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut listing = spawn(&mut list)?;
        let count = listing.stdout.take().map(|out| std::thread::spawn(|| BufReader::new(out).lines().count()));
        let mut downloads = 0;
        finish(&list, listing, |line| {
            downloads += usize::from(line.starts_with("go: downloading"));
            progress.update(&format!("{downloads} modules downloaded"));
        })?;
        let total = count.and_then(|thread| thread.join().ok()).unwrap_or_default();

        let mut build = go_command(go, source);
        build.args(["build", "-v", "-trimpath", "-ldflags", &self.linker_flags(), "-o"]).arg(target);
        build.arg("--").args(&packages).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut done = 0;
        let building = spawn(&mut build)?;
        finish(&build, building, |line| {
            done += usize::from(!line.contains(' '));
            progress.update(&format!("{done} of at most {total} packages compiled"));
        })?;
        progress.finish(&format!("{} programs, {done} packages compiled", wanted.len()));
        Ok(())
    }
}

fn go_command(go: &Path, source: &Path) -> Command {
    let mut command = Command::new(go);
    command.current_dir(source).stdin(Stdio::null());
    command.env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOFLAGS", "-mod=readonly -buildvcs=false");
    command
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|error| Error::Command {
        command: command::line(command),
        status: "not started".into(),
        stderr: error.to_string(),
    })
}

/// Calls `each` with every line of the program's standard error, and keeps the last ones for an error.
fn finish(command: &Command, mut child: Child, mut each: impl FnMut(&str)) -> Result<()> {
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
            each(&line);
            if line.contains(' ') && !line.starts_with("go: downloading") {
                last.push(line);
            }
        }
    }
    let status = child.wait().map_err(|error| Error::Command {
        command: command::line(command),
        status: "lost".into(),
        stderr: error.to_string(),
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: command::line(command),
        status: status.to_string(),
        stderr: command::tail(&last.join("\n"), 2000).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_module_files() {
        for module in MODULES {
            assert!(module.version().matches('.').count() >= 2, "{} has no version", module.name);
            assert!(module.key().starts_with(&format!("{}-{}-", module.name, module.version())));
        }
    }

    #[test]
    fn every_program_has_one_place() {
        let names: Vec<_> = MODULES.iter().flat_map(Module::names).collect();
        for name in &names {
            assert_eq!(names.iter().filter(|other| other == &name).count(), 1);
            assert!(path(name).unwrap().ends_with(format!("bin/{name}")));
        }
        assert!(path("helm").is_none());
        assert!(build_one("helm").unwrap_err().to_string().contains("kubectl"));
    }
}
