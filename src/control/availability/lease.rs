//! Holds the Lease, or waits for it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Error;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::control::watch::{Servers, explain};
use crate::model::election::{Candidate, RETRY_PERIOD, Step};
use crate::runtime::lifecycle::{Drain, Phase};

/// The Lease's name.
const NAME: &str = "portico";
/// How long one try may take; with the time between two it stays below the deadline.
const TRY_LIMIT: Duration = Duration::from_secs(3);

/// Who leads, as this replica sees it.
#[derive(Debug)]
pub(super) struct Leadership {
    candidate: Candidate,
    identity: String,
    /// The Lease at each server.
    apis: Vec<Api<Lease>>,
    leading: watch::Sender<bool>,
    failed: Option<String>,
}

impl Leadership {
    pub(super) fn new(servers: &Servers, namespace: &str, leading: watch::Sender<bool>) -> Self {
        // As client-go's programs name themselves: the host and something unique.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let identity = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
        Self {
            candidate: Candidate::new(identity.clone()),
            identity,
            apis: servers.each(|client| Api::namespaced(client, namespace)),
            leading,
            failed: None,
        }
    }

    /// Holds the Lease or waits for it, until the program ends; then gives it up.
    pub(super) async fn run(mut self, mut drain: Drain) {
        let mut look = interval(RETRY_PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => self.look().await,
                () = drain.reached(Phase::Draining) => break,
            }
            self.tell();
        }
        if *self.leading.borrow() {
            self.leading.send_replace(false);
            if !matches!(timeout(TRY_LIMIT, self.release()).await, Ok(Ok(()))) {
                tracing::warn!("leadership not given up, others wait for it to end");
            }
        }
    }

    fn tell(&self) {
        let leads = self.candidate.leads(Instant::now());
        if self.leading.send_if_modified(|before| std::mem::replace(before, leads) != leads) {
            if leads {
                tracing::info!(identity = self.identity, "leading, availability is written");
            } else {
                tracing::warn!(identity = self.identity, "not leading any more");
            }
        }
    }

    async fn look(&mut self) {
        let error = match timeout(TRY_LIMIT, self.renew()).await {
            Ok(Ok(())) => {
                self.failed = None;
                return;
            }
            Ok(Err(error)) => explain(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        if self.failed.as_ref() != Some(&error) {
            tracing::warn!(error, "lease cannot be looked at or renewed");
            self.failed = Some(error);
        }
        // Another server is asked the next time.
        self.apis.rotate_left(1);
    }

    /// One look, and what it calls for.
    async fn renew(&mut self) -> Result<(), Error> {
        let Some(api) = self.apis.first().cloned() else { return Ok(()) };
        let found = api.get_opt(NAME).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        // The time before it is written: it must not count for longer than others think.
        let now = Instant::now();
        let written = match self.candidate.step(spec.as_ref(), now, Timestamp::now()) {
            Step::Wait => {
                self.candidate.lost();
                return Ok(());
            }
            Step::Create(spec) => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                api.create(&PostParams::default(), &lease).await
            }
            Step::Update(spec) => {
                let lease = Lease { spec: Some(spec), ..found.unwrap_or_default() };
                api.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => self.candidate.renewed(now),
            // Somebody else was faster; the next look shows who.
            Err(Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn release(&mut self) -> Result<(), Error> {
        let Some(api) = self.apis.first().cloned() else { return Ok(()) };
        let Some(found) = api.get_opt(NAME).await? else { return Ok(()) };
        let spec = found.spec.clone().unwrap_or_default();
        if let Some(spec) = self.candidate.release(&spec, Timestamp::now()) {
            let lease = Lease { spec: Some(spec), ..found };
            api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}
