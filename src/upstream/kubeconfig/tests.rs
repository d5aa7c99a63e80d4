//! What a kubeconfig may say, and what becomes of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::tls::pki::{Authority as Signer, Purpose};

fn read(cluster: &str, user: &str) -> Result<Access, KubeconfigError> {
    let text = format!(
        "clusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Access::read_kubeconfig(file.path(), &mut Reading::default())
}

#[track_caller]
fn check_refused(cluster: &str, user: &str, expected: &str) {
    let error = read(cluster, user).unwrap_err().to_string();
    assert!(error.starts_with("kubeconfig /") && error.contains(expected), "{error}");
}

#[test]
fn what_cannot_be_followed_is_refused_with_the_reason() {
    check_refused("server: 'http://127.0.0.1'", "", "only servers with https://");
    check_refused("server: 'https://a:b@h'", "", "credentials in the server's URL");
    check_refused("server: 'https://h', proxy-url: 'http://p'", "", "proxy-url");
    check_refused("server: 'https://h'", "as: somebody", "as-groups");
    let reading = &mut Reading::default();
    let error = Access::read_kubeconfig(Path::new("/nowhere"), reading).unwrap_err().to_string();
    assert!(error.starts_with("kubeconfig /nowhere: "), "{error}");
}

#[test]
fn a_servers_hosts_names_and_path_are_told_apart() {
    let access = read("server: 'https://one.example.com:6443'", "").unwrap();
    let more = ["https://[::1]:6444".parse().unwrap(), "https://two".parse().unwrap()];
    let access = access.with_servers(&more).unwrap().with_servers(&more).unwrap();
    let hosts: Vec<_> = access.hosts().into_iter().map(|host| (host.name, host.port)).collect();
    let expected = [("one.example.com", 6443), ("::1", 6444), ("two", 443)];
    assert_eq!(hosts, expected.map(|(name, port)| (name.to_owned(), port)));
    assert_eq!(access.server_name(), None);
    assert_eq!(access.authority(), "one.example.com:6443");
    let other = read("server: 'https://h/authn/', tls-server-name: other", "").unwrap();
    assert_eq!(other.prefix(), "/authn");
    assert_eq!(other.server_name(), Some("other".try_into().unwrap()));
    assert!(other.with_servers(&more).unwrap_err().to_string().contains("paths"));
}

#[test]
fn authorities_and_the_client_pair_are_taken_from_files_and_from_data() {
    let signer = Signer::new("ca").unwrap();
    let pair = signer.sign("portico", Purpose::Client(&[])).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ca, key) = (file("ca", &signer.certificate()), file("key", &pair.key));
    let cluster = format!("server: 'https://h', certificate-authority: '{ca}'");
    let data = STANDARD.encode(&pair.certificate);
    let user = format!("client-certificate-data: '{data}', client-key: '{key}'");
    let access = read(&cluster, &user).unwrap();
    assert_eq!(access.identity().unwrap().load().chain.len(), 1);
    let bundle = access.ca_bundle();
    let parsed = tls::certificates("ca", &bundle).unwrap();
    assert_eq!(parsed, tls::certificates("ca", signer.certificate().as_bytes()).unwrap());
    let data = STANDARD.encode(&pair.key);
    let user = format!("{user}, client-key-data: '{data}'");
    assert!(read(&cluster, &user).unwrap().identity().is_some());
    check_refused(&cluster, "client-certificate-data: 'YQ=='", "needs a client key");
}

#[test]
fn what_is_named_relative_lies_beside_the_kubeconfig() {
    let signer = Signer::new("ca").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("ca.crt", &signer.certificate());
    write("token", "from-file\n");
    let text = "clusters: [{name: c, cluster: {server: 'https://h', certificate-authority: ca.crt}}]\n\
                users: [{name: u, user: {tokenFile: token, token: ''}}]\n\
                contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n";
    write("kubeconfig", &format!("{BYTE_ORDER_MARK}{text}"));
    let mut reading = Reading::default();
    let file = directory.path().join("kubeconfig");
    let access = Access::read_kubeconfig(&file, &mut reading).unwrap();
    assert_eq!(&*access.ca_bundle(), signer.certificate().as_bytes());
    let Credentials::Given(Some(header)) = access.credentials() else { panic!("{access:?}") };
    assert_eq!(
        (header, header.is_sensitive()),
        (&HeaderValue::from_static("Bearer from-file"), true)
    );
    // It would be taken for the system's.
    write("ca.crt", "-----BEGIN CERTIFICATE-----\nhalf");
    let error = Access::read_kubeconfig(&file, &mut Reading::default()).unwrap_err().to_string();
    assert!(error.contains("certificate authority"), "{error}");
}

#[test]
fn a_pod_is_known_by_the_token_beside_its_authority() {
    let signer = Signer::new("ca").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let read = |host, port| Access::of_pod((host, port), directory.path(), &mut Reading::default());
    write("ca.crt", &signer.certificate());
    assert!(read("10.0.0.1", "443").unwrap_err().to_string().contains("/token"));
    write("token", "abc");
    for (host, port, url) in [
        ("10.0.0.1", "443", "https://10.0.0.1/"),
        ("fd00::1", "6443", "https://[fd00::1]:6443/"),
        ("kubernetes.default", "6443", "https://kubernetes.default:6443/"),
    ] {
        let access = read(host, port).unwrap();
        assert_eq!(access.url().to_string(), url);
        assert_eq!(&*access.ca_bundle(), signer.certificate().as_bytes());
        assert!(matches!(access.credentials(), Credentials::Given(Some(it)) if it == "Bearer abc"));
    }
    write("ca.crt", "none");
    assert!(read("10.0.0.1", "443").is_err());
}

#[test]
fn another_server_or_plugin_takes_a_restart_and_nothing_else_does() {
    let signer = Signer::new("ca").unwrap();
    let ca = STANDARD.encode(signer.certificate());
    let cluster = |server: &str| format!("server: '{server}', certificate-authority-data: '{ca}'");
    let before = read(&cluster("https://h"), "token: one").unwrap();
    let check = |cluster: &str, user: &str| {
        let after = read(cluster, user).unwrap();
        after.check_same(&before.fixed()).map_err(|error| error.problem)
    };
    check(&cluster("https://h"), "token: two").unwrap();
    check("server: 'https://h', insecure-skip-tls-verify: true", "").unwrap();
    let other = check(&cluster("https://other"), "token: one").unwrap_err();
    assert!(
        other.contains("https://other/, another one than https://h/ takes a restart"),
        "{other}"
    );
    let plugin = "exec: {apiVersion: client.authentication.k8s.io/v1, command: cat}";
    assert!(check(&cluster("https://h"), plugin).unwrap_err().contains("takes a restart"));
}
