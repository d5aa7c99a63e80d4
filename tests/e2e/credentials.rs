//! What kubeconfigs and the flags about tokens name, replaced on disk while requests and watches are
//! open.

use std::fs;

use portico::tls::pki::PemPair;
use serde_json::{Value, json};

use crate::client::{Ask, Protocol};
use crate::core_backend::{Core, Manner, claims, shown};
use crate::issuer::{Issuer, SigningKey};
use crate::jwt::{account, quick, status, until_accepted};
use crate::pki::{Leaf, PKI};
use crate::proxying::Pair;
use crate::review_server::{ReviewServer, whose};
use crate::rig::{Rig, Setup, eventually, path};
use crate::rotation::{Open, looked_at, rename_over};

const PODS: &str = "/api/v1/pods";
const AUTHORITY: &str = "certificate-authority: core-ca.crt";
const PAIR: &str = "client-certificate: own.crt, client-key: own.key";

fn kubeconfig(core: &Core, cluster: &str, user: &str) -> String {
    format!(
        "clusters: [{{name: c, cluster: {{server: 'https://{}', {cluster}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
        core.address()
    )
}

fn client_pair(name: &str) -> PemPair {
    PKI.authority.sign(&Leaf::client(name, &[]))
}

/// With the kubeconfig's files beside it, and portico known to the core by what it says.
fn setup(core: &Core, user: &str) -> Setup {
    let setup = core.setup("");
    let write = |name: &str, text: &str| fs::write(setup.path(name), text).unwrap();
    let pair = client_pair("one");
    write("own.crt", &pair.certificate);
    write("own.key", &pair.key);
    write("token", "one\n");
    write("core-ca.crt", &PKI.authority.certificate());
    write("kubeconfig", &kubeconfig(core, AUTHORITY, user));
    setup.flag("--upstream-identity=impersonate")
}

/// What the core tells of a request that came to it; null when none did.
async fn told(rig: &Rig) -> Value {
    let mut alice = rig.alice(Protocol::Http2).await;
    let answer = alice.get(PODS).await;
    if answer.status == 200 { answer.json() } else { Value::Null }
}

async fn await_shown(rig: &Rig, name: &str) {
    eventually(name, async || {
        let told = told(rig).await;
        !told.is_null() && shown(&told) == name
    })
    .await;
}

/// After the watches that are open have ended, the core is asked like this.
async fn await_watcher(core: &Core, certificate: &str, authorization: &str) {
    core.cluster.cut();
    let expected = (certificate.to_owned(), authorization.to_owned());
    eventually("the core is asked anew", async || core.watcher() == expected).await;
}

#[tokio::test]
async fn the_core_is_shown_the_pair_that_the_kubeconfig_names_now() {
    let mut core = Core::start(Manner::Believes);
    let rig = core.portico(setup(&core, PAIR)).await;
    let mut open = Open::at(&rig, &mut core.backend, "/api/v1/".to_owned()).await;
    await_shown(&rig, "one").await;
    await_watcher(&core, "one", "").await;

    let pair = client_pair("two");
    rename_over(&rig.path("own.crt"), &pair.certificate);
    // Half of a pair changes nothing.
    looked_at(&rig).await;
    await_shown(&rig, "one").await;
    rename_over(&rig.path("own.key"), &pair.key);
    await_shown(&rig, "two").await;
    assert_eq!(shown(&told(&rig).await), "two");
    await_watcher(&core, "two", "").await;

    // In the kubeconfig itself.
    let inline = |pair: &PemPair| {
        use base64::Engine as _;
        use base64::prelude::BASE64_STANDARD;
        let (certificate, key) =
            (BASE64_STANDARD.encode(&pair.certificate), BASE64_STANDARD.encode(&pair.key));
        format!("client-certificate-data: {certificate}, client-key-data: {key}")
    };
    let text = kubeconfig(&core, AUTHORITY, &inline(&client_pair("three")));
    rename_over(&rig.path("kubeconfig"), &text);
    await_shown(&rig, "three").await;
    let end = "portico_certificate_expiration_timestamp_seconds";
    rig.await_some(end, &["certificate=\"kubeconfig-client\""]).await;

    // What is no use changes nothing, another server neither.
    let elsewhere = text.replace(&core.address().to_string(), "127.0.0.1:1");
    for text in ["clusters: [", &*elsewhere] {
        rename_over(&rig.path("kubeconfig"), text);
        looked_at(&rig).await;
        assert_eq!(shown(&told(&rig).await), "three");
    }
    open.check_watch().await;
}

