//! Public keys by which tokens are verified: of a JSON Web Key Set (RFC 7517) or of PEM files.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm as LibraryAlgorithm, DecodingKey, DecodingKeyKind, crypto};
use rustls_pki_types::PrivateKeyDer;
use serde::Deserialize;
use serde_json::Value;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;
use x509_parser::{oid_registry, parse_x509_certificate};

use super::compact::{Algorithm, Unverified};

/// Keys that are tried on one token: a set with one name for all of them must not cost more.
const TRIED_MAX: usize = 16;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// No key set.
    #[error("malformed key set: {0}")]
    Malformed(#[from] serde_json::Error),
    /// None of its keys can verify a signature.
    #[error("the key set holds no key for verifying signatures")]
    Empty,
    /// PEM text that holds no usable key.
    #[error("{place}: {problem}")]
    Pem {
        /// The file.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

/// Keys by which tokens are verified.
#[derive(Clone, Debug, Default)]
pub(in crate::auth) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Clone, Debug)]
struct Key {
    /// What a token's `kid` names; empty when the set gives none.
    id: String,
    /// The one algorithm that the set reserves it for.
    only: Option<String>,
    material: Material,
}

/// A key with its type, which must go with a token's algorithm.
#[derive(Clone, Debug)]
enum Material {
    Rsa(DecodingKey),
    P256(DecodingKey),
    P384(DecodingKey),
    /// A point; the library for tokens does not know ES512.
    P521(Vec<u8>),
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a key set; keys of other kinds or for other uses are passed over.
    pub(in crate::auth) fn from_jwks(json: &[u8]) -> Result<Self, KeysError> {
        let set: Jwks = serde_json::from_slice(json)?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::from_json).collect();
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self { keys }) }
    }

    /// Reads every key of PEM text: public keys, private keys (their public half) and certificates.
    /// A key's name is upstream's: the hash of its `SubjectPublicKeyInfo`.
    pub(in crate::auth) fn from_pem(place: &str, pem: &[u8]) -> Result<Self, KeysError> {
        let problem = |problem: String| KeysError::Pem { place: place.to_owned(), problem };
        let mut keys = Vec::new();
        for section in Pem::iter_from_buffer(pem) {
            let section = section.map_err(|error| problem(format!("malformed PEM: {error}")))?;
            if section.label == "EC PARAMETERS" {
                continue;
            }
            let info = public_key_info(&section).map_err(problem)?;
            keys.push(Key::from_info(&info).map_err(problem)?);
        }
        if keys.is_empty() {
            return Err(problem("data does not contain any valid RSA or ECDSA keys".to_owned()));
        }
        Ok(Self { keys })
    }

    /// Adds the keys of `other`.
    pub(in crate::auth) fn append(&mut self, mut other: Self) {
        self.keys.append(&mut other.keys);
    }

    /// True when a token with this `kid` could have been signed by one of these.
    pub(in crate::auth) fn knows(&self, kid: &str) -> bool {
        self.candidates(kid).next().is_some()
    }

    /// True when one of the keys has signed the token, by this algorithm.
    pub(in crate::auth) fn have_signed(
        &self,
        token: &Unverified<'_>,
        algorithm: Algorithm,
    ) -> bool {
        self.candidates(&token.kid)
            .filter(|key| key.only.as_deref().is_none_or(|only| only == algorithm.name()))
            .take(TRIED_MAX)
            .any(|key| key.material.has_signed(token, algorithm))
    }

    /// All keys when the token names none.
    fn candidates<'a>(&'a self, kid: &'a str) -> impl Iterator<Item = &'a Key> {
        self.keys.iter().filter(move |key| kid.is_empty() || key.id == kid)
    }
}

