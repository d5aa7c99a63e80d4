//! Connects to an endpoint: TCP, then TLS; and says what went wrong in one word.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backend::Backend;
use super::endpoint::Endpoint;
use crate::model::fault::{Fault, Hop};
use crate::model::suspicion::look_interval;
use crate::runtime::socket;

/// Reads of 512 bytes in which the alert behind a failed write is looked for.
const ALERT_READS_MAX: usize = 128;

/// What the connection itself met; read by the requests that fail with it.
pub type Noted = Arc<OnceLock<Fault>>;

/// A connection to an endpoint, ready for HTTP.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) stream: Watched,
    /// True when ALPN chose HTTP/2.
    pub(super) http2: bool,
    pub(super) noted: Noted,
    pub(super) reads: Reads,
    pub(super) times: DialTimes,
}

/// How often anything was read from a connection.
pub(super) type Reads = Arc<AtomicU64>;

/// How long the parts of a dial took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialTimes {
    /// TCP.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
}

/// What is offered to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocols {
    /// HTTP/2, and HTTP/1.1 where it does not speak that.
    Any,
    /// HTTP/1.1 only, for a connection that shall become another protocol's.
    Http1,
}

/// Makes a connection; TCP and TLS may each take `limit`, or what is configured where that is less.
pub(super) async fn dial(
    backend: &Backend,
    endpoint: &Endpoint,
    protocols: Protocols,
    limit: Duration,
) -> Result<Dialed, Fault> {
    let (config, name) = backend.tls(endpoint)?;
    let address = endpoint.address;
    let begun = Instant::now();
    let connecting = TcpStream::connect(address);
    let stream = match within(backend.config.connect_timeout.min(limit), connecting).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            return Err(Fault::new(connect_hop(&error), format!("dial tcp: {error}")));
        }
        None => {
            return Err(Fault::new(Hop::ConnectTimeout, "dial tcp: i/o timeout"));
        }
    };
    if let Err(error) = socket::set_up(&stream) {
        return Err(Fault::new(Hop::ConnectFailed, format!("dial tcp: {error}")));
    }
    let connect = begun.elapsed();
    let connector = TlsConnector::from(config);
    let handshake = match protocols {
        Protocols::Any => connector.connect(name, stream),
        Protocols::Http1 => connector.with_alpn(vec![b"http/1.1".to_vec()]).connect(name, stream),
    };
    match within(backend.config.handshake_timeout.min(limit), handshake).await {
        Some(Ok(stream)) => {
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let times = DialTimes { connect, tls: begun.elapsed().saturating_sub(connect) };
            let (stream, noted) = Watched::new(stream);
            let reads = Arc::clone(&stream.reads);
            Ok(Dialed { stream, http2, noted, reads, times })
        }
        Some(Err(error)) => {
            let hop = tls_hop(&error).unwrap_or(Hop::HandshakeFailed);
            Err(Fault::new(hop, format!("tls: {error}")))
        }
        None => Err(Fault::new(Hop::HandshakeTimeout, "TLS handshake timeout")),
    }
}

/// What comes within `limit`, of which only time counts in which this thread ran: a thread that was
/// kept waiting must not blame the peer for it.
pub(super) async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    let mut what = pin!(what);
    let step = look_interval(limit);
    let mut waited = Duration::ZERO;
    while waited < limit {
        if let Ok(came) = timeout(step, what.as_mut()).await {
            return Some(came);
        }
        waited += step;
    }
    None
}

/// What a failed TCP connection attempt is called.
pub fn connect_hop(error: &io::Error) -> Hop {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Hop::ConnectRefused,
        io::ErrorKind::TimedOut => Hop::ConnectTimeout,
        _ => Hop::ConnectFailed,
    }
}

/// The TLS fault inside an I/O error; `None` when there is none.
pub fn tls_hop(error: &io::Error) -> Option<Hop> {
    error.get_ref()?.downcast_ref::<TlsError>().map(hop_of_tls)
}

/// What a TLS fault is called.
pub fn hop_of_tls(error: &TlsError) -> Hop {
    match error {
        TlsError::InvalidCertificate(certificate) => certificate_hop(certificate),
        TlsError::AlertReceived(alert) if refuses_certificate(*alert) => {
            Hop::ClientCertificateRefused
        }
        TlsError::InvalidMessage(_) => Hop::NotTls,
        _ => Hop::HandshakeFailed,
    }
}

fn certificate_hop(error: &CertificateError) -> Hop {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Hop::UnknownAuthority,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Hop::NameMismatch
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Hop::CertificateExpired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Hop::CertificateNotYetValid
        }
        _ => Hop::CertificateInvalid,
    }
}

/// Alerts by which a server says that it does not take our certificate.
fn refuses_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// The stream of a connection, which notes the TLS fault that ends it: with TLS 1.3 a server
/// refuses our certificate only after the handshake is over for us, and the HTTP libraries keep no
/// more than the text of such an error.
#[derive(Debug)]
pub struct Watched {
    stream: TlsStream<TcpStream>,
    noted: Noted,
    reads: Reads,
}

impl Watched {
    /// Watches a connection whose handshake is over.
    pub fn new(stream: TlsStream<TcpStream>) -> (Self, Noted) {
        let noted = Noted::default();
        (Self { stream, noted: Arc::clone(&noted), reads: Reads::default() }, noted)
    }

    fn note(&self, error: &io::Error) {
        if let Some(hop) = tls_hop(error) {
            // The first fault is the cause, later ones its consequences.
            let _first = self.noted.set(Fault::new(hop, format!("tls: {error}")));
        }
    }

    /// A write that fails may have an alert behind it, unread, that says why: its failure is told
    /// only when what has come is read.
    fn poll_alert(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 512];
        for _ in 0..ALERT_READS_MAX {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
                Ok(()) if buf.filled().is_empty() => return Poll::Ready(()),
                Ok(()) => {}
                Err(error) => {
                    self.note(&error);
                    return Poll::Ready(());
                }
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Err(error)) => self.note(error),
            // One thread writes it.
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                self.reads.store(self.reads.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(polled, Poll::Ready(Err(_))) {
            ready!(self.poll_alert(cx));
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(polled, Poll::Ready(Err(_))) {
            ready!(self.poll_alert(cx));
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if matches!(polled, Poll::Ready(Err(_))) {
            ready!(self.poll_alert(cx));
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
