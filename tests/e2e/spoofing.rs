//! A backend hears who is calling from portico alone, however a client spells what it is not.

use crate::client::{Ask, BOTH, Client, Protocol};
use crate::identity::identity;
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::rig::{BOBS_TOKEN, Setup, path};

const EVIL: &str = "evil";

/// Names of headers that carry identity, by default or as configured below, in every spelling that
/// a lax server might read as one.
const SPELLINGS: &[&str] = &[
    "X-Remote-User",
    "x-remote-user",
    "X-REMOTE-USER",
    "x-ReMoTe-UsEr",
    "X_Remote_User",
    "X-Remote_User",
    "X_Remote-User",
    "x_remote_user",
    "X_REMOTE_USER",
    "X-Remote-Group",
    "X-REMOTE-GROUP",
    "X_Remote_Group",
    "X-Remote_Group",
    "X_Remote-Group",
    "X-Remote-Groups",
    "X-Remote-Uid",
    "X-Remote-UID",
    "X_Remote_Uid",
    "X-Remote_Uid",
    "X_Remote-Uid",
    "X-Remote-Extra-Scopes",
    "X_Remote_Extra_Scopes",
    "X-Remote_Extra-Scopes",
    "X_Remote-Extra-Scopes",
    "X-Remote-Extra_Scopes",
    "X-Remote-Extra-",
    "X-Remote-Extra",
    "X-Remote-Extra-%",
    "X-Remote-Extra-%zz",
    "X-Remote-Extra-%00",
    "X-Remote-Extra-Example.com%2Fscope",
    "X-Remote-Extra-authentication.kubernetes.io%2fcredential-id",
    "X-Remote-Extra-a'b|c~!#$&*+^`",
    "x-remote-extra-__",
    "X-Remote-Anything",
    "X_Remote_Anything",
    "X-Remote-",
    "X-Who",
    "X_Who",
    "X-WHO",
    "X-Crew",
    "x_crew",
    "X-My-Id",
    "X_My_Id",
    "X-My_Id",
    "X-More-Scope",
    "X_More_Scope",
    "X-More_Scope",
    "X_More-%2f",
    "Impersonate-Nothing",
    "Impersonate_Nothing",
    "Proxy-Authorization",
    "Proxy_Authorization",
];

/// Names by which somebody asks to be somebody else.
const IMPERSONATION: &[&str] = &[
    "Impersonate-User",
    "IMPERSONATE-USER",
    "Impersonate-Group",
    "Impersonate-Uid",
    "Impersonate-Extra-Scopes",
];

/// Spellings of such names that a lax server might honour.
const FOLDED_IMPERSONATION: &[&str] = &[
    "Impersonate_User",
    "impersonate_user",
    "IMPERSONATE_USER",
    "Impersonate_Group",
    "Impersonate_Uid",
    "Impersonate_Extra_Scopes",
    "Impersonate-Extra_Scopes",
    "Impersonate_Extra-Scopes",
];

fn setup() -> Setup {
    Setup::new()
        .flag("--requestheader-username-headers=X-Remote-User,X-Who")
        .flag("--requestheader-group-headers=X-Remote-Group,X-Crew")
        .flag("--requestheader-uid-headers=X-Remote-Uid,X-My-Id")
        .flag("--requestheader-extra-headers-prefix=X-Remote-Extra-,X-More-")
}

/// Ways to send one header.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Once,
    Twice,
    /// Named in `Connection`, which a proxy takes out before it sets its own.
    Listed,
    Trailer,
    AnnouncedTrailer,
}

impl Manner {
    fn all(protocol: Protocol) -> impl Iterator<Item = Self> {
        let all = [Self::Once, Self::Twice, Self::Listed, Self::Trailer, Self::AnnouncedTrailer];
        // HTTP/2 has no Connection header.
        all.into_iter()
            .filter(move |manner| protocol == Protocol::Http1 || !matches!(manner, Self::Listed))
    }

    fn of(self, ask: &Ask, name: &str) -> Ask {
        let ask = ask.clone();
        match self {
            Self::Once => ask.header(name, EVIL),
            Self::Twice => ask.header(name, EVIL).header("accept", "*/*").header(name, EVIL),
            Self::Listed => ask.header(name, EVIL).header("connection", name),
            Self::Trailer => ask.trailer(name, EVIL),
            Self::AnnouncedTrailer => ask.header("trailer", name).trailer(name, EVIL),
        }
    }
}

