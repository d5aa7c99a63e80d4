//! In front of kube-apiserver: its own groups and those of extension API servers in one document.

use crate::client::{Ask, Protocol};
use crate::core_backend::kubeconfig;
use crate::discovery_backend::{
    AGGREGATED, DiscoveryBackend, Manner, discovering, manifest, often, shown,
};
use crate::pki::host;
use crate::rig::{Rig, Setup, eventually};

/// As kube-apiserver registers what it serves itself.
fn local(group: &str, priority: i32) -> String {
    format!(
        "---\napiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
         metadata: {{name: v1.{group}}}\n\
         spec: {{group: {group}, version: v1, groupPriorityMinimum: {priority}, \
         versionPriority: 15}}\n"
    )
}

/// A portico before `core`, which knows it by the certificate that other servers know it by.
fn before(core: &DiscoveryBackend) -> Setup {
    let setup = discovering(often());
    let [certificate, key] = ["aggregator.crt", "aggregator.key"].map(|it| setup.path(it));
    let user =
        format!("client-certificate: '{}', client-key: '{}'", certificate.display(), key.display());
    let server = format!("https://{}", core.address());
    let text = kubeconfig(&server, &format!("tls-server-name: {},", host("core")), &user);
    std::fs::write(setup.path("kubeconfig"), text).unwrap();
    setup
        .file_flag("kubeconfig", "kubeconfig")
        .flag("--upstream-identity=front-proxy")
        .flag("--authorization-mode=AlwaysAllow")
        .manifest("local.yaml", &(local("batch", 17_400) + &local("apps", 17_800)))
}

async fn await_all(rig: &Rig, expected: &[(&str, &str)]) {
    eventually("all is shown", async || {
        let shown = shown(rig).await;
        let shown: Vec<_> = shown.iter().map(|(name, how)| (&**name, &**how)).collect();
        shown.get(1..) == Some(expected)
    })
    .await;
}

#[tokio::test]
async fn the_cores_own_groups_are_among_the_others_in_their_order_and_stay_while_it_is_away() {
    let core = DiscoveryBackend::start_empty("core");
    let extension = DiscoveryBackend::start("extension");
    core.serve("apps", "v1", &["deployments"]);
    core.serve("batch", "v1", &["jobs"]);
    // kube-apiserver aggregates it too, and may be behind.
    core.serve("extension.example.com", "v1", &["outdated"]);
    let text = manifest("extension", "", &[extension.address()]);
    let rig = before(&core).manifest("extension.yaml", &text).launch();
    // Who asks before everything was seen once is answered by the core.
    rig.await_status("/readyz", 200).await;
    let both = [
        ("apps/v1", "Current deployments"),
        ("batch/v1", "Current jobs"),
        ("extension.example.com/v1", "Current things"),
    ];
    await_all(&rig, &both).await;
    for seen in core.seen("/apis") {
        assert_eq!(seen.values("x-remote-user"), Vec::<&str>::new(), "asked as portico itself");
    }
    core.serve("apps", "v1", &["deployments", "statefulsets"]);
    let [_, batch, things] = both;
    let changed = [("apps/v1", "Current deployments,statefulsets"), batch, things];
    await_all(&rig, &changed).await;

    core.behave(Manner::Hang);
    eventually("it hangs", async || core.hanging() > 0).await;
    await_all(&rig, &changed).await;
    core.behave(Manner::Status(500));
    rig.await_some("portico_discovery_versions", &["shown=\"held\""]).await;
    await_all(&rig, &changed).await;
    // What only it can answer is asked of it all the same.
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get("/apis/apps/v1").await.status, 500);
    let groups = client.send(&Ask::get("/apis").header("accept", AGGREGATED)).await;
    assert_eq!(groups.status, 200);
}
