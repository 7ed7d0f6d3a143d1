//! For critest's images of web servers: answers every request with 200.
//!
//!     web PORT PID_FILE WORDS...   the words go to standard error at the start, and are seen in /proc/PID/cmdline

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a client may take with its request.
const LIMIT: Duration = Duration::from_secs(10);

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, pid_file, words @ ..] = &arguments[..] else {
        return Err(std::io::Error::other("usage: web PORT PID_FILE WORDS..."));
    };
    let port: u16 = port.parse().map_err(std::io::Error::other)?;
    // Both families, unless this network has no IPv6.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    std::fs::write(pid_file, format!("{}\n", std::process::id()))?;
    eprintln!("{}", words.join(" "));
    for stream in listener.incoming() {
        // A client that goes away is its own business.
        std::thread::spawn(|| stream.and_then(answer));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut head, mut piece) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 65536 {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&piece[..n]),
        }
    }
    let page = "<html><title>Welcome to nginx!</title><body>It works!</body></html>\n";
    let length = page.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
    )
}
