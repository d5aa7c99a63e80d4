//! How an endpoint answers: as the request's own headers say, over both protocols.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::ledger::Ledger;
use crate::plan::{Kind, Planned, Wish, answer_of, body_of, event_of};

/// Between two events of a watch.
const EVENT_INTERVAL: Duration = Duration::from_millis(5);

/// What a request says of itself.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    nonce: u64,
    kind: Kind,
    up: usize,
    down: usize,
    refuse: bool,
    go_away: bool,
}

/// The headers by which a request says it.
pub(crate) fn headers_of(planned: &Planned, caller: &str) -> Vec<(String, String)> {
    let kind = match planned.kind {
        Kind::Get => "get",
        Kind::Post => "post",
        Kind::Watch => "watch",
    };
    let wish = match planned.wish {
        Some(Wish::Refuse) => "refuse",
        Some(Wish::GoAway) => "goaway",
        None => "",
    };
    [
        ("x-nonce", format!("{:x}", planned.nonce)),
        ("x-kind", kind.to_owned()),
        ("x-up", planned.up.to_string()),
        ("x-down", planned.down.to_string()),
        ("x-wish", wish.to_owned()),
        ("x-caller", caller.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

impl Wanted {
    /// None for a request that is none of the callers' (one that asks whether the endpoint is well).
    fn read(headers: &HeaderMap) -> Option<Self> {
        let value = |name: &str| headers.get(name)?.to_str().ok();
        Some(Self {
            nonce: u64::from_str_radix(value("x-nonce")?, 16).ok()?,
            kind: match value("x-kind")? {
                "get" => Kind::Get,
                "post" => Kind::Post,
                _ => Kind::Watch,
            },
            up: value("x-up")?.parse().ok()?,
            down: value("x-down")?.parse().ok()?,
            refuse: value("x-wish") == Some("refuse"),
            go_away: value("x-wish") == Some("goaway"),
        })
    }

    /// The request came; its body is still on its way.
    fn begins(&self, headers: &HeaderMap, ledger: &Ledger) {
        let (nonce, kind) = (self.nonce, self.kind);
        if kind == Kind::Post {
            ledger.executes(nonce);
        }
        if headers.get("x-caller") != headers.get("x-remote-user") {
            let told = headers.get_all("x-remote-user").iter().collect::<Vec<_>>();
            ledger.broken(&format!("{kind:?} {nonce:x} came as {told:?}"));
        }
    }

    /// The request's body came whole.
    fn check(&self, body: &[u8], ledger: &Ledger) {
        if body != body_of(self.nonce, self.up) {
            let (nonce, kind, wanted, length) = (self.nonce, self.kind, self.up, body.len());
            ledger.broken(&format!(
                "{kind:?} {nonce:x}: the endpoint read {length} bytes that are not the {wanted} sent"
            ));
        }
    }

    fn head<B>(&self, body: B) -> Response<B> {
        let mut head = Response::new(body);
        let nonce = format!("{:x}", self.nonce).parse().unwrap();
        head.headers_mut().insert("x-nonce", nonce);
        if self.has_length() {
            head.headers_mut().insert("content-length", self.down.into());
        }
        head
    }

    /// Every other body goes without one.
    fn has_length(&self) -> bool {
        self.kind != Kind::Watch && self.nonce.is_multiple_of(2)
    }
}

/// Answers a stream; one whose client goes away ends wherever it is.
pub(crate) async fn answer_http2(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    ledger: Arc<Ledger>,
    go: mpsc::Sender<()>,
) {
    let (parts, mut incoming) = request.into_parts();
    let Some(wanted) = Wanted::read(&parts.headers) else {
        respond.send_response(Response::new(()), true).ok();
        return;
    };
    if wanted.refuse && ledger.refuses(wanted.nonce) {
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    wanted.begins(&parts.headers, &ledger);
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let Ok(data) = data else { return };
        if incoming.flow_control().release_capacity(data.len()).is_err() {
            return;
        }
        body.extend_from_slice(&data);
    }
    wanted.check(&body, &ledger);
    if wanted.go_away {
        ledger.counts("GOAWAY with an answer");
        // One is enough for the connection.
        go.try_send(()).ok();
    }
    ledger.answers(wanted.nonce);
    let Ok(stream) = respond.send_response(wanted.head(()), false) else { return };
    // An error is the client's end.
    write_http2(&wanted, stream).await.ok();
}

async fn write_http2(wanted: &Wanted, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    if wanted.kind == Kind::Watch {
        let mut pace = interval(EVENT_INTERVAL);
        for index in 0..wanted.down {
            pace.tick().await;
            send(&mut stream, event_of(wanted.nonce, index)).await?;
        }
    } else {
        send(&mut stream, answer_of(wanted.kind, wanted.nonce, wanted.down)).await?;
    }
    stream.send_data(Bytes::new(), true)
}

/// Sends bytes as the other end makes room for them.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(h2::Reason::CANCEL.into()),
        };
        stream.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

type Sent = UnsyncBoxBody<Bytes, io::Error>;

fn whole(bytes: Bytes) -> Sent {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) async fn answer_http1(
    request: Request<Incoming>,
    ledger: Arc<Ledger>,
) -> Response<Sent> {
    let (parts, incoming) = request.into_parts();
    let Some(wanted) = Wanted::read(&parts.headers) else {
        return Response::new(whole(Bytes::new()));
    };
    wanted.begins(&parts.headers, &ledger);
    let Ok(body) = incoming.collect().await else {
        return Response::new(whole(Bytes::new()));
    };
    wanted.check(&body.to_bytes(), &ledger);
    ledger.answers(wanted.nonce);
    let sent = if wanted.has_length() {
        whole(answer_of(wanted.kind, wanted.nonce, wanted.down))
    } else if wanted.kind == Kind::Watch {
        let events =
            stream::unfold((0, interval(EVENT_INTERVAL)), move |(index, mut pace)| async move {
                pace.tick().await;
                let event = Ok(Frame::data(event_of(wanted.nonce, index)));
                (index < wanted.down).then_some((event, (index + 1, pace)))
            });
        StreamBody::new(events).boxed_unsync()
    } else {
        let body = answer_of(wanted.kind, wanted.nonce, wanted.down);
        let chunks: Vec<_> = body.chunks(10_000).map(|chunk| body.slice_ref(chunk)).collect();
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(chunk)));
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    };
    let mut response = wanted.head(sent);
    if wanted.go_away {
        ledger.counts("GOAWAY with an answer");
        response.headers_mut().insert("connection", "close".parse().unwrap());
    }
    response
}
