//! Callers: each sends its requests one after the other, gives up where the plan says so, and holds
//! each answer against what may come.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use http::HeaderMap;
use portico::tls::pki::PemPair;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::client::{Ask, Incoming, Protocol, tls};
use crate::handler::{headers_of, send};
use crate::http1_client::Http1;
use crate::http2_client::{Http2, head};
use crate::ledger::Ledger;
use crate::pki::PKI;
use crate::plan::{Abort, Api, Kind, Planned, Requests, answer_of, body_of};
use crate::rig::{BOBS_TOKEN, LIMIT, Rig, path};

/// Between two requests of one caller, at least.
const PACE: Duration = Duration::from_millis(10);

/// Causes that the faults of this run have, with the code of each.
const CAUSES: &[(&str, u16)] = &[
    // Killed, or out of the table.
    ("ConnectRefused", 503),
    ("ConnectFailed", 503),
    ("HandshakeFailed", 503),
    ("EndpointsNotFound", 503),
    ("NoEndpoints", 503),
    // Frozen.
    ("ConnectTimeout", 503),
    ("HandshakeTimeout", 503),
    ("Deadline", 504),
    ("Unresponsive", 504),
    ("Overloaded", 503),
    // Killed, sent away or refused with the request on the way.
    ("BackendReset", 503),
];

/// Those of them that say that no endpoint began with the request.
const NEVER_SENT: &[&str] = &[
    "ConnectRefused",
    "ConnectFailed",
    "HandshakeFailed",
    "EndpointsNotFound",
    "NoEndpoints",
    "HandshakeTimeout",
    "Overloaded",
];

/// The names under which callers are known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Alice,
    Master,
    Bob,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Master => "master",
            Self::Bob => "bob",
        }
    }

    fn pair(self) -> Option<&'static PemPair> {
        match self {
            Self::Alice => Some(&PKI.alice),
            Self::Master => Some(&PKI.master),
            Self::Bob => None,
        }
    }
}

/// How a request ended that broke no rule.
enum Ended {
    Answered,
    /// Portico's own answer.
    Rejected(String),
    /// The body broke off, and that was seen.
    Cut,
    /// The same, before anything of it came.
    CutBeforeHead,
    /// The caller gave up.
    Aborted,
}

/// What came back.
struct Received {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    /// How it broke off, if it did.
    cut: Option<String>,
}

/// A connection that several callers share; when one drops it, all leave it.
pub(crate) struct Shared {
    who: Who,
    open: RefCell<Option<Rc<Open>>>,
}

struct Open {
    client: Http2,
    dropped: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new(who: Who) -> Rc<Self> {
        Rc::new(Self { who, open: RefCell::default() })
    }

    async fn open(&self, rig: &Rig) -> Rc<Open> {
        let known = self.open.borrow().clone();
        if let Some(open) = known {
            return open;
        }
        let client = Http2::new(tls(rig.address, "h2", self.who.pair()).await).await;
        let made = Rc::new(Open { client, dropped: watch::Sender::new(false) });
        // Another caller may have been quicker.
        let mut open = self.open.borrow_mut();
        Rc::clone(open.get_or_insert(made))
    }

    fn drop_connection(&self) {
        if let Some(open) = self.open.take() {
            open.dropped.send_replace(true);
        }
    }
}

/// How a caller speaks.
pub(crate) enum Way {
    Http2(Rc<Shared>),
    Http1(Who, Option<Box<Http1>>),
}

/// One caller.
pub(crate) struct Caller<'a> {
    pub(crate) rig: &'a Rig,
    pub(crate) ledger: &'a Ledger,
    pub(crate) way: Way,
    pub(crate) requests: Requests,
    /// True when the load is to stop.
    pub(crate) over: &'a Cell<bool>,
}

