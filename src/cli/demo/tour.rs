//! The tour that `portico demo` prints: each `$` line can be pasted as it is.
//!
//! `tests/real/run` pastes them all, so what the tour promises is kept. A step that is meant to fail
//! says so with `(fails: <word that kubectl prints>)`.

use std::io::Write as _;
use std::path::Path;

/// Prints the tour for a portico that serves at `server` with its files in `data`.
pub(super) fn print(server: &str, data: &Path, temporary: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text(server, data, temporary).as_bytes())?;
    out.flush()
}

/// The tour's text; the README shows it too.
pub fn text(server: &str, data: &Path, temporary: bool) -> String {
    let data = data.display();
    let lifetime = if temporary { "removed when it ends" } else { "kept" };
    format!(
        "portico demo serves at {server}
Its certificates, manifests and admin.kubeconfig are in {data} ({lifetime}). Ctrl-C ends it.

A tour, to be pasted into another shell from top to bottom:

1. Let kubectl talk to portico, and look at the APIs that are registered with it.
    $ export KUBECONFIG={data}/admin.kubeconfig
    $ kubectl get apiservices
    $ kubectl api-resources

2. Two extension API servers stand behind it, a bakery and a library.
    $ kubectl get cakes
    $ kubectl get books -o yaml

3. Watch cakes while one is made, changed and taken away.
    $ kubectl get cakes -w &
    $ kubectl create -f - <<'END'
    > apiVersion: bakery.example.com/v1
    > kind: Cake
    > metadata:
    >   name: anniversary
    > spec:
    >   flavour: chocolate
    >   layers: 3
    > END
    $ KUBE_EDITOR='sed -i s/chocolate/vanilla/' kubectl edit cake anniversary
    $ kubectl delete cake anniversary
    $ kill %1

4. What an extension API server is told about you; your own headers about that do not reach it.
    $ kubectl get --raw /apis/bakery.example.com/v1/whoami
    $ curl -sS --cacert {data}/pki/ca.crt --cert {data}/pki/admin.crt --key {data}/pki/admin.key \\
    >   -H 'X-Remote-User: somebody-else' {server}/apis/bakery.example.com/v1/whoami

5. How much went where, and how long it took.
    $ kubectl get --raw /metrics | grep -E '^(apiserver_request_total|portico_endpoint_requests_total)'

6. Take the library's endpoints away: portico sees it at once.
    $ rm {data}/manifests/library-endpoints.yaml
    $ kubectl wait --for=condition=Available=false apiservice/v1.library.example.com --timeout=10s
    $ kubectl get apiservices

7. What callers of a dead API are told, in words that name the hop (fails: cannot find endpointslices)
    $ kubectl get --raw /apis/library.example.com/v1/namespaces/default/books
"
    )
}
