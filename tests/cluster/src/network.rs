//! The cluster's own bridge, the two routes that keep its packets on this machine, and their removal.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use crate::layout::Layout;
use crate::{Error, Result, command};

/// The bridge of the pods.
pub(crate) const BRIDGE: &str = "codex0";
/// The bridge's own address: the API server and servers under test listen here.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
/// The address range of pods.
pub(crate) const PODS: &str = "10.213.0.0/24";
/// The address range of Services.
pub(crate) const SERVICES: &str = "10.214.0.0/16";
/// The Service of the API server: the first address of the range.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
/// The Service of the DNS server.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 10);
/// The node's name.
pub(crate) const NODE: &str = "codex-node";
/// The suffix of Service names.
pub(crate) const DOMAIN: &str = "cluster.local";

/// Ports. They are on the loopback device unless the comment says otherwise.
pub(crate) mod port {
    /// The API server, on the bridge.
    pub(crate) const API: u16 = 6443;
    /// The kubelet, on the bridge.
    pub(crate) const KUBELET: u16 = 10250;
    /// The DNS server, on the bridge.
    pub(crate) const DNS: u16 = 21053;
    /// An optional image registry, on the bridge, without TLS.
    pub(crate) const REGISTRY: u16 = 5000;
    /// etcd's clients.
    pub(crate) const ETCD: u16 = 21379;
    /// etcd's peers.
    pub(crate) const ETCD_PEER: u16 = 21380;
    /// etcd's health.
    pub(crate) const ETCD_HEALTH: u16 = 21381;
    /// The DNS server's readiness.
    pub(crate) const DNS_READY: u16 = 21054;
    /// The kubelet's health.
    pub(crate) const KUBELET_HEALTH: u16 = 21248;
    /// The controller-manager.
    pub(crate) const CONTROLLER_MANAGER: u16 = 21257;
    /// The scheduler.
    pub(crate) const SCHEDULER: u16 = 21259;
    /// kube-proxy's health.
    pub(crate) const PROXY_HEALTH: u16 = 21256;
    /// kube-proxy's metrics.
    pub(crate) const PROXY_METRICS: u16 = 21249;
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Creates the bridge, its routes and forwarding; existing ones stay.
///
/// # Errors
/// If `ip` fails.
pub(crate) fn set_up(layout: &Layout) -> Result<()> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        // A fixed MAC address: otherwise a bridge takes that of its lowest port, which changes.
        ip(&["link", "add", BRIDGE, "address", "02:c0:de:00:00:01", "type", "bridge"])?;
    }
    ip(&["address", "replace", &format!("{HOST}/24"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    // Neither Services nor pods may reach the machine's other networks, not even while kube-proxy or the bridge is down.
    ip(&["route", "replace", "local", SERVICES, "dev", "lo", "table", "local"])?;
    ip(&["route", "replace", "unreachable", PODS, "metric", "4096"])?;
    let before = layout.at("ip_forward");
    if !before.exists() {
        let value = fs::read_to_string(FORWARDING).unwrap_or_default();
        fs::write(&before, value).map_err(Error::io("write", &before))?;
    }
    fs::write(FORWARDING, "1").map_err(Error::io("write", FORWARDING))
}

/// Removes the bridge, the routes and kube-proxy's rules, and restores forwarding.
pub(crate) fn take_down(layout: &Layout, rules: bool) {
    let quietly = |arguments: &[&str]| {
        let _ = ip(arguments);
    };
    quietly(&["link", "delete", BRIDGE]);
    quietly(&["route", "delete", "local", SERVICES, "dev", "lo", "table", "local"]);
    quietly(&["route", "delete", "unreachable", PODS, "metric", "4096"]);
    if rules {
        for family in ["iptables", "ip6tables"] {
            remove_rules(family);
        }
    }
    if let Ok(value) = fs::read_to_string(layout.at("ip_forward")) {
        let _ = fs::write(FORWARDING, value.trim());
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    command::output(Command::new("ip").args(arguments))
}

/// Removes the chains that the kubelet and kube-proxy make (all named `KUBE-…`) and every rule that leads to them.
fn remove_rules(family: &str) {
    let Ok(saved) = command::output(&mut Command::new(format!("{family}-save"))) else { return };
    let script = removal(&saved);
    if !script.is_empty() {
        let _ = command::with_input(Command::new(format!("{family}-restore")).arg("--noflush"), &script);
    }
}

/// The input of `iptables-restore --noflush` that removes all `KUBE-` chains from what `iptables-save` printed.
fn removal(saved: &str) -> String {
    let mut script = String::new();
    let (mut table, mut rules, mut chains) = ("", Vec::new(), Vec::new());
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            (table, rules, chains) = (name, Vec::new(), Vec::new());
        } else if let Some(chain) = line.strip_prefix(":KUBE-") {
            chains.push(format!("KUBE-{}", chain.split_whitespace().next().unwrap_or_default()));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            if !rule.starts_with("KUBE-") && rule.contains("KUBE-") {
                rules.push(format!("-D {rule}\n"));
            }
        } else if line == "COMMIT" && !chains.is_empty() {
            script.extend([format!("*{table}\n"), rules.concat()]);
            script.extend(chains.iter().map(|chain| format!("-F {chain}\n")));
            script.extend(chains.iter().map(|chain| format!("-X {chain}\n")));
            script += "COMMIT\n";
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kube_chains_are_removed() {
        let saved = "# saved\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:OTHER - [0:0]\n\
            -A PREROUTING -m comment --comment \"services\" -j KUBE-SERVICES\n-A PREROUTING -j OTHER\n\
            -A KUBE-SERVICES -d 10.214.0.1/32 -j ACCEPT\nCOMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n";
        let expected = "*nat\n-D PREROUTING -m comment --comment \"services\" -j KUBE-SERVICES\n\
            -F KUBE-SERVICES\n-X KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(removal(saved), expected);
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j OTHER\nCOMMIT\n"), "");
    }
}
