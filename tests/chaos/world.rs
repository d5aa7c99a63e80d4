//! The program, its backends, and what is done to them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use portico::tls::pki::PemPair;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, Protocol};
use crate::endpoint::{Endpoint, Farewell};
use crate::ledger::Ledger;
use crate::pki::{Leaf, PKI};
use crate::plan::{Fault, Faults, SHAKY_ENDPOINTS};
use crate::rig::{Rig, Setup, api_service_with, path, service, slices};

/// How long a connection may be of no use before it is closed.
const IDLE_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a connection with watches may be silent until it is pinged.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at how often requests were tried again.
const LOOK: Duration = Duration::from_millis(250);

/// What the program holds, by the name of the metric; it has to come back to what it was.
const HELD: &[&str] = &[
    "apiserver_current_inflight_requests",
    "apiserver_longrunning_requests",
    "portico_apiservice_requests_in_flight",
    "portico_connections",
    "portico_endpoint_connections",
    "portico_endpoint_requests_in_flight",
    "portico_tasks",
];

/// What is held at one moment.
pub(crate) type Held = BTreeMap<&'static str, f64>;

/// Everything that faults are made with.
pub(crate) struct World {
    pub(crate) rig: Rc<Rig>,
    pub(crate) ledger: Arc<Ledger>,
    shaky: Vec<Endpoint>,
    /// Kept, so that they are there.
    _steady: [Endpoint; 2],
    /// Which endpoints the table has.
    in_table: u8,
    /// Whether the caBundle holds a second authority.
    second_authority: bool,
    priority: u32,
    /// What is taken back, and when.
    ends: Vec<(Instant, usize)>,
    retries: BTreeMap<String, f64>,
}

impl World {
    pub(crate) async fn start(ledger: &Arc<Ledger>) -> Self {
        let protocols: [&[&str]; SHAKY_ENDPOINTS] =
            [&["h2"], &["h2", "http/1.1"], &["h2"], &["http/1.1"]];
        let shaky: Vec<_> =
            protocols.map(|protocols| Endpoint::start("shaky", protocols, ledger)).into();
        let steady = [&["h2"], &["http/1.1"]]
            .map(|protocols: &[&str; 1]| Endpoint::start("steady", protocols, ledger));
        let addresses: Vec<_> = shaky.iter().map(|endpoint| endpoint.address).collect();
        let rig = Setup::new()
            .flag("--data-plane-threads=2")
            .service("shaky", &addresses)
            .service("steady", &steady.each_ref().map(|endpoint| endpoint.address))
            .edit(|_, tuning| {
                tuning.upstream.idle_timeout = IDLE_TIMEOUT;
                tuning.upstream.ping_interval = PING_INTERVAL;
            })
            .start()
            .await;
        Self {
            rig: Rc::new(rig),
            ledger: Arc::clone(ledger),
            shaky,
            _steady: steady,
            in_table: u8::MAX,
            second_authority: false,
            priority: 10,
            ends: Vec::new(),
            retries: BTreeMap::new(),
        }
    }

    /// Makes faults until the load is over, and takes them back.
    pub(crate) async fn run(&mut self, seed: u64, over: &Cell<bool>) {
        let mut faults = Faults::new(seed);
        let (pause, mut next) = faults.next();
        let mut next_at = Instant::now() + pause;
        let mut look_at = Instant::now();
        while !over.get() {
            let end_at = self.ends.iter().map(|(at, _)| *at).min();
            let wake = end_at.into_iter().chain([next_at, look_at]).min();
            sleep_until(wake.unwrap_or(next_at)).await;
            let now = Instant::now();
            for (_, endpoint) in self.ends.extract_if(.., |(at, _)| *at <= now) {
                self.ledger.event(&format!("endpoint {endpoint} is back"));
                self.shaky[endpoint].freeze(false);
                self.shaky[endpoint].restart();
            }
            if look_at <= now {
                self.look_at_retries().await;
                look_at = Instant::now() + LOOK;
            }
            if next_at <= now {
                self.make(next).await;
                let (pause, fault) = faults.next();
                (next_at, next) = (Instant::now() + pause, fault);
            }
        }
        // Before the last requests are over: a watch on a frozen endpoint has no deadline.
        self.mend();
    }

