//! Runs other programs without showing their output, and keeps the output for errors.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// The bytes of a program's standard error that an error keeps.
const TAIL: usize = 1200;

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// If it does not start or fails; the error keeps the end of its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().map_err(|error| unstarted(command, &error))?;
    finish(command, &result)
}

/// Runs `command` with `input` on its standard input and returns its standard output.
///
/// # Errors
/// As [`output`].
pub(crate) fn with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| unstarted(command, &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early closes the pipe; its status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let result = child.wait_with_output().map_err(|error| unstarted(command, &error))?;
    finish(command, &result)
}

/// Runs `command` and returns whether it succeeded. Its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    output(command).is_ok()
}

/// Formats the command line as a user would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Returns the last `limit` bytes of `text`, cut at a character boundary and trimmed.
pub(crate) fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].trim()
}

fn finish(command: &Command, result: &std::process::Output) -> Result<String> {
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    Err(Error::Command {
        command: line(command),
        status: result.status.to_string(),
        stderr: tail(&String::from_utf8_lossy(&result.stderr), TAIL).to_owned(),
    })
}

fn unstarted(command: &Command, error: &std::io::Error) -> Error {
    Error::Command { command: line(command), status: "not started".into(), stderr: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_end_of_the_output() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such thing") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_tail_never_splits_a_character() {
        assert_eq!(tail("añb", 2), "b");
        assert_eq!(tail("short", 100), "short");
    }
}
