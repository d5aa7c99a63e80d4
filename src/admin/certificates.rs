//! What the certificates in use say about themselves; never their keys.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::tls::client_chain::leaf;
use crate::tls::expiry::Watched;

/// The facts, in the order of the file.
pub(super) fn describe_all(in_use: &Watched) -> Value {
    let certificates: Vec<Value> = in_use.certificates.iter().map(describe).collect();
    json!({ "purpose": in_use.name, "file": in_use.place, "certificates": certificates })
}

fn describe(certificate: &CertificateDer<'_>) -> Value {
    let parsed = X509Certificate::from_der(certificate).map(|(_, parsed)| parsed);
    let (parsed, leaf) = match (parsed, leaf(certificate)) {
        (Ok(parsed), Ok(leaf)) => (parsed, leaf),
        (Err(error), _) => return json!({ "error": format!("bad certificate: {error}") }),
        (_, Err(error)) => return json!({ "error": error }),
    };
    let names = parsed.subject_alternative_name().ok().flatten();
    let names: Vec<String> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .map(alternative_name)
        .collect();
    json!({
        "subject": parsed.subject().to_string(),
        "issuer": parsed.issuer().to_string(),
        "subjectAltNames": names,
        "isCA": parsed.is_ca(),
        "notBefore": time(parsed.validity().not_before),
        "notAfter": time(parsed.validity().not_after),
        "serial": leaf.serial,
        "sha256": leaf.fingerprint,
    })
}

fn alternative_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::RFC822Name(address) => format!("email:{address}"),
        GeneralName::IPAddress(bytes) => match address(bytes) {
            Some(address) => format!("IP:{address}"),
            None => name.to_string(),
        },
        other => other.to_string(),
    }
}

fn address(bytes: &[u8]) -> Option<std::net::IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(Into::into);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(Into::into))
}

/// RFC 3339, or the certificate's own text for a time that cannot be written so.
fn time(time: ASN1Time) -> String {
    Timestamp::from_second(time.timestamp()).map_or_else(|_| time.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pki::{Authority, Purpose};

    #[test]
    fn certificates_are_described_by_what_they_say() {
        let authority = Authority::new("some-ca").unwrap();
        let pair = authority.sign("a", Purpose::Server(&["a.example.com", "10.0.0.1", "::1"]));
        let pair = pair.unwrap().key_pair().unwrap();
        let got = describe(&pair.chain[0]);
        assert_eq!((&got["subject"], &got["issuer"]), (&"CN=a".into(), &"CN=some-ca".into()));
        let names = json!(["DNS:a.example.com", "IP:10.0.0.1", "IP:::1"]);
        assert_eq!((&got["subjectAltNames"], &got["isCA"]), (&names, &false.into()));
        let at = |field: &str| got[field].as_str().unwrap().parse::<Timestamp>().unwrap();
        let now = Timestamp::now();
        assert!(at("notBefore") < now && now < at("notAfter"));
        assert_eq!(got["sha256"].as_str().unwrap().len(), 64);
        assert!(got["serial"].as_str().is_some_and(|serial| !serial.is_empty()));
    }

    #[test]
    fn what_is_no_certificate_says_so() {
        let got = describe(&CertificateDer::from(vec![1, 2, 3]));
        assert!(got["error"].as_str().unwrap().starts_with("bad certificate"));
    }
}
