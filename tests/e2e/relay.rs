//! Stands before a backend and can freeze: connections stay open and are accepted, and nothing passes.

use std::net::SocketAddr;
use std::sync::Arc;

use portico::runtime::tasks::spawn_owned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::backend::Listener;

/// A relay to one backend.
pub(crate) struct Relay {
    listener: Listener,
    frozen: Arc<watch::Sender<Frozen>>,
}

/// Which connections are frozen.
#[derive(Clone, Copy, Default)]
struct Frozen {
    all: bool,
    /// Those with a lower number.
    below: usize,
}

impl Relay {
    pub(crate) fn new(backend: SocketAddr) -> Self {
        let frozen = Arc::new(watch::Sender::new(Frozen::default()));
        let gate = Arc::clone(&frozen);
        let listener = Listener::tcp(move |client, number| {
            let gates = (gate.subscribe(), gate.subscribe(), gate.subscribe());
            async move {
                let (mut connecting, up, down) = gates;
                pass(&mut connecting, number).await;
                let Ok(server) = TcpStream::connect(backend).await else { return };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let other = spawn_owned("relay", carry(from_client, to_server, up, number));
                carry(from_server, to_client, down, number).await;
                drop(other);
            }
        });
        Self { listener, frozen }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Nothing passes any more.
    pub(crate) fn freeze(&self) {
        self.frozen.send_modify(|frozen| frozen.all = true);
    }

    /// Nothing passes any more on the connections that there have been; on new ones it does.
    pub(crate) fn freeze_open_ones(&self) {
        let accepted = self.listener.accepted();
        self.frozen.send_modify(|frozen| frozen.below = accepted);
    }

    pub(crate) fn thaw(&self) {
        self.frozen.send_replace(Frozen::default());
    }
}

async fn pass(gate: &mut watch::Receiver<Frozen>, number: usize) {
    gate.wait_for(|frozen| !frozen.all && number >= frozen.below).await.ok();
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: watch::Receiver<Frozen>,
    number: usize,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        pass(&mut gate, number).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            to.shutdown().await.ok();
            return;
        }
    }
}
