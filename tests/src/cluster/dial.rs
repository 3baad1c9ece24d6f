//! Dials: which endpoints an address leads a pod to, and as whom the pod is seen there.
//!
//! An endpoint is picked at random, so each address is dialled until one more endpoint would have been met all but surely.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::probe::{Protocol, runtime};
use crate::runtime::node::in_namespace;

/// How long an answer is waited for. Silence costs this much, all addresses at once.
const SILENT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long before a datagram is sent again: twice before it counts as unanswered.
const RESEND_INTERVAL: Duration = Duration::from_millis(1400);

/// Dials at most: with four endpoints the fourth is missed once in 10^9.
const MOST: usize = 78;

/// How many dials without an answer show that not all are answered.
const UNANSWERED: usize = 3;

/// One address, from one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dial {
    /// The client's network namespace.
    pub from: PathBuf,
    /// What is dialled.
    pub to: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// What became of one try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// An endpoint answered.
    Answered {
        /// Its name, as it says.
        by: String,
        /// The client's address, as the endpoint sees it.
        seen_as: IpAddr,
    },
    /// ECONNREFUSED.
    Refused,
    /// Nothing came back.
    Silent,
}

/// All that became of the tries of one address.
pub type Outcomes = BTreeSet<Outcome>;

/// What a server answers to a client: its name, and the client's address.
pub fn answer(name: &str, client: SocketAddr) -> String {
    format!("{name} {}", client.ip().to_canonical())
}

fn read_answer(text: &str) -> Option<Outcome> {
    let (by, seen_as) = text.rsplit_once(' ')?;
    Some(Outcome::Answered { by: by.to_owned(), seen_as: seen_as.parse().ok()? })
}

/// Dials all of them at once, each as often as it takes. Returns, in order, what became of them.
pub fn run(dials: &[Dial]) -> Result<Vec<Outcomes>> {
    let mut by_client: BTreeMap<&Path, Vec<usize>> = BTreeMap::new();
    for (index, dial) in dials.iter().enumerate() {
        by_client.entry(&dial.from).or_default().push(index);
    }
    let mut all = vec![Outcomes::new(); dials.len()];
    thread::scope(|scope| {
        let start = |(netns, indices): (&&Path, &Vec<usize>)| {
            let (netns, indices) = (netns.to_path_buf(), indices.clone());
            scope.spawn(move || {
                let dialled = in_namespace(&netns, || {
                    let each = indices.iter().map(|index| dial_often(&dials[*index]));
                    Ok::<_, anyhow::Error>(runtime()?.block_on(join_all(each)))
                })??;
                Ok::<_, anyhow::Error>((indices, dialled))
            })
        };
        let clients: Vec<_> = by_client.iter().map(start).collect();
        for client in clients {
            let joined = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (indices, dialled) = joined?;
            for (index, outcomes) in indices.into_iter().zip(dialled) {
                all[index] = outcomes;
            }
        }
        Ok(all)
    })
}

async fn dial_often(dial: &Dial) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let mut unanswered = 0;
    for tries in 1..=MOST {
        let outcome = dial_once(dial).await;
        unanswered += usize::from(!matches!(outcome, Outcome::Answered { .. }));
        outcomes.insert(outcome);
        if unanswered == UNANSWERED || unanswered == 0 && is_enough(outcomes.len(), tries) {
            break;
        }
    }
    outcomes
}

/// Whether, had there been one more outcome as likely as those that were met, one of them would have been missed by so
/// many tries less than once in 10^9.
fn is_enough(met: usize, tries: usize) -> bool {
    let met = met as f64;
    let missed = (met + 1.0) * (met / (met + 1.0)).powf(tries as f64);
    missed < 1e-9
}

async fn dial_once(dial: &Dial) -> Outcome {
    let dialled = async {
        match dial.protocol {
            Protocol::Tcp => {
                let mut stream = TcpStream::connect(dial.to).await?;
                let mut text = String::new();
                stream.read_to_string(&mut text).await?;
                Ok(text)
            }
            Protocol::Udp => datagram(dial.to).await,
        }
    };
    match timeout(SILENT_TIMEOUT, dialled).await {
        Ok(Ok(text)) => read_answer(&text).unwrap_or(Outcome::Silent),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
        Ok(Err(_)) | Err(_) => Outcome::Silent,
    }
}

async fn datagram(to: SocketAddr) -> std::io::Result<String> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    let mut data = [0; 128];
    loop {
        socket.send(b"who?").await?;
        if let Ok(received) = timeout(RESEND_INTERVAL, socket.recv(&mut data)).await {
            return Ok(String::from_utf8_lossy(&data[..received?]).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_dials_follows_the_number_of_endpoints_met() {
        let enough = |met| (1..200).find(|tries| is_enough(met, *tries)).unwrap();
        assert_eq!([enough(1), enough(2), enough(3)], [31, 54, 77]);
        assert!(enough(3) <= MOST);
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let client = "[::ffff:10.0.0.1]:4000".parse().unwrap();
        let outcome =
            Outcome::Answered { by: "x/a:80".to_owned(), seen_as: "10.0.0.1".parse().unwrap() };
        assert_eq!(read_answer(&answer("x/a:80", client)), Some(outcome));
    }
}
