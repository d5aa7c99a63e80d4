//! Keys that sign tokens, for tests.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, RsaEncoding,
};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;

use super::Algorithm;

/// A key with the algorithm it signs by.
pub(in crate::auth) struct Signer {
    pub(in crate::auth) algorithm: Algorithm,
    pub(in crate::auth) kid: String,
    pub(in crate::auth) pair: KeyPair,
}

fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(in crate::auth) fn new(algorithm: Algorithm, kid: &str) -> Self {
        let pair = match algorithm {
            Algorithm::Es256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::Es384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::Es512 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
            _ => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
        };
        Self { algorithm, kid: kid.to_owned(), pair: pair.unwrap() }
    }

    /// The `SubjectPublicKeyInfo`.
    pub(in crate::auth) fn info(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    pub(in crate::auth) fn jwk(&self) -> Value {
        let info = self.info();
        let (_, info) = SubjectPublicKeyInfo::from_der(&info).unwrap();
        let key = match info.parsed().unwrap() {
            PublicKey::RSA(key) => {
                let modulus = key.modulus.iter().skip_while(|&&byte| byte == 0);
                let modulus: Vec<u8> = modulus.copied().collect();
                json!({"kty": "RSA", "n": base64(&modulus), "e": base64(key.exponent)})
            }
            PublicKey::EC(point) => {
                let (x, y) = point.data()[1..].split_at(point.data().len() / 2);
                let curve = match self.algorithm {
                    Algorithm::Es256 => "P-256",
                    Algorithm::Es384 => "P-384",
                    _ => "P-521",
                };
                json!({"kty": "EC", "crv": curve, "x": base64(x), "y": base64(y)})
            }
            _ => panic!("no such key"),
        };
        let mut key = key.as_object().unwrap().clone();
        key.insert("use".to_owned(), "sig".into());
        key.insert("kid".to_owned(), self.kid.as_str().into());
        key.into()
    }

    pub(in crate::auth) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm.name(), "kid": self.kid, "typ": "JWT"});
        self.token_with(&header, claims)
    }

    /// Signed as it is, whatever the header says.
    pub(in crate::auth) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| base64(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = base64(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self.algorithm {
            Algorithm::Es256 => self.ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, message),
            Algorithm::Es384 => self.ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, message),
            Algorithm::Es512 => self.ecdsa(&ECDSA_P521_SHA512_FIXED_SIGNING, message),
            Algorithm::Rs256 => self.rsa(&signature::RSA_PKCS1_SHA256, message),
            Algorithm::Rs384 => self.rsa(&signature::RSA_PKCS1_SHA384, message),
            Algorithm::Rs512 => self.rsa(&signature::RSA_PKCS1_SHA512, message),
            Algorithm::Ps256 => self.rsa(&signature::RSA_PSS_SHA256, message),
            Algorithm::Ps384 => self.rsa(&signature::RSA_PSS_SHA384, message),
            Algorithm::Ps512 => self.rsa(&signature::RSA_PSS_SHA512, message),
        }
    }

    fn ecdsa(&self, algorithm: &'static EcdsaSigningAlgorithm, message: &[u8]) -> Vec<u8> {
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &self.pair.serialize_der()).unwrap();
        pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }

    fn rsa(&self, padding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let pair = signature::RsaKeyPair::from_pkcs8(&self.pair.serialize_der()).unwrap();
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }
}

/// A key set of these keys.
pub(in crate::auth) fn jwks(signers: &[&Signer]) -> Vec<u8> {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({"keys": keys}).to_string().into_bytes()
}
