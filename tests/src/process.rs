//! Runs commands to their end, and the controller as a process that can be killed. Does I/O.

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{Error, Installation, Result, install};

/// Runs a command to its end, and returns its standard output.
///
/// # Errors
/// If it cannot be started or fails; the error holds both outputs.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let ended = command.output().map_err(Error::io(format!("starting `{line}`")))?;
    finish(line, &ended)
}

/// Runs a command with `input` on its standard input, and returns its standard output.
///
/// # Errors
/// If it cannot be started or fails; the error holds both outputs.
pub fn output_with(command: &mut Command, input: &str) -> Result<String> {
    let line = line(command);
    let io = |what: &str| Error::io(format!("{what} `{line}`"));
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(io("starting"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early closes the pipe; its exit status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = child.wait_with_output().map_err(io("waiting for"))?;
    finish(line, &ended)
}

/// Returns the standard output of a command that succeeded.
fn finish(command: String, ended: &std::process::Output) -> Result<String> {
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    if ended.status.success() {
        return Ok(text);
    }
    let output = format!("{text}{}", String::from_utf8_lossy(&ended.stderr));
    Err(Error::Command { command, status: ended.status.to_string(), output })
}

/// Formats a command as a user would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs the controller as a process of this machine, with the rights of its ServiceAccount.
#[derive(Debug)]
pub struct Controller {
    program: PathBuf,
    kubeconfig: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    /// Holds kubeconfig and log.
    _folder: tempfile::TempDir,
}

/// A running controller; killed when dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Controller {
    /// Prepares a controller whose report endpoint has an address that pods reach.
    ///
    /// # Errors
    /// If the cluster issues no token or the machine has no free port.
    pub fn new(installation: &Installation) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let cluster = &installation.cluster;
        let mut token = cluster.kubectl()?;
        token.args(["--namespace", install::NAMESPACE, "create", "token", install::CONTROLLER, "--duration=2h"]);
        let kubeconfig = folder.path().join("kubeconfig");
        write_kubeconfig(cluster.kubeconfig(), output(&mut token)?.trim(), &kubeconfig)?;
        let host = cluster.host_address()?;
        let (reports, health) = (free_port(&host.to_string())?, free_port("127.0.0.1")?);
        let arguments = [
            "--namespace",
            install::NAMESPACE,
            "--trainer-image",
            &installation.worker_image,
            "--worker-image",
            &installation.worker_image,
            "--report-url",
            &format!("https://{host}:{reports}{}", codex_reports::PATH),
            "--listen",
            &format!("{host}:{reports}"),
            "--health-listen",
            &format!("127.0.0.1:{health}"),
            // With the same identity, the next process need not wait until the Lease expires.
            "--identity",
            "codex-tests",
        ]
        .map(str::to_owned)
        .to_vec();
        let log = folder.path().join("controller.log");
        Ok(Self { program: install::program(install::CONTROLLER)?, kubeconfig, log, arguments, _folder: folder })
    }

    /// Starts it. Its log is appended to that of the last one.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<Running> {
        let opened = File::options().create(true).append(true).open(&self.log);
        let log = opened.map_err(Error::io(format!("opening {}", self.log.display())))?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env("KUBECONFIG", &self.kubeconfig).env_remove("CODEX_WATCH_NAMESPACES");
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(log);
        command.spawn().map(Running).map_err(Error::io(format!("starting {}", self.program.display())))
    }

    /// Returns the end of their common log.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Running {
    /// Kills it with SIGKILL and waits until it has exited.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another program as a process of this machine; killed when dropped.
#[derive(Debug)]
pub struct Beside {
    child: Child,
    name: String,
    folder: tempfile::TempDir,
}

impl Beside {
    /// Starts the program whose path is in the environment variable `variable`, in a folder of its own. `target` is the one that builds
    /// it.
    ///
    /// # Errors
    /// If the variable is not set or the program cannot be started.
    pub fn start(
        variable: &str,
        target: &str,
        configure: impl FnOnce(&mut Command, &Path) -> Result<()>,
    ) -> Result<Self> {
        let program = std::env::var_os(variable).ok_or_else(|| {
            let source =
                std::io::Error::new(std::io::ErrorKind::NotFound, format!("run `make {target}`, which builds it"));
            Error::io(format!("reading {variable}"))(source)
        })?;
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let mut command = Command::new(&program);
        command.current_dir(folder.path());
        configure(&mut command, folder.path())?;
        let name = variable.to_lowercase();
        let file = folder.path().join("log");
        let log = File::create(&file).map_err(Error::io(format!("creating {}", file.display())))?;
        let again = log.try_clone().map_err(Error::io("opening a log twice"))?;
        let spawned = command.stdin(Stdio::null()).stdout(log).stderr(again).spawn();
        let child = spawned.map_err(Error::io(format!("starting {}", program.display())))?;
        Ok(Self { child, name, folder })
    }

    /// Returns an error with the end of its log if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn runs(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => {
                let status = ended.map_or_else(|error| error.to_string(), |ended| format!("{ended:?}"));
                Err(Error::Command { command: self.name.clone(), status, output: self.last_words() })
            }
        }
    }

    /// Returns the end of its log.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("\n--- the log of {}\n{}", self.name, self.last_words());
        }
    }
}

/// Returns a free port of an address of this machine.
///
/// # Errors
/// If there is none.
pub fn free_port(host: &str) -> Result<u16> {
    let free = TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
    Ok(free.map_err(Error::io(format!("finding a free port of {host}")))?.port())
}

/// Writes the administrator's kubeconfig with a token instead of the certificate.
fn write_kubeconfig(from: &Path, token: &str, to: &Path) -> Result<()> {
    let unreadable = |why: String| Error::Unreadable { path: from.to_owned(), why };
    let text = fs::read_to_string(from).map_err(Error::io(format!("reading {}", from.display())))?;
    let mut kubeconfig: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    let users = kubeconfig.get_mut("users").and_then(|users| users.as_sequence_mut());
    for user in users.ok_or_else(|| unreadable("it names no users".to_owned()))? {
        user["user"] = serde_yaml::to_value(std::collections::BTreeMap::from([("token", token)]))
            .map_err(|error| unreadable(error.to_string()))?;
    }
    let text = serde_yaml::to_string(&kubeconfig).map_err(|error| unreadable(error.to_string()))?;
    fs::write(to, text).map_err(Error::io(format!("writing {}", to.display())))
}
