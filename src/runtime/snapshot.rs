//! One writer, many readers, no lock: the writer publishes whole immutable values.
//!
//! `Publisher` is not `Clone`, so each published state has exactly one owner; a `View` is handed to
//! whoever reads. A reader takes an `Arc` out and passes it down: one request sees one table.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The writing end of a published value.
#[derive(Debug)]
pub struct Publisher<T> {
    value: Arc<ArcSwap<T>>,
    changed: watch::Sender<()>,
}

/// A reading end of a published value; cheap to clone and to read.
#[derive(Debug)]
pub struct View<T> {
    value: Arc<ArcSwap<T>>,
    changed: watch::Receiver<()>,
}

impl<T> Publisher<T> {
    /// Starts with `initial`; the view can be cloned for further readers.
    pub fn new(initial: T) -> (Self, View<T>) {
        let value = Arc::new(ArcSwap::from_pointee(initial));
        let (sender, receiver) = watch::channel(());
        (Self { value: Arc::clone(&value), changed: sender }, View { value, changed: receiver })
    }

    /// Replaces the value; readers that already took the old one keep it until they drop it.
    pub fn publish(&self, value: T) {
        self.value.store(Arc::new(value));
        self.changed.send_replace(());
    }

    /// The value that readers see now.
    pub fn current(&self) -> Arc<T> {
        self.value.load_full()
    }
}

impl<T> View<T> {
    /// A view of a value that never changes, for parts whose source is fixed.
    pub fn fixed(value: T) -> Self {
        Publisher::new(value).1
    }

    /// The value as it is now, to be used for the whole of one request.
    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Waits until a value is published that this view has not waited for; `false` when the
    /// publisher is gone and nothing will change any more.
    pub async fn changed(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

/// Waits until another value is published; for ever when there is none that could be.
pub async fn replaced<T>(view: &mut Option<View<T>>) {
    if let Some(view) = view
        && view.changed().await
    {
        return;
    }
    std::future::pending::<()>().await;
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), changed: self.changed.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_took_while_the_next_sees_the_new_value() {
        let (publisher, view) = Publisher::new(1);
        let taken = view.load();
        publisher.publish(2);
        assert_eq!((*taken, *view.load(), *publisher.current()), (1, 2, 2));
    }
}