#[tokio::test]
async fn the_core_is_believed_for_as_long_as_its_authority_is_named() {
    let mut core = Core::start(Manner::Believes);
    let rig = core.portico(setup(&core, PAIR)).await;
    let mut open = Open::at(&rig, &mut core.backend, "/api/v1/".to_owned()).await;
    let authority = rig.path("core-ca.crt");
    fs::write(&authority, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    looked_at(&rig).await;
    await_shown(&rig, "one").await;

    rename_over(&authority, &PKI.stranger.certificate());
    eventually("the removed authority", async || told(&rig).await.is_null()).await;
    open.check_watch().await;
    rename_over(&authority, &(PKI.stranger.certificate() + &PKI.authority.certificate()));
    await_shown(&rig, "one").await;
    await_watcher(&core, "one", "").await;
    open.check_watch().await;
}

#[tokio::test]
async fn the_core_is_sent_the_token_that_the_file_holds_now() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(setup(&core, "tokenFile: token")).await;
    let sent = async || {
        let told = told(&rig).await;
        let own = |(name, value): (String, String)| (name == "authorization").then_some(value);
        if told.is_null() { None } else { claims(&told).into_iter().find_map(own) }
    };
    assert_eq!(sent().await.unwrap(), "Bearer one");
    await_watcher(&core, "", "Bearer one").await;
    rename_over(&rig.path("token"), "two\n");
    eventually("the second token", async || sent().await.unwrap() == "Bearer two").await;
    await_watcher(&core, "", "Bearer two").await;
    fs::remove_file(rig.path("token")).unwrap();
    looked_at(&rig).await;
    assert_eq!(sent().await.unwrap(), "Bearer two");
}

#[tokio::test]
async fn a_webhook_is_believed_for_as_long_as_its_authority_is_named() {
    let webhook = ReviewServer::start(|_| whose(&json!({"username": "carol"})));
    let setup = webhook.reviews_tokens(Setup::new());
    let file = setup.path("token-webhook");
    let text = fs::read_to_string(&file).unwrap();
    let mut named: Value = serde_json::from_str(&text).unwrap();
    let cluster = named["clusters"][0]["cluster"].as_object_mut().unwrap();
    cluster.remove("certificate-authority-data").unwrap();
    cluster.insert("certificate-authority".to_owned(), "webhook-ca.crt".into());
    fs::write(file, named.to_string()).unwrap();
    let authority = setup.path("webhook-ca.crt");
    fs::write(&authority, PKI.authority.certificate()).unwrap();
    let pair = Pair::start_with(setup).await;
    // A token that nobody has asked about before.
    let mut asked = 0;
    let mut is_known = async || {
        asked += 1;
        let mut client = pair.rig.connect(Protocol::Http2, None).await;
        let ask = Ask::get(path("two", "things")).bearer(&format!("token-{asked}"));
        client.send(&ask).await.status == 200
    };
    assert!(is_known().await);
    rename_over(&authority, &PKI.stranger.certificate());
    looked_at(&pair.rig).await;
    eventually("the removed authority", async || !is_known().await).await;
    rename_over(&authority, &PKI.authority.certificate());
    eventually("the authority that is back", &mut is_known).await;
}

#[tokio::test]
async fn keys_are_fetched_from_who_shows_a_certificate_of_the_authority_of_now() {
    let (one, two) = (SigningKey::new("k1"), SigningKey::new("k2"));
    let issuer = Issuer::start(&[&one]);
    let setup = Setup::new()
        .flag(&format!("--oidc-issuer-url={}", issuer.url))
        .flag("--oidc-client-id=me")
        .flag("--oidc-signing-algs=ES256")
        .file_flag("oidc-ca-file", "issuer-ca.crt");
    let authority = setup.path("issuer-ca.crt");
    fs::write(&authority, PKI.authority.certificate()).unwrap();
    let pair = Pair::start_with(quick(setup)).await;
    let rig = &pair.rig;
    let (by_one, by_two) = (one.token(&issuer.claims("jane")), two.token(&issuer.claims("june")));
    until_accepted(rig, &by_one).await;

    rename_over(&authority, &PKI.stranger.certificate());
    let failed = ["result=\"failure\"".to_owned(), format!("issuer=\"{}\"", issuer.url)];
    let failed = failed.each_ref().map(String::as_str);
    rig.await_some("portico_token_keys_fetches_total", &failed).await;
    issuer.publish(&[&one, &two]);
    // The keys that were there count on; new ones are nobody's whom the authority vouches for.
    assert_eq!((status(rig, &by_one).await, status(rig, &by_two).await), (200, 401));
    rename_over(&authority, &PKI.authority.certificate());
    until_accepted(rig, &by_two).await;
}

#[tokio::test]
async fn a_key_of_service_accounts_that_is_taken_out_counts_no_more() {
    let [one, two, three] = [(); 3].map(|()| SigningKey::new(""));
    let setup = Setup::new();
    let keys = setup.path("accounts.pub");
    fs::write(&keys, one.pem()).unwrap();
    let setup = setup
        .file_flag("service-account-key-file", "accounts.pub")
        .flag("--service-account-issuer=https://new");
    let pair = Pair::start_with(setup).await;
    let rig = &pair.rig;
    let token = |key: &SigningKey| {
        key.token_with(&json!({"alg": "ES256"}), &account("https://new", "https://new"))
    };
    let (by_one, by_two) = (token(&one), token(&two));
    assert_eq!((status(rig, &by_one).await, status(rig, &by_two).await), (200, 401));
    rename_over(&keys, &(one.pem() + &two.pem()));
    until_accepted(rig, &by_two).await;
    assert_eq!(status(rig, &by_one).await, 200);
    rename_over(&keys, &(two.pem() + &three.pem()));
    until_accepted(rig, &token(&three)).await;
    // It was verified just before, which does not count either.
    assert_eq!((status(rig, &by_one).await, status(rig, &by_two).await), (401, 200));
    fs::write(&keys, "no key").unwrap();
    looked_at(rig).await;
    assert_eq!(status(rig, &by_two).await, 200);
}
