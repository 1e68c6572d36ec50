//! A transfer over one TCP connection between Pods, judged by whether all of it arrives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, anyhow, ensure};
use lab::Pod;

use super::SOON;

/// Sends `count` bytes to `server`, an address of `to`, and waits until the other end has all of them.
pub(crate) fn transfer(from: &Pod, to: &Pod, server: SocketAddr, count: usize) -> Result<()> {
    let listener = to.within(|| TcpListener::bind(server))??;
    let receiver = std::thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(SOON))?;
        let (mut buffer, mut all) = (vec![0; 1 << 16], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(all),
                length => all += length,
            }
        }
    });
    let mut stream = from.within(|| TcpStream::connect_timeout(&server, SOON))??;
    stream.set_write_timeout(Some(SOON))?;
    stream.write_all(&vec![7; count])?;
    drop(stream);
    let all = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    ensure!(all == count, "{all} of {count} bytes");
    Ok(())
}
