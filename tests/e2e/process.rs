//! The program in a process of its own: what it logs, and what it does when it may open few files.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::client::{Client, Protocol};
use crate::pki::PKI;
use crate::rig::{Setup, eventually, within};

/// Files that the program may have open at a time.
const FILES_MAX: usize = 64;

struct Program {
    child: Child,
    log: mpsc::Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Program {
    /// Starts the program with the setup's flags.
    fn start(setup: &Setup) -> Self {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {FILES_MAX}; exec \"$@\""))
            .args(["sh", env!("CARGO_BIN_EXE_portico"), "run"])
            .args(setup.flags())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel(1024);
        // The pipe is read to its end, so that the program never waits for it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                sender.blocking_send(line).ok();
            }
        });
        Self { child, log }
    }

    /// The next line of the log that has all these words.
    async fn logged(&mut self, words: &[&str]) -> String {
        let looking = async {
            loop {
                let line = self.log.recv().await.expect("the program has ended");
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
            }
        };
        within(&format!("a line with {words:?}"), looking).await
    }

    async fn address(&mut self) -> SocketAddr {
        let line = self.logged(&["serving address="]).await;
        line.rsplit('=').next().unwrap().trim().parse().unwrap()
    }
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_said_in_the_log() {
    let setup = Setup::new().service("one", &[]);
    let mut program = Program::start(&setup);
    let text = "certificate expires within a week";
    program.logged(&["WARN", text, "certificate=\"serving\""]).await;
    program.logged(&["WARN", text, "certificate=\"proxy-client\""]).await;
}

#[tokio::test]
async fn a_pair_that_does_not_belong_together_is_said_in_the_log() {
    let setup = Setup::new();
    let mut program = Program::start(&setup);
    program.address().await;
    std::fs::write(setup.path("server.key"), &PKI.alice.key).unwrap();
    let text = "files cannot be used, what they held last stays in force";
    program.logged(&["ERROR", text, "server.crt", "server.key", "KeyMismatch"]).await;
    std::fs::write(setup.path("server.key"), "half of a k").unwrap();
    program.logged(&["ERROR", text, "server.key: no private key"]).await;
}

#[tokio::test]
async fn without_descriptors_clients_are_refused_at_once_and_open_connections_are_served() {
    let setup = Setup::new();
    let mut program = Program::start(&setup);
    program.logged(&["WARN", "limit is too low", "limit=64"]).await;
    let address = program.address().await;
    let mut open = Client::connect(address, Protocol::Http2, Some(&PKI.alice)).await;
    assert_eq!(open.get("/livez").await.status, 200);

    let mut held = Vec::new();
    for _ in 0..2 * FILES_MAX {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    // The last ones have no room: each is closed, and not left to wait.
    for stream in held.iter_mut().rev().take(FILES_MAX) {
        let end = within("the end of a connection", stream.read(&mut [0])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert_eq!(open.get("/livez").await.status, 200);
    let text = open.get("/metrics").await.text();
    let counted = "portico_rejected_connections_total{reason=\"descriptors\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(counted)).unwrap();
    assert!(count.parse::<usize>().unwrap() >= FILES_MAX, "{count}");

    drop(held);
    eventually("room for new clients", async || {
        open.get("/metrics").await.text().contains("portico_connections 1\n")
    })
    .await;
    let mut fresh = Client::connect(address, Protocol::Http1, Some(&PKI.alice)).await;
    assert_eq!(fresh.get("/livez").await.status, 200);
}
