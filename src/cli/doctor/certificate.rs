//! A certificate in the words that people compare.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use super::text::printable;
use crate::model::expiry::days_left;
use crate::tls::client_chain;

/// Names of a certificate that are shown; more are counted.
const NAMES_MAX: usize = 6;
/// Hexadecimal digits of a fingerprint that people compare.
const FINGERPRINT_DIGITS: usize = 16;

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Certificate {
    /// The subject, as `CN=…, O=…`.
    pub(super) subject: String,
    /// The issuer, written so too.
    pub(super) issuer: String,
    /// The subject's last common name.
    pub(super) common_name: String,
    /// DNS names and addresses it is for.
    pub(super) names: Vec<String>,
    /// Unix seconds.
    pub(super) not_before: i64,
    /// Unix seconds.
    pub(super) not_after: i64,
    /// SHA-256 of the certificate, in lower-case hexadecimal digits.
    pub(super) sha256: String,
}

impl Certificate {
    /// Reads one; none when it is no certificate.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let leaf = client_chain::leaf(der).ok()?;
        let alternative = parsed.subject_alternative_name().ok().flatten();
        let names = alternative.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            subject: name(parsed.subject()),
            issuer: name(parsed.issuer()),
            common_name: leaf.common_name,
            names: names.filter_map(general_name).collect(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: leaf.not_after,
            sha256: leaf.fingerprint,
        })
    }

    /// Reads all that are certificates.
    pub(super) fn read_all(chain: &[CertificateDer<'_>]) -> Vec<Self> {
        chain.iter().filter_map(Self::read).collect()
    }

    /// Of oneself, so nobody else vouches for it.
    pub(super) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// The end of its validity in words: `valid until 2026-01-02, 40 days`.
    pub(super) fn validity(&self, now: i64) -> String {
        let (begin, end) = (date(self.not_before), date(self.not_after));
        if now < self.not_before {
            return format!("not valid before {begin}");
        }
        match days_left(self.not_after, now) {
            days if days < 0 => format!("expired {end}"),
            1 => format!("valid until {end}, 1 day"),
            days => format!("valid until {end}, {days} days"),
        }
    }

    /// An authority: subject, fingerprint, end.
    pub(super) fn as_authority(&self, now: i64) -> String {
        let fingerprint: String = self.sha256.chars().take(FINGERPRINT_DIGITS).collect();
        format!("\"{}\", sha256 {fingerprint}…, {}", self.subject, self.validity(now))
    }

    /// A server's or client's: subject, issuer, names, end.
    pub(super) fn as_leaf(&self, now: i64) -> String {
        let names = if self.names.is_empty() {
            String::new()
        } else {
            format!(", for {}", self.names_in_short())
        };
        let issuer = if self.is_self_issued() { "itself" } else { &format!("\"{}\"", self.issuer) };
        format!("\"{}\" of {issuer}{names}, {}", self.subject, self.validity(now))
    }

    /// The names it is for, or how many more there are.
    pub(super) fn names_in_short(&self) -> String {
        let shown: Vec<&str> = self.names.iter().take(NAMES_MAX).map(String::as_str).collect();
        let more = self.names.len().saturating_sub(NAMES_MAX);
        let text = shown.join(", ");
        if more == 0 { text } else { format!("{text} and {more} more") }
    }
}

/// A name in DER, as acceptable authorities are named in handshakes.
pub(super) fn distinguished_name(der: &[u8]) -> String {
    X509Name::from_der(der).map_or_else(|_| "(unreadable)".to_owned(), |(_, parsed)| name(&parsed))
}

fn name(name: &X509Name<'_>) -> String {
    let text = name.to_string();
    if text.is_empty() { "(no name)".to_owned() } else { printable(&text) }
}

fn general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(printable(name)),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => {
                <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
            }
        },
        _ => None,
    }
}

/// The day of a time in Unix seconds, in UTC.
fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "(never)".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificates;
    use crate::tls::pki::{Authority, Purpose};

    #[test]
    fn what_people_compare_is_read_and_written_in_one_line() {
        let authority = Authority::new("the \u{1b}ca").unwrap();
        let pair = authority.sign("leaf", Purpose::Server(&["a.ns.svc", "127.0.0.1"])).unwrap();
        let chain = certificates("test", pair.certificate.as_bytes()).unwrap();
        let leaf = Certificate::read(&chain[0]).unwrap();
        assert_eq!(leaf.names, ["a.ns.svc", "127.0.0.1"]);
        let now = leaf.not_after - 86_400 * 3 - 5;
        let text = leaf.as_leaf(now);
        assert!(text.starts_with("\"CN=leaf\" of \"CN=the \u{fffd}ca\", for a.ns.svc, 127.0.0.1"));
        assert!(text.ends_with(", 3 days"), "{text}");
        assert!(leaf.validity(leaf.not_after + 1).starts_with("expired "));
        assert!(leaf.validity(leaf.not_before - 1).starts_with("not valid before "));
        let ca = certificates("test", authority.certificate().as_bytes()).unwrap();
        let ca = Certificate::read(&ca[0]).unwrap();
        assert!(ca.is_self_issued() && !leaf.is_self_issued());
    }
}
