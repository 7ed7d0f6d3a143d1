//! A proxy for HTTPS that asks for credentials, leads where it is told, and remembers what it was asked and sent.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Outcome;
use crate::server::{self, Asked};

/// A proxy that ends with this value.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<Vec<Vec<u8>>>,
    ended: AtomicBool,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.seen.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections; it may have ended.
        let _ = TcpStream::connect(self.address);
    }
}

impl Proxy {
    /// Lets in whoever has this `Proxy-Authorization`, to these hosts (`name:port`) at these addresses.
    pub fn start(authorization: &str, hosts: &[(&str, &str)]) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let hosts: HashMap<String, String> =
            hosts.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect();
        let (of_thread, authorization) = (seen.clone(), authorization.to_owned());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if of_thread.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, hosts, authorization) = (of_thread.clone(), hosts.clone(), authorization.clone());
                let Ok(connection) = connection else { continue };
                // Either side may go at any time.
                std::thread::spawn(move || drop(serve(connection, &seen, &hosts, &authorization)));
            }
        });
        Ok(Self { address, seen })
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.seen.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What clients sent through it, a connection each.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.seen.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    mut client: TcpStream,
    seen: &Seen,
    hosts: &HashMap<String, String>,
    authorization: &str,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let Some(asked) = server::read(&mut reader)? else { return Ok(()) };
    seen.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    let refusal = match hosts.get(&asked.target) {
        _ if asked.header("proxy-authorization") != Some(authorization) => 407,
        None => 502,
        Some(_) if asked.method != "CONNECT" => 405,
        Some(address) => return lead(client, reader, &TcpStream::connect(address)?, seen),
    };
    client.write_all(format!("HTTP/1.1 {refusal} Refused\r\ncontent-length: 0\r\n\r\n").as_bytes())
}

/// Copies both ways until both have ended.
fn lead(
    mut client: TcpStream,
    mut reader: BufReader<TcpStream>,
    host: &TcpStream,
    seen: &Seen,
) -> std::io::Result<()> {
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let number = {
        let mut sent = seen.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.push(Vec::new());
        sent.len() - 1
    };
    let (mut from, mut to) = (host.try_clone()?, host.try_clone()?);
    let back = std::thread::spawn(move || {
        let copied = std::io::copy(&mut from, &mut client);
        client.shutdown(std::net::Shutdown::Both).and(copied.map(drop))
    });
    let mut buffer = [0; 16 << 10];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        seen.sent.lock().unwrap_or_else(PoisonError::into_inner)[number].extend_from_slice(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
    to.shutdown(std::net::Shutdown::Write)?;
    back.join().map_err(|_| std::io::Error::other("the other direction panicked"))?
}
