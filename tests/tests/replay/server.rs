//! The echo servers of all endpoints on one thread: each says its name, its port and whom it saw.
//!
//! Invariant: sockets were opened in the network of their endpoint; the thread that serves them need not be there, and ends with
//! the value.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The ports on which every endpoint listens.
const PORTS: [u16; 3] = [8080, 8081, 9090];

/// Milliseconds between two looks at whether the end has come.
const TICK: u16 = 100;

/// A socket of an endpoint.
pub(crate) struct Listener {
    name: String,
    port: u16,
    socket: Socket,
}

enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
    Connection(TcpStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(socket) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
            Self::Connection(socket) => socket.as_fd(),
        }
    }
}

/// Opens the sockets of an endpoint, in the network of the calling thread. Datagrams are answered from the address that they came to.
pub(crate) fn open(name: &str, addresses: &[IpAddr]) -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for port in PORTS {
        let stream = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
        stream.set_nonblocking(true)?;
        let mut sockets = vec![Socket::Stream(stream)];
        for addr in addresses {
            let socket = UdpSocket::bind((*addr, port))?;
            socket.set_nonblocking(true)?;
            sockets.push(Socket::Datagram(socket));
        }
        all.extend(sockets.into_iter().map(|socket| Listener { name: name.to_owned(), port, socket }));
    }
    Ok(all)
}

/// The thread that serves them; it ends with the value.
pub(crate) struct Server {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(sockets: Vec<Listener>) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = thread::Builder::new().name("echo".to_owned()).spawn(move || serve(sockets, &seen))?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(mut sockets: Vec<Listener>, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let mut waiting: Vec<_> =
            sockets.iter().map(|listener| PollFd::new(listener.socket.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut waiting, PollTimeout::from(TICK)).is_err() {
            continue;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut new = Vec::new();
        let mut number = 0;
        sockets.retain_mut(|listener| {
            number += 1;
            !ready[number - 1] || listener.answer(&mut new)
        });
        sockets.append(&mut new);
    }
}

impl Listener {
    /// Answers what has come. Returns whether the socket goes on; new connections are added to `new`.
    fn answer(&mut self, new: &mut Vec<Self>) -> bool {
        match &mut self.socket {
            Socket::Stream(listener) => {
                while let Ok((mut connection, client)) = listener.accept() {
                    connection.set_nonblocking(true).ok();
                    if connection.write_all(text(&self.name, self.port, client).as_bytes()).is_ok() {
                        let socket = Socket::Connection(connection);
                        new.push(Self { name: self.name.clone(), port: self.port, socket });
                    }
                }
                true
            }
            Socket::Datagram(socket) => {
                let mut bytes = [0; 512];
                while let Ok((_, client)) = socket.recv_from(&mut bytes) {
                    socket.send_to(text(&self.name, self.port, client).as_bytes(), client).ok();
                }
                true
            }
            Socket::Connection(connection) => {
                let mut bytes = [0; 512];
                match connection.read(&mut bytes) {
                    Ok(0) => false,
                    Ok(_) => {
                        let client = connection.peer_addr();
                        client.is_ok_and(|client| {
                            connection.write_all(text(&self.name, self.port, client).as_bytes()).is_ok()
                        })
                    }
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                }
            }
        }
    }
}

/// One line: name, port, and the client as the endpoint sees it.
fn text(name: &str, port: u16, client: SocketAddr) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("{name} {port} {client}\n")
}