    async fn make(&mut self, fault: Fault) {
        self.ledger.event(&format!("{fault:?}"));
        self.ledger.counts(&format!("fault: {}", fault.word()));
        match fault {
            Fault::Freeze(endpoint, time) => {
                self.shaky[endpoint].freeze(true);
                self.ends.push((Instant::now() + time, endpoint));
            }
            Fault::Kill(endpoint, time) => {
                self.shaky[endpoint].kill().await;
                self.ends.push((Instant::now() + time, endpoint));
            }
            Fault::GoAway(endpoint) => self.shaky[endpoint].say_farewell(Farewell::Graceful),
            Fault::GoAwayNow(endpoint) => self.shaky[endpoint].say_farewell(Farewell::AtOnce),
            Fault::ServingPair => {
                self.replace("server", &PKI.authority.sign(&Leaf::server(&["localhost"])));
            }
            Fault::ProxyClientPair => {
                self.replace("aggregator", &PKI.aggregators.sign(&Leaf::client("aggregator", &[])));
            }
            Fault::CaBundle => {
                self.second_authority = !self.second_authority;
                self.write_table();
            }
            Fault::ApiService => {
                self.priority = 30 - self.priority;
                self.write_table();
            }
            Fault::Endpoints(in_table) => {
                self.in_table = in_table;
                self.write_table();
            }
        }
    }

    fn replace(&self, name: &str, pair: &PemPair) {
        for (ending, text) in [("crt", &pair.certificate), ("key", &pair.key)] {
            let path = self.rig.path(&format!("{name}.{ending}"));
            let partial = path.with_extension("partial");
            std::fs::write(&partial, text).unwrap();
            std::fs::rename(partial, path).unwrap();
        }
    }

    fn write_table(&self) {
        let mut bundle = PKI.authority.certificate();
        if self.second_authority {
            bundle.push_str(&PKI.stranger.certificate());
        }
        let api_service = api_service_with("shaky", &BASE64_STANDARD.encode(bundle))
            .replace("versionPriority: 10", &format!("versionPriority: {}", self.priority));
        let endpoints = self.shaky.iter().enumerate();
        let listed = endpoints.filter(|(at, _)| self.in_table & (1 << at) != 0);
        let addresses: Vec<_> = listed.map(|(_, endpoint)| endpoint.address).collect();
        let text = api_service + &service("shaky") + &slices("shaky", &addresses);
        self.rig.write("shaky.yaml", &text);
    }

    fn mend(&mut self) {
        self.ledger.event("every fault is taken back");
        self.ends.clear();
        for endpoint in &mut self.shaky {
            endpoint.freeze(false);
            endpoint.restart();
        }
        (self.in_table, self.second_authority, self.priority) = (u8::MAX, false, 10);
        self.write_table();
    }

    /// True when a request of each API is answered by a backend.
    pub(crate) async fn serves(&self, client: &mut Client) -> bool {
        for name in ["shaky", "steady"] {
            if client.get(&path(name, "things")).await.status != 200 {
                return false;
            }
        }
        true
    }

    async fn metrics(&self) -> String {
        let mut client = self.rig.connect(Protocol::Http1, Some(&PKI.master)).await;
        client.get("/metrics").await.text()
    }

    /// Series go with their endpoints, so what they said is added up as long as it is there.
    async fn look_at_retries(&mut self) {
        let text = self.metrics().await;
        let name = "portico_retries_total";
        let now: BTreeMap<String, f64> = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
            .collect();
        for (series, value) in &now {
            let before = self.retries.get(series).filter(|before| *before <= value);
            let more = value - before.copied().unwrap_or_default();
            let cause = series.split("cause=\"").nth(1).and_then(|rest| rest.split('"').next());
            for _ in 0..more.round() as u64 {
                self.ledger.counts(&format!("retry: {}", cause.unwrap_or_default()));
            }
        }
        self.retries = now;
    }

    /// What is held now.
    pub(crate) async fn held(&self) -> Held {
        let text = self.metrics().await;
        let sum = |name: &str| -> f64 {
            let of_name = |line: &&str| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next());
            values.filter_map(|value| value.parse::<f64>().ok()).sum()
        };
        let mut held: Held = HELD.iter().map(|name| (*name, sum(name))).collect();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        held.insert("file descriptors", descriptors as f64);
        held
    }
}
