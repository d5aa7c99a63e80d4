//! What a seed decides: the requests of each caller and the faults, each in its order. Nothing here
//! looks at a clock or at what came of it.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

/// Endpoints of the API whose backends meet faults.
pub(crate) const SHAKY_ENDPOINTS: usize = 4;
/// The largest body that HTTP/1.1 sends: it is written before the answer is looked at, so it has to
/// fit on the way.
const HTTP1_UPLOAD_MAX: usize = 16 * 1024;
/// Each of these many bytes of a body begins with whose it is.
const BLOCK: usize = 1024;

/// An API that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Api {
    /// Its endpoints meet faults.
    Shaky,
    /// Its endpoints are well all the time.
    Steady,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Get,
    Post,
    Watch,
}

/// What the endpoint is to do beside answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Refuse the stream when it comes for the first time.
    Refuse,
    /// Say GOAWAY with the answer, as kube-apiserver does with some (`--goaway-chance`).
    GoAway,
}

/// Where the caller gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abort {
    /// After the head of the request, and before its body.
    Sent,
    /// After the head of the answer.
    Answered,
    /// After the head of the answer, with the whole connection.
    Connection,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Whose it is; no two requests have the same.
    pub(crate) nonce: u64,
    pub(crate) api: Api,
    pub(crate) kind: Kind,
    /// Bytes of the request's body.
    pub(crate) up: usize,
    /// Bytes of the answer's body, or events of the watch.
    pub(crate) down: usize,
    /// The body goes without a length.
    pub(crate) chunked: bool,
    pub(crate) wish: Option<Wish>,
    pub(crate) abort: Option<Abort>,
}

/// The requests of one caller, without end.
pub(crate) struct Requests {
    rng: Rng,
    caller: u64,
    count: u64,
    http1: bool,
}

impl Requests {
    pub(crate) fn new(seed: u64, caller: u64, http1: bool) -> Self {
        let rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ caller);
        Self { rng, caller, count: 0, http1 }
    }

    pub(crate) fn next(&mut self) -> Planned {
        let rng = &mut self.rng;
        self.count += 1;
        let nonce = (self.caller << 40) | self.count;
        let api = if rng.u8(..100) < 35 { Api::Steady } else { Api::Shaky };
        let kind = match rng.u8(..100) {
            0..55 => Kind::Get,
            55..92 => Kind::Post,
            _ => Kind::Watch,
        };
        let up = match kind {
            Kind::Post => size(rng).min(if self.http1 { HTTP1_UPLOAD_MAX } else { usize::MAX }),
            Kind::Get | Kind::Watch => 0,
        };
        let down = if kind == Kind::Watch { rng.usize(1..80) } else { size(rng) };
        let wish = match rng.u8(..100) {
            0..4 => Some(Wish::Refuse),
            4..7 => Some(Wish::GoAway),
            _ => None,
        };
        let abort = match rng.u16(..1000) {
            0..20 => Some(Abort::Sent),
            20..40 => Some(Abort::Answered),
            40..45 => Some(Abort::Connection),
            _ => None,
        };
        // The healthy API's backends do nothing that would need a second try.
        let wish = wish.filter(|_| api == Api::Shaky);
        Planned { nonce, api, kind, up, down, chunked: rng.bool(), wish, abort }
    }
}

/// Mostly small, at times more than a window holds.
fn size(rng: &mut Rng) -> usize {
    match rng.u8(..100) {
        0..10 => 0,
        10..70 => rng.usize(1..2_000),
        70..95 => rng.usize(2_000..60_000),
        _ => rng.usize(60_000..600_000),
    }
}

/// A body that belongs to one request: each block of it says to which, and where in it it stands.
pub(crate) fn body_of(nonce: u64, length: usize) -> Bytes {
    let mut body = vec![b'.'; length];
    for (at, block) in body.chunks_mut(BLOCK).enumerate() {
        let mark = format!("{nonce:016x}-{at:08x}");
        let marked = mark.len().min(block.len());
        block[..marked].copy_from_slice(&mark.as_bytes()[..marked]);
    }
    body.into()
}