impl Caller<'_> {
    /// Calls until the load is over.
    pub(crate) async fn run(mut self) {
        let mut pace = interval(PACE);
        while !self.over.get() {
            pace.tick().await;
            let planned = self.requests.next();
            let begun = Instant::now();
            let Ok(received) = timeout(LIMIT, self.call(&planned)).await else {
                self.ledger.broken(&format!("{planned:?} has no answer after {LIMIT:?}"));
                return;
            };
            let ended = match received {
                Ok(Some(received)) => self.judge(&planned, received),
                Ok(None) => Ok(Ended::Aborted),
                // An answer that breaks off at once may take its own head with it.
                Err(_) if planned.api == Api::Shaky && self.ledger.was_begun(planned.nonce) => {
                    Ok(Ended::CutBeforeHead)
                }
                Err(closed) => Err(closed),
            };
            match ended {
                Ok(ended) => self.note(&planned, &ended, begun.elapsed()),
                Err(wrong) => self.ledger.broken(&format!("{planned:?}: {wrong}")),
            }
        }
    }

    fn note(&self, planned: &Planned, ended: &Ended, took: Duration) {
        match ended {
            Ended::Answered => self.ledger.outcome(planned, "answered"),
            Ended::Rejected(cause) => self.ledger.outcome(planned, &format!("rejected {cause}")),
            Ended::Cut => self.ledger.outcome(planned, "cut"),
            Ended::CutBeforeHead => self.ledger.outcome(planned, "cut before its head"),
            Ended::Aborted => self.ledger.outcome(planned, "aborted by its caller"),
        }
        if planned.api == Api::Steady
            && planned.kind != Kind::Watch
            && matches!(ended, Ended::Answered)
        {
            self.ledger.steady_took(u32::try_from(took.as_millis()).unwrap_or(u32::MAX));
        }
    }

    /// Sends a request and reads what comes; none when the caller gave up.
    async fn call(&mut self, planned: &Planned) -> Result<Option<Received>, String> {
        match &mut self.way {
            Way::Http2(shared) => {
                let open = shared.open(self.rig).await;
                let mut dropped = open.dropped.subscribe();
                let ask = ask_of(planned, shared.who);
                tokio::select! {
                    biased;
                    // By this caller or another one.
                    _ = dropped.wait_for(|dropped| *dropped) => Ok(None),
                    received = call_http2(shared, &open, planned, &ask) => received,
                }
            }
            Way::Http1(who, client) => {
                let mut open = if let Some(open) = client.take() {
                    open
                } else {
                    let stream = tls(self.rig.address, "http/1.1", who.pair()).await;
                    Box::new(Http1::new(stream))
                };
                let received = call_http1(&mut open, planned, &ask_of(planned, *who)).await?;
                // After anything but a whole answer of a backend portico may close it.
                if let Some(received) = &received
                    && received.status == 200
                    && received.cut.is_none()
                    && !received.headers.contains_key("connection")
                {
                    *client = Some(open);
                }
                Ok(received)
            }
        }
    }

    /// What may come: the backend's answer to this very request, whole or visibly cut, or portico's
    /// own with a cause that the faults have. The healthy API is always answered.
    fn judge(&self, planned: &Planned, received: Received) -> Result<Ended, String> {
        let Received { status, headers, body, cut } = received;
        let Some(nonce) = headers.get("x-nonce") else {
            return self.judge_rejection(planned, status, &body, cut.as_deref());
        };
        if status != 200 || nonce.as_bytes() != format!("{:x}", planned.nonce).as_bytes() {
            return Err(format!("the answer {status} is for {nonce:?}"));
        }
        let wanted = answer_of(planned.kind, planned.nonce, planned.down);
        if cut.is_some() && planned.api == Api::Shaky && wanted.starts_with(&body) {
            return Ok(Ended::Cut);
        }
        if cut.is_some() || body != wanted {
            let (came, of) = (body.len(), wanted.len());
            return Err(format!("a body of {came} bytes for {of}, cut: {cut:?}"));
        }
        if planned.kind == Kind::Post && self.ledger.executed(planned.nonce) != 1 {
            return Err("answered, and no endpoint executed it".to_owned());
        }
        Ok(Ended::Answered)
    }

    fn judge_rejection(
        &self,
        planned: &Planned,
        status: u16,
        body: &[u8],
        cut: Option<&str>,
    ) -> Result<Ended, String> {
        let text = String::from_utf8_lossy(body);
        let wrong = |what: &str| Err(format!("{what}: {status} {text}, cut: {cut:?}"));
        let Ok(told) = serde_json::from_slice::<Value>(body) else {
            return wrong("neither a backend's answer nor a Status");
        };
        let cause = told["details"]["causes"][0]["reason"].as_str().unwrap_or_default();
        if told["kind"] != "Status" || told["code"] != status || cut.is_some() {
            return wrong("not a whole Status");
        }
        if planned.api == Api::Steady {
            return wrong("the healthy API failed");
        }
        if !CAUSES.contains(&(cause, status)) {
            return wrong("no cause that the faults have");
        }
        let executed = self.ledger.executed(planned.nonce);
        if NEVER_SENT.contains(&cause) && executed > 0 {
            return wrong("said never to have been sent, and was executed");
        }
        Ok(Ended::Rejected(format!("{status} {cause}")))
    }
}

