//! A server inside another command: a model directory, unsigned, on a loopback address. Does I/O.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use codex_configs::Device;
use codex_reports::ServingState;
use tokio::net::TcpListener;

use super::{Granted, LIMITS, Room, ServeError, Server, Shutdown, Source, access, filter};
use crate::{error::CommandError, reporting::Reporter};

/// A running server; dropping it stops the server.
pub(crate) struct Local {
    address: SocketAddr,
    stop: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Local {
    /// Serves a model and returns once it is ready.
    ///
    /// # Errors
    /// The model cannot be loaded, or no address is free.
    pub(crate) fn start(directory: PathBuf, device: Device) -> Result<Self, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        let stop = Shutdown::default();
        let (told, ready) = mpsc::channel();
        let asked = stop.clone();
        let server = Server {
            source: Source::Unsigned(directory),
            admin: None,
            access: access::Settings::default(),
            filter: filter::Settings::default(),
            tls: None,
            reload: access::RELOAD,
            device,
            room: Room { running: 1, queue: 1, cache: None, prefixes: 1 << 16, batched: None },
            granted: Granted::default(),
            drain_delay: std::time::Duration::ZERO,
            drain_deadline: std::time::Duration::from_secs(1),
            time_limit: None,
            limits: LIMITS,
            traffic: None,
            activity: false,
            mirror: None,
            shadow: None,
            compare: None,
            compared: super::TRAFFIC,
            capture: None,
            errors: None,
            name: None,
        };
        let work = move || {
            let serve = async {
                let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                let address = |source| ServeError::Listen { address: (Ipv4Addr::LOCALHOST, 0).into(), source };
                let listener = listening.map_err(address)?;
                let at = listener.local_addr().map_err(address)?;
                let ready = told.clone();
                server.run_until_ready(listener, &reporter, &asked, move || drop(ready.send(Ok(at)))).await
            };
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let outcome = runtime.map_err(ServeError::Signals).and_then(|runtime| runtime.block_on(serve));
            if let Err(error) = outcome {
                // Nobody waits for it once the server was ready.
                let _ = told.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(work).map_err(CommandError::failed)?;
        let ended = || CommandError::failed("the server ended before it was ready");
        let address = ready.recv().map_err(|_| ended())??;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Returns the address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop.immediate.cancel();
        self.stop.requested.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