/// Tries every spelling in every manner; the backend must see what it sees without.
async fn check(client: &mut Client, protocol: Protocol, ask: Ask, names: &[&str]) {
    let expected = identity(&client.send(&ask).await.json());
    assert!(!expected.is_empty());
    for manner in Manner::all(protocol) {
        for name in names {
            let sent = manner.of(&ask, name);
            let answer = client.send(&sent).await;
            assert_eq!(answer.status, 200, "{protocol:?} {manner:?} {name} {}", answer.text());
            let got = answer.json();
            assert_eq!(identity(&got), expected, "{protocol:?} {manner:?} {name}");
            assert!(!answer.text().contains(EVIL), "{protocol:?} {manner:?} {name} {got}");
            // A name that is announced alone is a hint to a lax server, too.
            assert!(!answer.text().to_ascii_lowercase().contains("impersonate"), "{got}");
        }
    }
}

#[tokio::test]
async fn a_client_with_a_certificate_cannot_add_to_its_identity() {
    let pair = Pair::start_with(setup()).await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::get(path(name, "things"));
        check(&mut client, protocol, ask, SPELLINGS).await;
    }
}

#[tokio::test]
async fn a_client_with_a_token_cannot_add_to_its_identity_and_its_token_stays_here() {
    let pair = Pair::start_with(setup()).await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.connect(protocol, None).await;
        let ask = Ask::get(path(name, "things")).bearer(BOBS_TOKEN);
        check(&mut client, protocol, ask.clone(), SPELLINGS).await;
        assert!(!client.send(&ask).await.text().contains(BOBS_TOKEN));
    }
}

#[tokio::test]
async fn what_a_front_proxy_passes_on_in_other_spellings_does_not_count() {
    let pair = Pair::start_with(setup()).await;
    let folded: Vec<&str> = SPELLINGS
        .iter()
        .copied()
        .filter(|name| {
            name.contains('_') && !name.to_ascii_lowercase().starts_with("x-remote-extra-")
        })
        .chain(["X-Remote-Anything", "Proxy-Authorization", "Authorization"])
        .collect();
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        let ask = Ask::get(path(name, "things"))
            .header("X-Remote-User", "carol")
            .header("X-Remote-Group", "crew")
            .header("X-More-Scope", "wide");
        check(&mut client, protocol, ask, &folded).await;
    }
}

#[tokio::test]
async fn names_of_identity_headers_in_connection_do_not_take_out_the_real_ones() {
    let pair = Pair::start_with(setup()).await;
    for name in ["two", "one"] {
        let mut client = pair.rig.alice(Protocol::Http1).await;
        let ask = Ask::get(path(name, "things"));
        let expected = identity(&client.send(&ask).await.json());
        let listed =
            "close-not, X-Remote-User, x-remote-group,X-Remote-Uid , x-forwarded-for, audit-id";
        let got = client.send(&ask.header("connection", listed)).await.json();
        assert_eq!(identity(&got), expected);
        assert!(got["headers"].to_string().contains("x-forwarded-for"));
    }
}

#[tokio::test]
async fn impersonation_in_a_spelling_that_servers_understand_differently_is_refused() {
    let pair = Pair::start_with(setup()).await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        for name in FOLDED_IMPERSONATION {
            let ask = Ask::get(path("two", "things")).header(name, EVIL);
            for ask in [ask.clone(), ask.header("Impersonate-User", "bob")] {
                let answer = client.send(&ask).await;
                assert_eq!(answer.status, 400, "{protocol:?} {name}");
                assert_eq!(answer.json()["reason"], "BadRequest");
            }
        }
    }
    assert_eq!(pair.two.seen().len(), 0);
}

#[tokio::test]
async fn impersonation_in_trailers_does_not_pass() {
    let pair = Pair::start_with(setup()).await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::get(path(name, "things"));
        for impersonation in
            IMPERSONATION.iter().chain(FOLDED_IMPERSONATION).chain(&["Authorization"])
        {
            let sent = Manner::AnnouncedTrailer.of(&ask, impersonation);
            let answer = client.send(&sent).await;
            assert!(!answer.text().contains(EVIL), "{protocol:?} {impersonation}");
        }
    }
}

#[tokio::test]
async fn hop_by_hop_headers_do_not_pass() {
    let pair = Pair::start().await;
    for name in ["two", "one"] {
        let mut client = pair.rig.alice(Protocol::Http1).await;
        let ask = Ask::get(path(name, "things"))
            .header("Connection", "keep-alive, X-Listed")
            .header("X-Listed", EVIL)
            .header("Keep-Alive", EVIL)
            .header("Proxy-Connection", EVIL)
            .header("Proxy-Authenticate", EVIL)
            .header("TE", "evil")
            .header("X-Kept", "kept");
        let got = client.send(&ask).await.text();
        assert!(!got.contains(EVIL) && got.contains("kept"), "{got}");
    }
}
