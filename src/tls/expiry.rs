//! Certificates that come to their end, seen long before: a gauge for each, and words in the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use tokio::time::sleep;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::model::expiry::{
    Nearness, Said, days_left, end_of_authorities, end_of_chain, nearness, to_say,
};
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::Metrics;

/// Between two looks at all certificates.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Certificates in a file that belong together.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What they are for, in a word: `serving`, `sni/0`, `client-ca`; the metric's label.
    pub name: String,
    /// Where they are from.
    pub place: String,
    /// Whether they are a chain or authorities.
    pub kind: Kind,
    /// The certificates, in the order of the file.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The end of each one's validity, in Unix seconds.
    pub ends: Vec<i64>,
}

/// What it takes for certificates to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of them are needed: a leaf and its intermediates.
    Chain,
    /// Each is of use without the others.
    Authorities,
}

impl Watched {
    /// The certificates that are used as `name` and are from `place`.
    pub fn new(
        name: &str,
        place: &str,
        kind: Kind,
        certificates: &[CertificateDer<'static>],
    ) -> Self {
        let (name, place) = (name.to_owned(), place.to_owned());
        Self { name, place, kind, certificates: certificates.to_vec(), ends: ends(certificates) }
    }

    /// The end that counts, in Unix seconds; none when no certificate could be read.
    pub fn end(&self, now: i64) -> Option<i64> {
        match self.kind {
            Kind::Chain => end_of_chain(&self.ends),
            Kind::Authorities => end_of_authorities(&self.ends, now),
        }
    }
}

/// The end of validity of each certificate, in Unix seconds; what cannot be parsed is left out.
pub fn ends(certificates: &[CertificateDer<'_>]) -> Vec<i64> {
    let parsed = certificates.iter().filter_map(|one| X509Certificate::from_der(one).ok());
    parsed.map(|(_, certificate)| certificate.validity().not_after.timestamp()).collect()
}

/// Unix seconds now.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// What was said about which certificates, so that it is not said all the time.
#[derive(Debug, Default)]
pub struct Warnings {
    said: HashMap<String, Said>,
}

impl Warnings {
    /// Says that the certificates of `name` (from `place`) end at `end`, if it is time to say so.
    pub fn look(&mut self, name: &str, place: &str, end: i64, now: i64) {
        if nearness(end, now).is_none() {
            self.said.remove(name);
            return;
        }
        let Some(say) = to_say(end, now, self.said.get(name).copied()) else { return };
        self.said.insert(name.to_owned(), say);
        let days = days_left(end, now);
        match say.nearness {
            Nearness::Near => {
                tracing::warn!(
                    certificate = name,
                    place,
                    days,
                    "certificate expires within a month"
                );
            }
            Nearness::Soon => {
                tracing::warn!(
                    certificate = name,
                    place,
                    days,
                    "certificate expires within a week"
                );
            }
            Nearness::Expired => {
                tracing::error!(certificate = name, place, days, "certificate has expired");
            }
        }
    }

    /// Forgets what is not there any more.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.said.retain(|name, _| is_there(name));
    }
}

/// Looks at the program's own certificates at the start, when they change, and every
/// [`LOOK_INTERVAL`], for ever.
pub async fn run(mut watched: View<Vec<Watched>>, metrics: Arc<Metrics>) {
    let mut warnings = Warnings::default();
    let mut shown: Vec<String> = Vec::new();
    let mut may_change = true;
    loop {
        let (all, now) = (watched.load(), now());
        let names: HashSet<&str> = all.iter().map(|one| one.name.as_str()).collect();
        for gone in shown.iter().filter(|name| !names.contains(name.as_str())) {
            metrics.certificates.own.remove_label_values(&[gone]).ok();
        }
        shown = names.iter().map(|&name| name.to_owned()).collect();
        for one in all.iter() {
            let Some(end) = one.end(now) else { continue };
            metrics.certificates.own.with_label_values(&[&one.name]).set(end);
            warnings.look(&one.name, &one.place, end, now);
        }
        warnings.retain(|name| names.contains(name));
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            changed = watched.changed(), if may_change => may_change = changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::snapshot::Publisher;
    use crate::tls::certificates;
    use crate::tls::pki::Authority;
    use futures_util::FutureExt as _;

    #[test]
    fn the_end_is_read_from_every_certificate_and_rubbish_is_left_out() {
        let pem = Authority::new("one").unwrap().certificate()
            + &Authority::new("two").unwrap().certificate();
        let mut found = certificates("test", pem.as_bytes()).unwrap();
        found.push(CertificateDer::from(b"rubbish".to_vec()));
        let watched = Watched::new("client-ca", "file", Kind::Authorities, &found);
        assert_eq!(watched.ends.len(), 2);
        let left = days_left(watched.end(now()).unwrap(), now());
        assert!((360..=366).contains(&left), "{left}");
    }

    #[tokio::test]
    async fn the_gauge_follows_the_certificates_that_there_are() {
        let one = |name: &str, end| Watched {
            name: name.to_owned(),
            place: "test".to_owned(),
            kind: Kind::Chain,
            certificates: Vec::new(),
            ends: vec![end],
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let (publisher, view) = Publisher::new(vec![one("serving", 7), one("sni/0", 8)]);
        let mut looking = Box::pin(run(view, Arc::clone(&metrics)));
        assert!((&mut looking).now_or_never().is_none());
        let text = metrics.render().unwrap();
        assert!(text.contains("{certificate=\"serving\"} 7"), "{text}");
        assert!(text.contains("{certificate=\"sni/0\"} 8"), "{text}");
        publisher.publish(vec![one("serving", 9)]);
        assert!((&mut looking).now_or_never().is_none());
        let text = metrics.render().unwrap();
        assert!(text.contains("{certificate=\"serving\"} 9"), "{text}");
        assert!(!text.contains("sni/0"), "{text}");
    }
}
