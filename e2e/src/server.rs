//! A small HTTP server for tests: it answers as it is told, also badly, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Outcome;

/// How long a server that hangs sleeps between looks at whether it should end.
const LOOK: Duration = Duration::from_millis(20);

/// What was asked.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `GET`.
    pub method: String,
    /// Path and query, or a whole URL if we are a proxy.
    pub target: String,
    /// The head as it came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Asked {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fits = |line: &&str| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name));
        Some(self.head.lines().find(fits)?.split_once(':')?.1.trim())
    }
}

/// How it is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Status, headers (`a: b` lines) and body.
    Whole(u16, Vec<String>, Vec<u8>),
    /// A head that promises `total` bytes, these bytes, and then the connection ends.
    Short(Vec<String>, usize, Vec<u8>),
    /// The same, and then nothing; without bytes not even a head.
    Hang(usize, Vec<u8>),
    /// One byte a tick of [`LOOK`] after the head.
    Slow(Vec<u8>),
    /// This block again and again, without a length.
    Endless(Vec<String>, Vec<u8>),
}

type Handler = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A server that ends with this value.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    ended: Arc<AtomicBool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections; it may have ended.
        let _ = TcpStream::connect(self.address);
    }
}

impl Server {
    /// Listens on a free port of `ip`.
    pub fn start(ip: &str, handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Outcome<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let (asked, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (of_thread, ends, handler): (_, _, Arc<Handler>) =
            (asked.clone(), ended.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (asked, ends, handler) = (of_thread.clone(), ends.clone(), handler.clone());
                let Ok(connection) = connection else { continue };
                // Clients that go away in the middle are part of what is tested.
                std::thread::spawn(move || drop(serve(connection, &asked, &ends, &*handler)));
            }
        });
        Ok(Self { address, asked, ended })
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    connection: TcpStream,
    asked: &Mutex<Vec<Asked>>,
    ended: &AtomicBool,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut to = connection;
    let Some(request) = read(&mut reader)? else { return Ok(()) };
    let answer = handler(&request);
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let hang = || {
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
        }
    };
    match answer {
        Answer::Whole(status, headers, body) => {
            to.write_all(&head(status, &headers, Some(body.len())))?;
            if request.method != "HEAD" {
                to.write_all(&body)?;
            }
        }
        Answer::Short(headers, total, body) => {
            let status = if headers.iter().any(|line| line.starts_with("content-range")) { 206 } else { 200 };
            to.write_all(&head(status, &headers, Some(total)))?;
            to.write_all(&body)?;
        }
        Answer::Hang(total, body) => {
            if !body.is_empty() {
                to.write_all(&head(200, &[], Some(total)))?;
                to.write_all(&body)?;
            }
            hang();
        }
        Answer::Slow(body) => {
            to.write_all(&head(200, &[], Some(body.len())))?;
            for byte in body {
                to.write_all(&[byte])?;
                std::thread::sleep(LOOK);
                if ended.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        Answer::Endless(headers, block) => {
            to.write_all(&head(200, &headers, None))?;
            while !ended.load(Ordering::Relaxed) {
                to.write_all(&block)?;
            }
        }
    }
    Ok(())
}

fn head(status: u16, headers: &[String], length: Option<usize>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Test\r\nconnection: close\r\n");
    if let Some(length) = length {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    for line in headers {
        head.push_str(&format!("{line}\r\n"));
    }
    (head + "\r\n").into_bytes()
}

/// One request; `None`: the connection ended before it.
pub(crate) fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut asked = Asked::default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        asked.head.push_str(&line);
    }
    let mut words = asked.head.split_whitespace().map(str::to_owned);
    (asked.method, asked.target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    asked.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(asked))
}
