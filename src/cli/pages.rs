//! The documents that list what the code lists: `docs/metrics.md` and `docs/failures.md`.

use std::fmt::Write as _;

use crate::model::rejection::Rejection;
use crate::model::remedy;
use crate::proxy::ACCESS_LOG_FIELDS;
use crate::runtime::telemetry::Metrics;

const WRITTEN: &str = "<!-- Written by the program: `UPDATE_DOCS=1 cargo test --test docs` -->";

const METRICS_HEAD: &str = "\
`GET /metrics` gives them in Prometheus' text format. The page is made on a thread of its own, so that \
no request waits for it. What kube-apiserver counts too has its name and labels; `resource`, \
`subresource` and `scope` are empty for proxied requests, whose resources are the backends' own. A \
series begins with the first request that needs it and goes when its APIService or endpoint goes, so \
their number is bounded by what is registered and used.

Where the time of a request goes is told by `portico_request_phase_seconds`, hop by hop:

| phase | from | to |
|---|---|---|
| `queue` | the request looks for a connection | one is there, less the next two |
| `connect` | the dial begins | TCP is there |
| `tls` | TCP is there | the TLS handshake is over |
| `first_byte` | the request's headers have come, less what is above | the answer's head has come |
| `body` | the answer's head has come | its end |

A request that finds a connection with room has none of the first three, and is not counted there.

";

const METRICS_TAIL: &str = "
Queries to begin with:

```promql
# the 99th percentile of each hop, by APIService
histogram_quantile(0.99, sum by (apiservice, phase, le) (rate(portico_request_phase_seconds_bucket[5m])))
# the endpoint that is slower than the others
histogram_quantile(0.99, sum by (endpoint, le) (rate(portico_request_phase_seconds_bucket{phase=\"first_byte\"}[5m])))
# why requests end here
sum by (group, cause) (rate(apiserver_request_terminations_total[5m]))
# days until each certificate ends
(portico_certificate_expiration_timestamp_seconds - time()) / 86400
```

## The access log

`--access-log FILE` (or `-` for standard output) writes a line for each request when it is over, \
whatever became of it; what does not apply is left out. A thread of its own writes the lines, at most \
100 ms later; where the file takes no more, lines are dropped and counted in \
`portico_access_log_lines_dropped_total`, and the log says so. A file that is moved away is opened \
anew within five seconds.

| field | what it is |
|---|---|
";

const FAILURES_HEAD: &str = "\
A request that portico cannot carry is answered with a `metav1.Status`: kube-apiserver's code and \
reason, and a sentence in `message` (all that kubectl prints). Each cause has one word: it is `cause` in \
the log, in the access log and in `apiserver_request_terminations_total`, and for faults on the way to a \
backend `details.causes[0].reason` of the answer too. `AuthorizerError` is answered in plain text, as \
upstream does. The log line has the endpoint's address and the system's or library's own words besides, \
which callers are not told; answers below 500 are logged at `-v 3` only. `portico_retries_total` has the \
word for tries that failed and were followed by another.

";

const FAILURES_OF_CORE: &str = "\
In front of kube-apiserver, what is meant for it begins with `error trying to reach kube-apiserver:`, with \
the same words. `NameNotResolved`, `UnknownAuthority`, `NameMismatch`, `InvalidCABundle` and \
`ClientCertificateRefused` are then about `server`, `certificate-authority` and the user of portico's \
kubeconfig (or about `--proxy-client-cert-file`), not about an APIService; the others say that \
kube-apiserver itself is away or slow.

";

const FAILURES_END: &str = "
## Cut answers

An answer that breaks off after its head was sent cannot become an error any more: HTTP/2 streams are \
reset, HTTP/1.1 connections closed before the body's end, so that no client takes a part for the \
whole. `apiserver_request_aborts_total` counts them with the cause `BackendReset`, `Deadline`, or \
`ClientStalled` where the client took nothing of its answer for ten minutes, or too much was waiting for \
such clients. In the access log a request whose client went away has the cause `ClientGone`, and the status 499 when nothing \
had been answered yet.
";

/// What messages about backends have in common.
const PREFIX: &str = "error trying to reach service for APIService v1.example.com: ";

/// `docs/metrics.md`.
pub fn metrics_page() -> anyhow::Result<String> {
    let mut families = Metrics::new()?.families()?;
    families.sort_by(|one, other| one.name.cmp(&other.name));
    let mut page = format!("# Metrics and the access log\n\n{WRITTEN}\n\n{METRICS_HEAD}");
    page.push_str("| metric | type | labels | what it says |\n|---|---|---|---|\n");
    for family in families {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (family.name, family.kind);
        writeln!(page, "| `{name}` | {kind} | {} | {} |", labels.join(", "), family.help)?;
    }
    page.push_str(METRICS_TAIL);
    for (field, meaning) in ACCESS_LOG_FIELDS {
        writeln!(page, "| `{field}` | {meaning} |")?;
    }
    Ok(page)
}

/// `docs/failures.md`.
pub fn failures_page() -> anyhow::Result<String> {
    let mut page = format!("# Failures, and what to do\n\n{WRITTEN}\n\n{FAILURES_HEAD}");
    page.push_str("## On the way to a backend\n\n");
    writeln!(page, "The messages begin with `{}` (an example).\n", PREFIX.trim_end())?;
    page.push_str(FAILURES_OF_CORE);
    table(&mut page, &remedy::backend_faults())?;
    page.push_str(
        "\n`/apis/<group>/<version>` answers `Deadline` with 503 after 5 s, as upstream does, and \
         never has a `Retry-After`.\n\n## Answered here\n\n",
    );
    table(&mut page, &remedy::rejections())?;
    page.push_str(FAILURES_END);
    Ok(page)
}

fn table(page: &mut String, rejections: &[Rejection]) -> std::fmt::Result {
    page.push_str("| word | code | message | what to do |\n|---|---|---|---|\n");
    for rejection in rejections {
        let code = rejection.code().as_u16();
        let again = match rejection.retry_after_seconds() {
            Some(seconds) => format!(", `Retry-After: {seconds}`"),
            None => String::new(),
        };
        let message = rejection.message();
        let message = message.strip_prefix(PREFIX).unwrap_or(&message).to_owned();
        let message = if message.is_empty() { "says what is wrong" } else { &message };
        let (word, remedy) = (rejection.cause(), remedy::of_rejection(rejection));
        writeln!(page, "| `{word}` | {code}{again} | {message} | {remedy} |")?;
    }
    Ok(())
}