impl Key {
    fn from_json(json: Value) -> Option<Self> {
        let only = json.get("alg").and_then(Value::as_str).map(str::to_owned);
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let material = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => match DecodingKey::from_jwk(&jwk).ok()?.kind() {
                DecodingKeyKind::RsaModulusExponent { n, e } => rsa(n, e),
                DecodingKeyKind::SecretOrDer(_) => return None,
            },
            AlgorithmParameters::EllipticCurve(point) => match point.curve {
                EllipticCurve::P256 => Material::P256(DecodingKey::from_jwk(&jwk).ok()?),
                EllipticCurve::P384 => Material::P384(DecodingKey::from_jwk(&jwk).ok()?),
                EllipticCurve::P521 => {
                    let key = DecodingKey::from_jwk(&jwk).ok()?;
                    Material::P521(key.try_get_as_bytes().ok()?.to_vec())
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { id: jwk.common.key_id.unwrap_or_default(), only, material })
    }

    /// From a `SubjectPublicKeyInfo`.
    fn from_info(der: &[u8]) -> Result<Self, String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("unreadable public key: {error}");
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|error| unreadable(&error))?;
        let material = match info.parsed().map_err(|error| unreadable(&error))? {
            PublicKey::RSA(key) => rsa(key.modulus, key.exponent),
            PublicKey::EC(point) => {
                let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
                let key = DecodingKey::from_ec_der(point.data());
                match curve {
                    Some(oid) if oid == oid_registry::OID_EC_P256 => Material::P256(key),
                    Some(oid) if oid == oid_registry::OID_NIST_EC_P384 => Material::P384(key),
                    Some(oid) if oid == oid_registry::OID_NIST_EC_P521 => {
                        Material::P521(point.data().to_vec())
                    }
                    _ => return Err("unsupported elliptic curve".to_owned()),
                }
            }
            _ => return Err("neither an RSA nor an ECDSA key".to_owned()),
        };
        let id = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, der));
        Ok(Self { id, only: None, material })
    }
}

impl Material {
    fn has_signed(&self, token: &Unverified<'_>, algorithm: Algorithm) -> bool {
        let (key, algorithm) = match (self, algorithm) {
            (Self::Rsa(key), Algorithm::Rs256) => (key, LibraryAlgorithm::RS256),
            (Self::Rsa(key), Algorithm::Rs384) => (key, LibraryAlgorithm::RS384),
            (Self::Rsa(key), Algorithm::Rs512) => (key, LibraryAlgorithm::RS512),
            (Self::Rsa(key), Algorithm::Ps256) => (key, LibraryAlgorithm::PS256),
            (Self::Rsa(key), Algorithm::Ps384) => (key, LibraryAlgorithm::PS384),
            (Self::Rsa(key), Algorithm::Ps512) => (key, LibraryAlgorithm::PS512),
            (Self::P256(key), Algorithm::Es256) => (key, LibraryAlgorithm::ES256),
            (Self::P384(key), Algorithm::Es384) => (key, LibraryAlgorithm::ES384),
            (Self::P521(point), Algorithm::Es512) => return has_signed_p521(point, token),
            _ => return false,
        };
        crypto::verify(token.signature, token.signed.as_bytes(), key, algorithm).unwrap_or(false)
    }
}

/// The library takes no zeros in front, which DER puts there.
fn rsa(modulus: &[u8], exponent: &[u8]) -> Material {
    let plain = |number: &[u8]| -> Vec<u8> {
        number.iter().copied().skip_while(|&byte| byte == 0).collect()
    };
    Material::Rsa(DecodingKey::from_rsa_raw_components(&plain(modulus), &plain(exponent)))
}

fn has_signed_p521(point: &[u8], token: &Unverified<'_>) -> bool {
    let Ok(signature) = BASE64_URL_SAFE_NO_PAD.decode(token.signature) else { return false };
    UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point)
        .verify(token.signed.as_bytes(), &signature)
        .is_ok()
}

