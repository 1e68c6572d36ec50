//! The load: one TCP stream of large writes and one row of UDP round trips, each for a fixed time.
//!
//! Invariants: both ends are threads of this process with sockets of their places, so nothing else is executed; what is counted is what the
//! receiver has read between two moments, and the time on a processor is that of both threads and of the kernel's softirq threads between
//! the same moments. Every wait has a limit.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::Place;
use nix::unistd::gettid;

/// Port of both servers.
pub(crate) const PORT: u16 = 5201;
/// How long each kind of load is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// Time before the measurement, in which TCP finds its window.
const WARM_UP: Duration = Duration::from_millis(100);
/// After this long without a byte something is broken.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one write.
const WRITE: usize = 128 * 1024;
/// Bytes of one datagram.
const DATAGRAM: usize = 16;

/// What one measurement gave.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sample {
    /// Gigabits a second.
    pub(crate) throughput: f64,
    /// Processor nanoseconds for each KiB; 0 where the kernel keeps no account (CONFIG_SCHED_INFO).
    pub(crate) per_kib: f64,
    /// Microseconds of a round trip.
    pub(crate) round_trip: f64,
    /// Processor microseconds for each of them; 0 as above.
    pub(crate) per_trip: f64,
}

/// Puts load on the path from one place to `addr` of the other.
///
/// # Errors
/// When a packet does not come through.
pub(crate) fn measure(from: &impl Place, to: &impl Place, addr: IpAddr) -> Result<Sample> {
    measure_by(from, to, Ends { listens_at: addr, reached_at: addr })
}

/// Where the server of a load is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// An address of its place.
    pub(crate) listens_at: IpAddr,
    /// The address that the client connects to.
    pub(crate) reached_at: IpAddr,
}

/// The same with a server that may be reached by another address than its own.
///
/// # Errors
/// When a packet does not come through.
pub(crate) fn measure_by(from: &impl Place, to: &impl Place, ends: Ends) -> Result<Sample> {
    let addr = ends.reached_at;
    let trips = round_trips(from, to, ends).with_context(|| format!("UDP to {addr}"))?;
    let bytes = stream(from, to, ends).with_context(|| format!("TCP to {addr}"))?;
    let seconds = |time: Duration| time.as_secs_f64();
    Ok(Sample {
        throughput: bytes.count * 8.0 / seconds(bytes.took) / 1e9,
        per_kib: seconds(bytes.processor) * 1e9 / (bytes.count / 1024.0),
        round_trip: seconds(trips.took) * 1e6 / trips.count,
        per_trip: seconds(trips.processor) * 1e6 / trips.count,
    })
}

/// What was counted between two moments.
struct Counted {
    count: f64,
    took: Duration,
    processor: Duration,
}

/// Counters of a load that runs.
#[derive(Default)]
struct Running {
    count: AtomicU64,
    stop: AtomicBool,
    /// The kernel's numbers of the two threads.
    threads: [AtomicI32; 2],
}

impl Running {
    fn is_on(&self, thread: usize) {
        if let Some(slot) = self.threads.get(thread) {
            slot.store(gettid().as_raw(), Ordering::Relaxed);
        }
    }

    fn goes(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Counts while the window lasts.
    fn watch(&self) -> Result<Counted> {
        thread::sleep(WARM_UP);
        let now = || (self.count.load(Ordering::Relaxed), Instant::now(), self.processor());
        let (count, begun, processor) = now();
        thread::sleep(if crate::machine::is_rehearsal() { WINDOW / 10 } else { WINDOW });
        let (last, ended, used) = now();
        self.stop.store(true, Ordering::Relaxed);
        ensure!(last > count, "nothing came through");
        // Counts of half a second are far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let count = (last - count) as f64;
        Ok(Counted { count, took: ended - begun, processor: used.saturating_sub(processor) })
    }

    /// Time on a processor of both threads and of the softirq threads since they began.
    fn processor(&self) -> Duration {
        let own = self.threads.iter().map(|thread| thread.load(Ordering::Relaxed));
        own.chain(softirq_threads()).map(scheduled).sum()
    }
}

/// The scheduler's account of one thread, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn scheduled(thread: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0))
}

fn softirq_threads() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_kernel =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with("ksoftirqd/"));
    // They are among the first threads of a kernel.
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid < 200)
        .filter(of_kernel)
        .collect()
}

/// Ends both threads and gives the figures, or what went wrong first.
fn finish(counted: Result<Counted>, ends: [JoinHandle<Result<()>>; 2]) -> Result<Counted> {
    let ends = ends.map(|end| end.join().map_err(|_| anyhow!("a thread of the load panicked"))?);
    ends.into_iter().collect::<Result<Vec<()>>>()?;
    counted
}

fn stream(from: &impl Place, to: &impl Place, ends: Ends) -> Result<Counted> {
    let listener = to.within(|| TcpListener::bind((ends.listens_at, PORT)))??;
    let server = SocketAddr::new(ends.reached_at, PORT);
    let mut client = from.within(|| TcpStream::connect_timeout(&server, LIMIT))??;
    client.set_write_timeout(Some(LIMIT))?;
    let (mut served, _) = listener.accept()?;
    served.set_read_timeout(Some(LIMIT))?;
    let running = Arc::new(Running::default());
    let (reads, writes) = (Arc::clone(&running), Arc::clone(&running));
    let receiver = thread::spawn(move || {
        reads.is_on(0);
        let mut buffer = vec![0; WRITE];
        loop {
            match served.read(&mut buffer)? {
                0 => return Ok(()),
                length => reads.count.fetch_add(u64::try_from(length)?, Ordering::Relaxed),
            };
        }
    });
    let sender = thread::spawn(move || {
        writes.is_on(1);
        let buffer = vec![0; WRITE];
        while writes.goes() {
            client.write_all(&buffer)?;
        }
        Ok(client.shutdown(Shutdown::Write)?)
    });
    finish(running.watch(), [receiver, sender])
}

fn round_trips(from: &impl Place, to: &impl Place, ends: Ends) -> Result<Counted> {
    let echo = to.within(|| UdpSocket::bind((ends.listens_at, PORT)))??;
    let any: SocketAddr = if ends.reached_at.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let client = from.within(|| UdpSocket::bind(any))??;
    client.connect((ends.reached_at, PORT))?;
    echo.set_read_timeout(Some(LIMIT))?;
    client.set_read_timeout(Some(LIMIT))?;
    let running = Arc::new(Running::default());
    let (echoes, asks) = (Arc::clone(&running), Arc::clone(&running));
    let answering = thread::spawn(move || {
        echoes.is_on(0);
        let mut buffer = [0; DATAGRAM];
        loop {
            let (length, peer) = echo.recv_from(&mut buffer)?;
            // An empty one is the last.
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            echo.send_to(bytes, peer)?;
        }
    });
    let asking = thread::spawn(move || {
        asks.is_on(1);
        let mut buffer = [0; DATAGRAM];
        while asks.goes() {
            client.send(&buffer)?;
            client.recv(&mut buffer).context("no answer")?;
            asks.count.fetch_add(1, Ordering::Relaxed);
        }
        client.send(&[]).map(drop).context("end the echo")
    });
    finish(running.watch(), [answering, asking])
}
