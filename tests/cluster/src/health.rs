//! Health checks of the components, through endpoints without credentials or through kubectl.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::components::Component;
use crate::layout::Layout;
use crate::network::{API_SERVICE, DNS_SERVICE, DOMAIN, NODE, port};
use crate::{Error, Result, command, objects};

/// The time limit of one request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns whether the component is healthy.
pub(crate) fn healthy(layout: &Layout, component: Component) -> bool {
    match component {
        Component::Etcd => http_ok(port::ETCD_HEALTH, "/health"),
        Component::Containerd => UnixStream::connect(layout.containerd_socket()).is_ok(),
        Component::ApiServer => {
            let mut ready = objects::kubectl(layout, "admin");
            command::succeeds(ready.args(["get", "--raw", "/readyz", "--request-timeout=5s"]))
        }
        Component::ControllerManager => connects(port::CONTROLLER_MANAGER),
        Component::Scheduler => connects(port::SCHEDULER),
        Component::Kubelet => http_ok(port::KUBELET_HEALTH, "/healthz"),
        Component::Proxy => http_ok(port::PROXY_HEALTH, "/healthz"),
        Component::Dns => http_ok(port::DNS_READY, "/ready"),
        Component::Volumes => layout.volumes_watched().exists(),
    }
}

/// Returns whether the node is ready.
pub(crate) fn node_ready(layout: &Layout) -> bool {
    let mut get = objects::kubectl(layout, "admin");
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.spec.taints[*].key}";
    let answer = command::output(get.args(["get", "node", NODE, "--request-timeout=5s", "--output", path]));
    answer.is_ok_and(|text| text.trim() == "True")
}

/// Returns whether the DNS Service's address resolves the API server's name: kube-proxy and the DNS server both work.
pub(crate) fn names_resolve() -> bool {
    resolve(SocketAddr::from((DNS_SERVICE, 53)), &format!("kubernetes.default.svc.{DOMAIN}"))
        .is_ok_and(|address| address == Some(API_SERVICE))
}

/// Returns the first problem of a cluster whose processes all run.
pub(crate) fn complaint(layout: &Layout) -> Option<String> {
    let sick = Component::ALL.into_iter().find(|&component| !healthy(layout, component));
    sick.map(|component| format!("{} does not answer", component.name()))
        .or_else(|| (!names_resolve()).then(|| "Service names do not resolve".to_owned()))
        .or_else(|| (!node_ready(layout)).then(|| "the node is not ready".to_owned()))
}

/// Waits until the component is healthy.
///
/// # Errors
/// If its process exits, or `limit` passes.
pub(crate) fn wait(layout: &Layout, component: Component, limit: Duration) -> Result<()> {
    let what = format!("{} does not answer", component.name());
    until(limit, &what, || {
        if component.running(layout).is_none() {
            let log = std::fs::read_to_string(layout.log(component.name())).unwrap_or_default();
            return Err(Error::Component { component: component.name(), log: command::tail(&log, 2000).to_owned() });
        }
        Ok(healthy(layout, component))
    })
}

/// Polls until the check returns true.
///
/// # Errors
/// If the check fails, or `limit` passes.
pub(crate) fn until(limit: Duration, what: &str, mut question: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !question()? {
        if began.elapsed() > limit {
            return Err(Error::Timeout { what: what.to_owned(), seconds: limit.as_secs() });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn connects(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE).is_ok()
}

fn http_ok(port: u16, path: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Resolves the first IPv4 address of `name` with one DNS server.
fn resolve(server: SocketAddr, name: &str) -> std::io::Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(server)?;
    let query = query(name);
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(address(&answer[..length], query.len()))
}

/// Builds a DNS query for the IPv4 address of `name`.
fn query(name: &str) -> Vec<u8> {
    // Identifier, recursion desired, one question, no records.
    let mut query = vec![0xc0, 0xde, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Parses the address in the first record of the response to a query of `asked` bytes.
fn address(answer: &[u8], asked: usize) -> Option<Ipv4Addr> {
    let records = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    let mut at = asked;
    // The record's name is a pointer of two bytes or labels that end with a zero.
    while records > 0 && *answer.get(at)? != 0 && answer.get(at)? & 0xc0 == 0 {
        at += usize::from(*answer.get(at)?) + 1;
    }
    at += if answer.get(at)? & 0xc0 == 0 { 1 } else { 2 };
    let [0, 1, ..] = answer.get(at..at + 10)? else { return None };
    let octets: [u8; 4] = answer.get(at + 10..at + 14)?.try_into().ok()?;
    (records > 0).then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_behind_a_pointer_or_a_name_is_found() {
        let question = query("a.b");
        let mut answer = question.clone();
        answer[7] = 1;
        let record = [0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 214, 0, 1];
        let pointer: Vec<u8> = answer.iter().copied().chain([0xc0, 12]).chain(record).collect();
        assert_eq!(address(&pointer, question.len()), Some(API_SERVICE));
        let named: Vec<u8> = answer.iter().copied().chain([1, b'a', 1, b'b', 0]).chain(record).collect();
        assert_eq!(address(&named, question.len()), Some(API_SERVICE));
        assert_eq!(address(&question, question.len()), None);
        assert_eq!(address(&[], 0), None);
    }
}