/// The `SubjectPublicKeyInfo` of a PEM section.
fn public_key_info(section: &Pem) -> Result<Vec<u8>, String> {
    let private = |key: PrivateKeyDer<'_>| {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|error| format!("unusable private key: {error}"))?;
        let info = key.public_key().ok_or("a private key without a public half")?;
        Ok(info.as_ref().to_vec())
    };
    let contents = section.contents.as_slice();
    match section.label.as_str() {
        "PUBLIC KEY" => Ok(contents.to_vec()),
        "RSA PUBLIC KEY" => Ok(rsa_info(contents)),
        "CERTIFICATE" => {
            let (_, certificate) = parse_x509_certificate(contents)
                .map_err(|error| format!("unreadable certificate: {error}"))?;
            Ok(certificate.tbs_certificate.subject_pki.raw.to_vec())
        }
        "PRIVATE KEY" => private(PrivateKeyDer::Pkcs8(contents.into())),
        "RSA PRIVATE KEY" => private(PrivateKeyDer::Pkcs1(contents.into())),
        "EC PRIVATE KEY" => private(PrivateKeyDer::Sec1(contents.into())),
        other => Err(format!("a section {other:?}, expected keys or certificates")),
    }
}

/// A PKCS #1 key with the frame around it that says that it is an RSA key (RFC 3279 §2.3.1).
fn rsa_info(key: &[u8]) -> Vec<u8> {
    const ALGORITHM: [u8; 15] =
        [0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];
    let mut bits = vec![0];
    bits.extend_from_slice(key);
    der(0x30, &[&ALGORITHM[..], &der(0x03, &bits)].concat())
}

fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len().to_be_bytes();
    let length: Vec<u8> = length.into_iter().skip_while(|&byte| byte == 0).collect();
    let mut encoded = vec![tag];
    match length.as_slice() {
        [] => encoded.push(0),
        [short @ 0..=127] => encoded.push(*short),
        long => {
            encoded.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            encoded.extend_from_slice(long);
        }
    }
    encoded.extend_from_slice(contents);
    encoded
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;
    use serde_json::json;

    use super::super::signing::{Signer, jwks};
    use super::*;

    fn set(signers: &[&Signer]) -> KeySet {
        KeySet::from_jwks(&jwks(signers)).unwrap()
    }

    fn has_signed(set: &KeySet, token: &str, algorithm: Algorithm) -> bool {
        set.have_signed(&Unverified::parse(token).unwrap(), algorithm)
    }

    #[test]
    fn every_algorithm_is_verified_and_goes_with_its_own_keys_only() {
        let mut rsa = Signer::new(Algorithm::Rs256, "rsa");
        for algorithm in Algorithm::ALL {
            let signer = match algorithm {
                Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {
                    Signer::new(algorithm, "ec")
                }
                _ => {
                    rsa.algorithm = algorithm;
                    Signer { algorithm, kid: "rsa".to_owned(), pair: copy(&rsa) }
                }
            };
            let set = set(&[&signer]);
            let token = signer.token(&json!({"iss": "i"}));
            for other in Algorithm::ALL {
                assert_eq!(
                    has_signed(&set, &token, other),
                    other == algorithm,
                    "{algorithm} {other}"
                );
            }
            let (message, signature) = token.rsplit_once('.').unwrap();
            let forged = signer.token(&json!({"iss": "j"}));
            let forged = format!("{}.{signature}", forged.rsplit_once('.').unwrap().0);
            assert!(!has_signed(&set, &forged, algorithm), "{algorithm}");
            for signature in ["", "AA", "!", signature.get(..signature.len() - 4).unwrap()] {
                assert!(!has_signed(&set, &format!("{message}.{signature}"), algorithm));
            }
        }
    }

    fn copy(signer: &Signer) -> rcgen::KeyPair {
        let der = signer.pair.serialize_der();
        rcgen::KeyPair::try_from(der.as_slice()).unwrap()
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let signer = Signer::new(Algorithm::Rs256, "k");
        let set = set(&[&signer]);
        let info = signer.info();
        for secret in [info.as_slice(), signer.pair.public_key_pem().as_bytes()] {
            let header = json!({"alg": "HS256", "kid": "k"});
            let token = signer.token_with(&header, &json!({}));
            let message = token.rsplit_once('.').unwrap().0;
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let tag = hmac::sign(&key, message.as_bytes());
            let token = format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag));
            for algorithm in Algorithm::ALL {
                assert!(!has_signed(&set, &token, algorithm));
            }
        }
    }

    #[test]
    fn keys_are_chosen_by_name_and_kept_to_their_use() {
        let (one, two) = (Signer::new(Algorithm::Es256, "1"), Signer::new(Algorithm::Es256, "2"));
        let both = set(&[&one, &two]);
        assert!(both.knows("1") && both.knows("") && !both.knows("3"));
        let unnamed = two.token_with(&json!({"alg": "ES256"}), &json!({}));
        assert!(has_signed(&both, &unnamed, Algorithm::Es256));
        let misnamed = two.token_with(&json!({"alg": "ES256", "kid": "1"}), &json!({}));
        assert!(!has_signed(&both, &misnamed, Algorithm::Es256));
        let with = |field: &str, value: &str| {
            let mut key = one.jwk();
            key[field] = value.into();
            KeySet::from_jwks(json!({"keys": [key, {"kty": "new"}, 7]}).to_string().as_bytes())
        };
        let token = one.token(&json!({}));
        assert!(has_signed(&with("alg", "ES256").unwrap(), &token, Algorithm::Es256));
        assert!(!has_signed(&with("alg", "ES384").unwrap(), &token, Algorithm::Es256));
        assert!(matches!(with("use", "enc"), Err(KeysError::Empty)));
        assert!(matches!(with("crv", "secp256k1"), Err(KeysError::Empty)));
        assert!(matches!(KeySet::from_jwks(b"{}"), Err(KeysError::Malformed(_))));
        let secret = br#"{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}"#;
        assert!(matches!(KeySet::from_jwks(secret), Err(KeysError::Empty)));
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::prelude::BASE64_STANDARD;
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
    }

    #[test]
    fn keys_in_files_may_be_public_private_or_certificates() {
        for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::Es512] {
            let mut signer = Signer::new(algorithm, "");
            signer.kid = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, &signer.info()));
            let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap();
            let certificate = certificate.self_signed(&signer.pair).unwrap().pem();
            let info = signer.info();
            let mut texts =
                vec![signer.pair.public_key_pem(), signer.pair.serialize_pem(), certificate];
            if algorithm == Algorithm::Rs256 {
                let (_, parsed) = SubjectPublicKeyInfo::from_der(&info).unwrap();
                texts.push(pem("RSA PUBLIC KEY", &parsed.subject_public_key.data));
            }
            let token = signer.token(&json!({}));
            for text in texts {
                let set = KeySet::from_pem("sa.pub", text.as_bytes()).unwrap();
                assert!(has_signed(&set, &token, algorithm), "{text}");
            }
        }
        let two = [Algorithm::Es256, Algorithm::Es384].map(|one| Signer::new(one, ""));
        let text = two.each_ref().map(|signer| signer.pair.public_key_pem()).concat();
        assert_eq!(KeySet::from_pem("sa.pub", text.as_bytes()).unwrap().keys.len(), 2);
    }

    #[test]
    fn files_without_usable_keys_are_refused_by_name() {
        let check = |text: &str, expected: &str| {
            let error = KeySet::from_pem("sa.pub", text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("sa.pub: ") && error.contains(expected), "{error}");
        };
        check("", "does not contain any valid RSA or ECDSA keys");
        check("no PEM at all", "does not contain any valid RSA or ECDSA keys");
        check("-----BEGIN PUBLIC KEY-----\n", "malformed PEM");
        check(&pem("PUBLIC KEY", b"x"), "unreadable public key");
        check(&pem("CERTIFICATE", b"x"), "unreadable certificate");
        check(&pem("PRIVATE KEY", b"x"), "unusable private key");
        check(&pem("X509 CRL", b"x"), "a section \"X509 CRL\"");
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        check(&ed25519.public_key_pem(), "key");
    }
}
