//! Session tickets that no server-side state backs and that live for an hour at most.
//!
//! Keys and encryption are the library's (`rustls::ticketer`, RFC 5077 §4). Its rotation looks at the
//! clock only when a ticket is made or read: after hours without clients the key of the last ticket
//! is still the previous one. So each ticket carries the second in which it was made.

use std::sync::Arc;

use rustls::crypto::GetRandomFailed;
use rustls::server::ProducesTickets;
use rustls::ticketer::TicketRotator;
use rustls_pki_types::UnixTime;

use super::super::TlsError;

/// How long a ticket may be used, in seconds.
const LIFETIME_SECONDS: u32 = 60 * 60;
/// How long a key makes tickets, in seconds; for as long again it only reads them.
const KEY_SECONDS: u32 = LIFETIME_SECONDS / 2;
/// Bytes that say when a ticket was made.
const STAMP_BYTES: usize = size_of::<u64>();

/// Makes and reads tickets with keys of its own: those of another one are not read.
#[derive(Debug)]
pub(super) struct Tickets {
    keys: TicketRotator,
}

impl Tickets {
    /// With a fresh key.
    pub(super) fn new() -> Result<Arc<Self>, TlsError> {
        let keys = TicketRotator::new(KEY_SECONDS, new_key)
            .map_err(|error| TlsError::Pair { place: "session tickets".to_owned(), error })?;
        Ok(Arc::new(Self { keys }))
    }

    fn make(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        self.keys.encrypt(&[&now.to_be_bytes(), session].concat())
    }

    fn read(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let mut stamped = self.keys.decrypt(ticket)?;
        let made = u64::from_be_bytes(*stamped.first_chunk::<STAMP_BYTES>()?);
        // A ticket from the future is one from before the clock was set back.
        let age = now.checked_sub(made)?;
        (age < u64::from(LIFETIME_SECONDS)).then(|| stamped.split_off(STAMP_BYTES))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.make(session, UnixTime::now().as_secs())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.read(ticket, UnixTime::now().as_secs())
    }
}

/// One key of the library's. It would rotate after hours, which no key here lives to see.
#[derive(Debug)]
struct Key(Arc<dyn ProducesTickets>);

fn new_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let key = rustls::crypto::aws_lc_rs::Ticketer::new().ok().ok_or(GetRandomFailed)?;
    Ok(Box::new(Key(key)))
}

impl ProducesTickets for Key {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: u64 = 1_700_000_000;

    #[test]
    fn a_ticket_is_read_for_an_hour_and_not_before_it_was_made() {
        let tickets = Tickets::new().unwrap();
        let ticket = tickets.make(b"session", MADE).unwrap();
        let hour = u64::from(tickets.lifetime());
        assert_eq!(hour, 3600);
        for (now, read) in [(MADE, true), (MADE + hour - 1, true), (MADE + hour, false)] {
            assert_eq!(tickets.read(&ticket, now).is_some(), read, "{}", now - MADE);
        }
        assert_eq!(tickets.read(&ticket, MADE).unwrap(), b"session");
        assert_eq!(tickets.read(&ticket, MADE - 1), None);
    }

    #[test]
    fn a_ticket_of_another_configuration_or_an_altered_one_is_not_read() {
        let (tickets, others) = (Tickets::new().unwrap(), Tickets::new().unwrap());
        let mut ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(others.decrypt(&ticket), None);
        for at in 0..ticket.len() {
            ticket[at] ^= 1;
            assert_eq!(tickets.decrypt(&ticket), None, "byte {at}");
            ticket[at] ^= 1;
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn a_session_cannot_be_seen_in_its_ticket_and_no_ticket_comes_twice() {
        let tickets = Tickets::new().unwrap();
        let session = [7_u8; 64];
        let (one, two) = (tickets.encrypt(&session).unwrap(), tickets.encrypt(&session).unwrap());
        assert_ne!(one, two);
        assert!(!one.windows(16).any(|bytes| bytes == &session[..16]));
    }
}
