//! Shows the components with age, memory and health, and their logs.

use std::process::Command;

use crate::components::Component;
use crate::layout::Layout;
use crate::network::HOST;
use crate::{Error, Result, health};

/// Prints a line per component.
///
/// # Errors
/// [`Error::Down`] if nothing runs, [`Error::Unhealthy`] if a component is unhealthy.
pub(crate) fn print(layout: &Layout) -> Result<()> {
    let processes = Component::ALL.map(|component| (component, component.running(layout)));
    if processes.iter().all(|(_, process)| process.is_none()) {
        return Err(Error::Down);
    }
    println!("{:<26} {:>8} {:>9} {:>8}  HEALTH", "COMPONENT", "PID", "MEMORY", "AGE");
    for (component, process) in &processes {
        let Some(process) = process else {
            println!("{:<26} {:>8} {:>9} {:>8}  gone", component.name(), "-", "-", "-");
            continue;
        };
        let health = if health::healthy(layout, *component) { "ok" } else { "does not answer" };
        let memory = format!("{} MiB", process.memory() >> 20);
        println!(
            "{:<26} {:>8} {memory:>9} {:>8}  {health}",
            component.name(),
            process.pid,
            age(process.age().as_secs())
        );
    }
    println!("\nAPI server   https://{HOST}:{}", crate::network::port::API);
    println!("kubeconfig   {}", layout.kubeconfig("admin").display());
    if let Some((component, _)) = processes.iter().find(|(_, process)| process.is_none()) {
        return Err(Error::Unhealthy(format!("{} has exited", component.name())));
    }
    health::complaint(layout).map_or(Ok(()), |complaint| Err(Error::Unhealthy(complaint)))
}

/// Prints the end of one component's log, or of all. With `follow`, follows it.
///
/// # Errors
/// If the component or its log does not exist.
pub(crate) fn logs(layout: &Layout, component: Option<&str>, follow: bool) -> Result<()> {
    let components =
        component.map_or(Ok(Component::ALL.to_vec()), |name| Component::parse(name).map(|one| vec![one]))?;
    if !layout.at("logs").exists() {
        return Err(Error::Down);
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", if components.len() == 1 { "200" } else { "10" }]);
    if follow {
        tail.arg("--follow");
    }
    tail.args(components.iter().map(|component| layout.log(component.name())));
    // `tail` writes to the terminal directly, and reports missing logs there.
    tail.status().map_err(Error::io("read", layout.at("logs")))?;
    Ok(())
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_short() {
        assert_eq!([age(5), age(600), age(90_000)], ["5 s", "10 min", "25 h"]);
    }

    #[test]
    fn an_unknown_component_is_refused_before_anything_else() {
        let error = logs(&Layout::below("/nowhere".as_ref()), Some("api"), false).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
