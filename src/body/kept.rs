//! A body that can be sent once more: what has passed is kept until the request is answered, as far
//! as there is room for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{Body, BodyError};

/// Room for bytes that many bodies keep.
#[derive(Debug)]
pub struct KeptRoom {
    left: AtomicUsize,
}

impl KeptRoom {
    /// Room for that many bytes.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    /// Bytes that there is room for.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The owner of a body that is sent; when it is dropped nothing is kept any more.
#[derive(Debug)]
pub struct Kept(Arc<Mutex<Passing>>);

#[derive(Debug)]
struct Passing {
    source: Body,
    passed: Vec<Bytes>,
    /// Bytes in `passed`, taken from the room.
    bytes: usize,
    trailers: Option<HeaderMap>,
    bytes_max: usize,
    room: Arc<KeptRoom>,
    /// False once something passed that was not kept.
    is_whole: bool,
    /// Which reader is served; earlier ones are not.
    reader: u32,
}

impl Kept {
    /// Keeps up to `bytes_max` bytes of `body`, as far as `room` has them.
    pub fn new(body: Body, bytes_max: usize, room: &Arc<KeptRoom>) -> Self {
        Self(Arc::new(Mutex::new(Passing {
            source: body,
            passed: Vec::new(),
            bytes: 0,
            trailers: None,
            bytes_max,
            room: Arc::clone(room),
            is_whole: true,
            reader: 0,
        })))
    }

    /// The body from its beginning; none when that is no longer known. Whoever read it before gets
    /// no more of it.
    pub fn from_start(&self) -> Option<Body> {
        let mut passing = lock(&self.0);
        if !passing.is_whole {
            return None;
        }
        passing.reader += 1;
        let reader =
            Reader { of: Arc::clone(&self.0), number: passing.reader, next: 0, is_over: false };
        drop(passing);
        Some(Body::kept(reader))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        lock(&self.0).forget();
    }
}

impl Passing {
    fn keep(&mut self, data: &Bytes) {
        let fits = self.bytes + data.len() <= self.bytes_max;
        if !self.is_whole || !fits || !self.room.take(data.len()) {
            self.forget();
            return;
        }
        self.bytes += data.len();
        self.passed.push(data.clone());
    }

    fn forget(&mut self) {
        self.is_whole = false;
        self.room.give_back(std::mem::take(&mut self.bytes));
        self.trailers = None;
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.forget();
    }
}

fn lock(passing: &Mutex<Passing>) -> MutexGuard<'_, Passing> {
    passing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reading of a kept body.
#[derive(Debug)]
pub(super) struct Reader {
    of: Arc<Mutex<Passing>>,
    number: u32,
    /// The next of what has passed already.
    next: usize,
    /// True once it has the trailers.
    is_over: bool,
}

impl Reader {
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut passing = lock(&self.of);
        if passing.reader != self.number {
            return Poll::Ready(Some(Err(BodyError::Aborted("sent anew".to_owned()))));
        }
        if let Some(data) = passing.passed.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if let (Some(trailers), false) = (&passing.trailers, self.is_over) {
            self.is_over = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        let polled = passing.source.poll_next(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(data) = frame.data_ref() {
                passing.keep(data);
                if passing.is_whole {
                    self.next += 1;
                } else {
                    // Its one reader has all of it.
                    passing.passed = Vec::new();
                    self.next = 0;
                }
            } else {
                self.is_over = true;
                if passing.is_whole {
                    passing.trailers = frame.trailers_ref().cloned();
                }
            }
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let passing = lock(&self.of);
        self.next >= passing.passed.len()
            && (self.is_over || passing.trailers.is_none())
            && passing.source.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> http_body::SizeHint {
        let passing = lock(&self.of);
        let again: usize = passing.passed.iter().skip(self.next).map(Bytes::len).sum();
        let rest = http_body::Body::size_hint(&passing.source);
        let mut hint = http_body::SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again as u64);
        }
        hint.set_lower(rest.lower() + again as u64);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn parts(parts: &[&'static str]) -> Body {
        Body::parts(parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect())
    }

    fn next(body: &mut Body) -> Option<Result<String, String>> {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(next) = body.poll_next(&mut cx) else { panic!("ready bodies are ready") };
        let text =
            |frame: Frame<Bytes>| String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
        next.map(|frame| frame.map(text).map_err(|error| error.to_string()))
    }

    fn rest(body: &mut Body) -> String {
        std::iter::from_fn(|| next(body)).map(Result::unwrap).collect()
    }

    #[test]
    fn a_body_is_sent_anew_from_its_start_wherever_it_was_broken_off() {
        let room = KeptRoom::new(100);
        let kept = Kept::new(parts(&["one ", "two ", "three"]), 100, &room);
        let mut first = kept.from_start().unwrap();
        assert_eq!(next(&mut first), Some(Ok("one ".to_owned())));
        let mut second = kept.from_start().unwrap();
        assert!(next(&mut first).unwrap().is_err());
        assert_eq!((rest(&mut second).as_str(), second.is_end_stream()), ("one two three", true));
        let mut third = kept.from_start().unwrap();
        assert_eq!((third.is_end_stream(), room.left()), (false, 87));
        assert_eq!(http_body::Body::size_hint(&third).exact(), Some(13));
        assert_eq!(rest(&mut third), "one two three");
        drop(kept);
        assert_eq!(room.left(), 100);
    }

    #[test]
    fn what_is_too_long_or_has_no_room_passes_once() {
        for (bytes_max, room) in [(7, 100), (100, 7)] {
            let room = KeptRoom::new(room);
            let before = room.left();
            let kept = Kept::new(parts(&["one ", "two ", "three"]), bytes_max, &room);
            let mut body = kept.from_start().unwrap();
            assert_eq!(rest(&mut body), "one two three");
            assert!(kept.from_start().is_none());
            assert_eq!(room.left(), before);
        }
    }

    #[test]
    fn a_request_that_is_answered_while_its_body_is_sent_anew_gets_all_of_it() {
        let room = KeptRoom::new(100);
        let kept = Kept::new(parts(&["one ", "two ", "three"]), 100, &room);
        let mut first = kept.from_start().unwrap();
        assert_eq!(next(&mut first), Some(Ok("one ".to_owned())));
        assert_eq!(next(&mut first), Some(Ok("two ".to_owned())));
        let mut second = kept.from_start().unwrap();
        drop(kept);
        assert_eq!((rest(&mut second).as_str(), room.left()), ("one two three", 100));
    }
}