/// An event of a watch.
pub(crate) fn event_of(nonce: u64, index: usize) -> Bytes {
    format!("{{\"type\":\"ADDED\",\"nonce\":\"{nonce:016x}\",\"index\":{index}}}\n").into()
}

/// The whole body of a request's answer.
pub(crate) fn answer_of(kind: Kind, nonce: u64, down: usize) -> Bytes {
    match kind {
        Kind::Watch => {
            let events = (0..down).flat_map(|index| event_of(nonce, index).to_vec());
            events.collect::<Vec<u8>>().into()
        }
        Kind::Get | Kind::Post => body_of(!nonce, down),
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The endpoint reads and writes nothing for so long, and its sockets stay open.
    Freeze(usize, Duration),
    /// Everything of the endpoint is closed; it is back after so long.
    Kill(usize, Duration),
    /// Each connection of the endpoint ends when what is open on it is over.
    GoAway(usize),
    /// Each connection of the endpoint ends at once, with GOAWAY.
    GoAwayNow(usize),
    /// Portico's serving pair is replaced.
    ServingPair,
    /// The pair by which backends know portico is replaced.
    ProxyClientPair,
    /// The APIService has another caBundle.
    CaBundle,
    /// The APIService has another priority.
    ApiService,
    /// The Service has these endpoints, one bit each.
    Endpoints(u8),
}

impl Fault {
    /// As what it is counted.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Freeze(..) => "freeze",
            Self::Kill(..) => "kill",
            Self::GoAway(_) => "GOAWAY",
            Self::GoAwayNow(_) => "GOAWAY at once",
            Self::ServingPair => "serving pair",
            Self::ProxyClientPair => "proxy-client pair",
            Self::CaBundle => "caBundle",
            Self::ApiService => "APIService",
            Self::Endpoints(_) => "endpoints",
        }
    }
}

/// The faults, without end, each with the time since the one before.
pub(crate) struct Faults(Rng);

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rng::with_seed(!seed))
    }

    pub(crate) fn next(&mut self) -> (Duration, Fault) {
        let rng = &mut self.0;
        let pause = Duration::from_millis(rng.u64(20..250));
        let endpoint = rng.usize(..SHAKY_ENDPOINTS);
        let lasting = |rng: &mut Rng| Duration::from_millis(rng.u64(20..1500));
        let fault = match rng.u8(..100) {
            0..20 => Fault::Freeze(endpoint, lasting(rng)),
            20..40 => Fault::Kill(endpoint, lasting(rng)),
            40..55 => Fault::GoAway(endpoint),
            55..65 => Fault::GoAwayNow(endpoint),
            65..70 => Fault::ServingPair,
            70..75 => Fault::ProxyClientPair,
            75..80 => Fault::CaBundle,
            80..85 => Fault::ApiService,
            // Now and then without any.
            _ => Fault::Endpoints(rng.u8(..1 << SHAKY_ENDPOINTS)),
        };
        (pause, fault)
    }
}

#[test]
fn a_seed_decides_all_requests_and_faults() {
    let of = |seed| {
        let (mut requests, mut faults) = (Requests::new(seed, 3, false), Faults::new(seed));
        let requests: Vec<String> = (0..200).map(|_| format!("{:?}", requests.next())).collect();
        let faults: Vec<_> = (0..200).map(|_| faults.next()).collect();
        (requests, faults)
    };
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn bodies_of_two_requests_differ_in_each_block() {
    let (one, other) = (body_of(1, 5 * BLOCK), body_of(2, 5 * BLOCK));
    assert!(one.chunks(BLOCK).all(|block| other.chunks(BLOCK).all(|theirs| theirs != block)));
}
