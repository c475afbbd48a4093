//! A real Kubernetes cluster on one machine, for the demo, the tests and the benchmarks.
//!
//! etcd, the API server, the controller-manager, the scheduler, containerd, the kubelet, kube-proxy and `CoreDNS` run as
//! processes of this machine that outlive the command that started them. Nothing listens beyond the loopback device and
//! the cluster's own bridge. The programs are built from pinned Go modules (`tools/`) and cached by version.
//!
//! Tests start with [`Cluster::ensure`]; people use the `codex-cluster` command ([`cli`]).
//!
//! Both cgroup versions are handled, with the `cgroupfs` driver or, where systemd runs, with its own; only version 1
//! with `cgroupfs` has been tested.

mod certificates;
pub mod cli;
mod cluster;
mod command;
mod components;
mod config;
mod error;
mod faults;
mod health;
mod host;
mod images;
mod kubeconfig;
mod layout;
mod lifecycle;
mod network;
mod objects;
mod privilege;
mod process;
mod report;
mod status;
mod target;
mod teardown;
mod tools;
mod volumes;

pub use cluster::Cluster;
pub use components::Component;
pub use error::{Error, Result};
pub use target::Target;
