//! A relay between pods and the report endpoint, whose connections can be slow or cut. It passes bytes on and sees no contents.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use codex_tests::{Error, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// The pause before each piece of a slow connection.
const PAUSE: Duration = Duration::from_millis(700);
/// The time limit for a connection to the endpoint.
const CONNECT: Duration = Duration::from_secs(5);

/// What the relay does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Passes bytes on.
    Pass,
    /// Passes each piece on after a pause.
    Slow,
    /// Closes connections: new ones at once, others at their next piece.
    Cut,
}

/// The running relay; it ends when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    traffic: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts the relay at an address of this machine.
    ///
    /// # Errors
    /// If it cannot listen.
    pub(crate) async fn start(host: IpAddr, endpoint: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await.map_err(Error::io("listening for reports"))?;
        let address = listener.local_addr().map_err(Error::io("listening for reports"))?;
        let traffic = Arc::new(AtomicU8::new(Traffic::Pass as u8));
        let task = tokio::spawn(accept(listener, endpoint, Arc::clone(&traffic)));
        Ok(Self { address, traffic, task })
    }

    /// Returns its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what it does with connections from now on.
    pub(crate) fn set(&self, traffic: Traffic) {
        self.traffic.store(traffic as u8, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, endpoint: SocketAddr, traffic: Arc<AtomicU8>) {
    // Dropping the set closes all connections.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if is(&traffic, Traffic::Cut) {
            continue;
        }
        connections.spawn(connection(stream, endpoint, Arc::clone(&traffic)));
    }
}

async fn connection(client: TcpStream, endpoint: SocketAddr, traffic: Arc<AtomicU8>) {
    let Ok(Ok(server)) = timeout(CONNECT, TcpStream::connect(endpoint)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // HTTP needs no half-closed connections.
    tokio::select! {
        () = pass(from_client, to_server, &traffic) => {}
        () = pass(from_server, to_client, &traffic) => {}
    }
}

/// Passes bytes on until one side closes, or the connection is cut.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, traffic: &AtomicU8) {
    let mut piece = vec![0; 4096];
    loop {
        let read = from.read(&mut piece).await.unwrap_or(0);
        if read == 0 || is(traffic, Traffic::Cut) {
            return;
        }
        if is(traffic, Traffic::Slow) {
            sleep(PAUSE).await;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

fn is(traffic: &AtomicU8, wanted: Traffic) -> bool {
    traffic.load(Ordering::Relaxed) == wanted as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_until_the_connection_is_cut() {
        let local = IpAddr::from([127, 0, 0, 1]);
        let server = TcpListener::bind((local, 0)).await.unwrap();
        let relay = Relay::start(local, server.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let (mut behind, _) = server.accept().await.unwrap();
        client.write_all(b"report").await.unwrap();
        let mut bytes = [0; 6];
        behind.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"report");
        relay.set(Traffic::Cut);
        client.write_all(b"more").await.unwrap();
        assert_eq!(behind.read(&mut bytes).await.unwrap(), 0, "the connection is closed without the bytes");
    }
}