fn ask_of(planned: &Planned, who: Who) -> Ask {
    let name = match planned.api {
        Api::Shaky => "shaky",
        Api::Steady => "steady",
    };
    let (method, target) = match planned.kind {
        Kind::Get => ("GET", "things/one"),
        Kind::Post => ("POST", "things"),
        Kind::Watch => ("GET", "things?watch=true"),
    };
    // What is stuck on a frozen endpoint is to be over soon. The healthy API's requests may take as
    // long as a machine with other work makes them.
    let short = planned.api == Api::Shaky && planned.kind != Kind::Watch;
    let target = format!("{target}{}", if short { "?timeout=1s" } else { "" });
    let mut ask = Ask::new(method, path(name, &target));
    ask.headers = headers_of(planned, who.name());
    if matches!(who, Who::Bob) {
        ask = ask.bearer(BOBS_TOKEN);
    }
    ask.body = body_of(planned.nonce, planned.up);
    ask.chunked = planned.chunked && planned.kind == Kind::Post;
    ask
}

async fn call_http1(
    client: &mut Http1,
    planned: &Planned,
    ask: &Ask,
) -> Result<Option<Received>, String> {
    client.send(ask).await;
    if planned.abort == Some(Abort::Sent) {
        return Ok(None);
    }
    let (status, headers) = client.head(false).await?;
    if planned.abort.is_some() {
        return Ok(None);
    }
    let (body, cut) = read(&mut Incoming::Http1(client)).await;
    Ok(Some(Received { status, headers, body, cut }))
}

async fn call_http2(
    shared: &Shared,
    open: &Open,
    planned: &Planned,
    ask: &Ask,
) -> Result<Option<Received>, String> {
    let said = |error: h2::Error| format!("no answer: {error}");
    let (response, mut stream) =
        open.client.start(head(ask), !ask.has_body()).await.map_err(said)?;
    if planned.abort == Some(Abort::Sent) {
        stream.send_reset(h2::Reason::CANCEL);
        return Ok(None);
    }
    let mut response = pin!(response);
    let mut upload = pin!(upload(&mut stream, ask));
    let mut uploaded = !ask.has_body();
    let response = loop {
        tokio::select! {
            biased;
            response = &mut response => break response.map_err(said)?,
            // Broken off, where the answer says why.
            _ = &mut upload, if !uploaded => uploaded = true,
        }
    };
    match planned.abort {
        Some(Abort::Connection) => {
            shared.drop_connection();
            return Ok(None);
        }
        // The body is dropped, which resets the stream.
        Some(_) => return Ok(None),
        None => {}
    }
    let (head, body) = response.into_parts();
    let (body, cut) = read(&mut Incoming::Http2(body)).await;
    Ok(Some(Received { status: head.status.as_u16(), headers: head.headers, body, cut }))
}

async fn upload(stream: &mut SendStream<Bytes>, ask: &Ask) -> Result<(), h2::Error> {
    send(stream, ask.body.clone()).await?;
    stream.send_data(Bytes::new(), true)
}

/// The body as far as it comes.
async fn read(incoming: &mut Incoming<'_>) -> (Bytes, Option<String>) {
    let mut body = BytesMut::new();
    loop {
        match incoming.next().await {
            Some(Ok(data)) => body.extend_from_slice(&data),
            Some(Err(error)) => return (body.freeze(), Some(error)),
            None => return (body.freeze(), None),
        }
    }
}

/// Every caller of a run: some share connections of HTTP/2, some have one of HTTP/1.1 each.
pub(crate) fn callers<'a>(
    rig: &'a Rig,
    ledger: &'a Ledger,
    seed: u64,
    over: &'a Cell<bool>,
) -> Vec<Caller<'a>> {
    let mut ways: Vec<(Way, Protocol)> = Vec::new();
    for who in [Who::Alice, Who::Master, Who::Bob, Who::Alice] {
        let shared = Shared::new(who);
        ways.extend((0..4).map(|_| (Way::Http2(Rc::clone(&shared)), Protocol::Http2)));
    }
    let alone = [Who::Alice, Who::Bob, Who::Master, Who::Alice, Who::Bob, Who::Master];
    ways.extend(alone.map(|who| (Way::Http1(who, None), Protocol::Http1)));
    let caller = |(at, (way, protocol)): (usize, (Way, Protocol))| {
        let requests = Requests::new(seed, at as u64 + 1, protocol == Protocol::Http1);
        Caller { rig, ledger, way, requests, over }
    };
    ways.into_iter().enumerate().map(caller).collect()
}
