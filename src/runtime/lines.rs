//! A log of lines that never holds up who writes it.
//!
//! Each data-plane thread appends to a buffer of its own; one thread takes the buffers in turn and
//! writes them out. A buffer that is full because the file takes no more drops the line and counts it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

/// How long the end of the program waits for the last lines to be written.
const END_MAX: Duration = Duration::from_secs(2);
/// Bytes of lines that one thread keeps while the file takes no more; a line beyond is dropped.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;
/// Bytes from which on the writer is woken before its time.
const WAKE_BYTES: usize = 128 * 1024;
/// Room that an emptied buffer keeps, in bytes.
const KEPT_BYTES: usize = 256 * 1024;
/// How long a line waits at most while the file takes what comes.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked whether the file was moved away or removed, and whether lines were lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Where lines are appended without waiting; one a thread.
#[derive(Debug)]
pub struct Buffer {
    bytes: Mutex<Vec<u8>>,
    writer: Arc<Shared>,
}

/// The log: hands out buffers, and writes what is left when it is dropped.
#[derive(Debug)]
pub struct LineLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    dropped: IntCounter,
}

#[derive(Debug, Default)]
struct State {
    buffers: Vec<Arc<Buffer>>,
    woken: bool,
    ended: bool,
    /// The writer is done.
    written: bool,
}

impl LineLog {
    /// Appends to `file`, or to standard output; `dropped` counts lines that found no room.
    pub fn open(file: Option<PathBuf>, dropped: IntCounter) -> io::Result<Self> {
        let output = Output::open(file)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), dropped });
        let writing = Writer { shared: Arc::clone(&shared), output, reported: 0 };
        drop(std::thread::Builder::new().name("line-log".to_owned()).spawn(|| writing.run())?);
        Ok(Self { shared })
    }

    /// A buffer for one more thread.
    pub fn buffer(&self) -> Arc<Buffer> {
        let buffer = Arc::new(Buffer { bytes: Mutex::default(), writer: Arc::clone(&self.shared) });
        self.shared.lock().buffers.push(Arc::clone(&buffer));
        buffer
    }
}

impl Drop for LineLog {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        self.shared.wake.notify_all();
        let waiting = self.shared.wake.wait_timeout_while(state, END_MAX, |state| !state.written);
        let (_state, waited) = waiting.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            tracing::warn!("access log not written to its end");
        }
    }
}

impl Buffer {
    /// Appends the line that `write` makes; its end is added here. Never waits for the file.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.lock();
        if bytes.len() >= BUFFER_BYTES_MAX {
            self.writer.dropped.inc();
            return;
        }
        let before = bytes.len();
        write(&mut bytes);
        bytes.push(b'\n');
        if before < WAKE_BYTES && bytes.len() >= WAKE_BYTES {
            self.writer.lock().woken = true;
            self.writer.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's side.
struct Writer {
    shared: Arc<Shared>,
    output: Output,
    /// Dropped lines that have been told about.
    reported: u64,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        let mut looked = Instant::now();
        loop {
            let ended = self.wait();
            let buffers = self.shared.lock().buffers.clone();
            for buffer in &buffers {
                batch.clear();
                mem::swap(&mut *buffer.lock(), &mut batch);
                self.output.write(&batch);
                if batch.capacity() > KEPT_BYTES {
                    batch = Vec::new();
                }
            }
            if ended || looked.elapsed() >= LOOK_INTERVAL {
                looked = Instant::now();
                self.report();
                self.output.look();
            }
            if ended {
                self.shared.lock().written = true;
                return self.shared.wake.notify_all();
            }
        }
    }

    /// Waits for the next time to write; true when it is the last.
    fn wait(&self) -> bool {
        let state = self.shared.lock();
        let waiting = self
            .shared
            .wake
            .wait_timeout_while(state, WRITE_INTERVAL, |state| !state.woken && !state.ended);
        let (mut state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        state.woken = false;
        state.ended
    }

    fn report(&mut self) {
        let dropped = self.shared.dropped.get();
        if dropped > self.reported {
            tracing::warn!(lines = dropped - self.reported, "access log lines dropped");
            self.reported = dropped;
        }
    }
}

/// The file or standard output.
struct Output {
    path: Option<PathBuf>,
    file: Option<File>,
    failed: bool,
}

impl Output {
    fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_ref().map(append_to).transpose()?;
        Ok(Self { path, file, failed: false })
    }

    /// Writes a batch; a failure is told once, until a write succeeds again.
    fn write(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        let written = if let Some(file) = &mut self.file {
            file.write_all(batch)
        } else {
            let mut output = io::stdout().lock();
            output.write_all(batch).and_then(|()| output.flush())
        };
        match written {
            Ok(()) => self.failed = false,
            Err(error) if !mem::replace(&mut self.failed, true) => {
                tracing::error!(%error, "access log cannot be written");
            }
            Err(_) => {}
        }
    }

    /// Opens the file anew when another or none is under its name: it was rotated.
    fn look(&mut self) {
        let (Some(path), Some(file)) = (&self.path, &self.file) else { return };
        let same = match (file.metadata(), path.metadata()) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        if same {
            return;
        }
        match append_to(path) {
            Ok(file) => self.file = Some(file),
            Err(error) => tracing::warn!(%error, "access log cannot be opened anew"),
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    #[test]
    fn every_threads_lines_are_in_the_file_when_the_log_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = LineLog::open(Some(path.clone()), counter()).unwrap();
        let (one, two) = (log.buffer(), log.buffer());
        one.append(|line| line.extend_from_slice(b"a"));
        two.append(|line| line.extend_from_slice(b"b"));
        one.append(|line| line.extend_from_slice(b"c"));
        drop(log);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "a\nc\nb\n");
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let dropped = counter();
        let shared =
            Shared { state: Mutex::default(), wake: Condvar::new(), dropped: dropped.clone() };
        // Nobody takes what is in it.
        let buffer = Buffer { bytes: Mutex::default(), writer: Arc::new(shared) };
        for _ in 0..3 {
            buffer.append(|line| line.resize(BUFFER_BYTES_MAX, b'x'));
        }
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut output = Output::open(Some(path.clone())).unwrap();
        output.write(b"1\n");
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        output.look();
        output.write(b"2\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "2\n");
    }
}
