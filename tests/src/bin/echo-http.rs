//! `echo-http NAME PORT [ADDRESS]`: answers every HTTP request (kept alive) and every datagram with its name and the client's address.
//!
//! Invariant: the answer is one JSON object, `{"name":"web-1","client":"172.7.21.2:4242"}`, with the source address as this
//! socket saw it. `lab::echo` is the client. A server that has several addresses answers datagrams from the one that it listens at.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [name, port] => port.parse().ok().map(|port: u16| (name, port, None)),
        [name, port, address] => port.parse().ok().zip(address.parse().ok()).map(|(port, at)| (name, port, Some(at))),
        _ => None,
    };
    let Some((name, port, address)) = parsed else {
        eprintln!("usage: echo-http NAME PORT [ADDRESS]");
        return ExitCode::from(2);
    };
    match serve(name, port, address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo-http: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str, port: u16, address: Option<IpAddr>) -> io::Result<()> {
    // Both families; a kernel without IPv6 has one.
    let first = address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    let second = address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let listener = TcpListener::bind((first, port)).or_else(|_| TcpListener::bind((second, port)))?;
    let socket = UdpSocket::bind((first, port)).or_else(|_| UdpSocket::bind((second, port)))?;
    println!("listening on port {port}");
    thread::scope(|scope| {
        scope.spawn(|| answer_datagrams(name, &socket));
        for connection in listener.incoming().flatten() {
            // A client that goes away in the middle is its own business.
            scope.spawn(|| answer_requests(name, connection).unwrap_or_default());
        }
    });
    Ok(())
}

fn answer(name: &str, client: SocketAddr) -> String {
    // An IPv4 client of an IPv6 socket is ::ffff:a.b.c.d.
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("{{\"name\":{name:?},\"client\":\"{client}\"}}\n")
}

fn answer_datagrams(name: &str, socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        // Errors of a UDP socket are those of earlier answers (ICMP port unreachable); the next datagram is welcome.
        if let Ok((_, client)) = socket.recv_from(&mut bytes) {
            socket.send_to(answer(name, client).as_bytes(), client).ok();
        }
    }
}

fn answer_requests(name: &str, mut connection: TcpStream) -> io::Result<()> {
    let client = connection.peer_addr()?;
    let body = answer(name, client);
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    loop {
        let mut close = false;
        loop {
            let Some(line) = lines.next().transpose()? else { return Ok(()) };
            if line.is_empty() {
                break;
            }
            close |= line.eq_ignore_ascii_case("connection: close");
        }
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all((head + &body).as_bytes())?;
        if close {
            return Ok(());
        }
    }
}
