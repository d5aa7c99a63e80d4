//! How many tasks are alive on each thread that runs them: where that grows without end, something
//! leaks.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntGaugeVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::gauge;

/// Collects them.
#[derive(Clone, Debug)]
pub struct TaskMetrics {
    alive: IntGaugeVec,
    runtimes: Arc<Mutex<Vec<(String, RuntimeMetrics)>>>,
}

impl TaskMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let help = "Tasks that are alive, by the thread that runs them.";
        Ok(Self { alive: gauge("portico_tasks", help, &["thread"])?, runtimes: Arc::default() })
    }

    /// From now on the tasks of this runtime are counted, which is free until somebody asks.
    pub fn count(&self, thread: &str, runtime: &Handle) {
        let mut runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.push((thread.to_owned(), runtime.metrics()));
    }
}

impl Collector for TaskMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.alive.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (thread, metrics) in &*self.runtimes.lock().unwrap_or_else(PoisonError::into_inner) {
            let alive = i64::try_from(metrics.num_alive_tasks()).unwrap_or(i64::MAX);
            self.alive.with_label_values(&[thread]).set(alive);
        }
        self.alive.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tasks::spawn_owned;

    #[tokio::test]
    async fn tasks_are_counted_while_they_are_alive() {
        let metrics = TaskMetrics::new().unwrap();
        metrics.count("one", &Handle::current());
        let alive = || {
            let collected = metrics.collect();
            collected[0].get_metric()[0].get_gauge().get_value()
        };
        assert!(alive() < 0.5, "{}", alive());
        let task = spawn_owned("waits", std::future::pending());
        assert!((alive() - 1.0).abs() < 0.5, "{}", alive());
        drop(task);
        tokio::task::yield_now().await;
        assert!(alive() < 0.5, "{}", alive());
    }
}
