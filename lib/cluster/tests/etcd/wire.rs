//! A TCP relay in front of a member: the network between a node and etcd, which can be cut, or lose an answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The relay; ends with its runtime.
pub(crate) struct Wire {
    address: SocketAddr,
    up: watch::Sender<bool>,
    lose_answer_to: Arc<Mutex<Option<Vec<u8>>>>,
    /// Grows when the connections that are there fall silent.
    silenced: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (up, is_up) = watch::channel(true);
        let lose_answer_to = Arc::new(Mutex::new(None));
        let (needle, silenced) = (Arc::clone(&lose_answer_to), Arc::<AtomicU64>::default());
        let silent = Arc::clone(&silenced);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *is_up.borrow() {
                    tokio::spawn(relay((client, server), is_up.clone(), Arc::clone(&needle), Arc::clone(&silent)));
                }
            }
        });
        Self { address, up, lose_answer_to, silenced }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections and refuses new ones.
    pub(crate) fn cut(&self) {
        self.up.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.up.send_replace(true);
    }

    /// Nothing goes through the connections that are there any more; new ones are not concerned.
    pub(crate) fn silence(&self) {
        self.silenced.fetch_add(1, Ordering::SeqCst);
    }

    /// The next request that contains `bytes` reaches the server; nothing comes back on its connection any more.
    pub(crate) fn lose_answer_to(&self, bytes: &[u8]) {
        *self.lose_answer_to.lock().unwrap() = Some(bytes.to_vec());
    }

    /// Whether such a request has come by.
    pub(crate) fn has_lost_an_answer(&self) -> bool {
        self.lose_answer_to.lock().unwrap().is_none()
    }
}

async fn relay(
    (client, server): (TcpStream, SocketAddr),
    mut up: watch::Receiver<bool>,
    needle: Arc<Mutex<Option<Vec<u8>>>>,
    silenced: Arc<AtomicU64>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let before = silenced.load(Ordering::SeqCst);
    let mute = Arc::new(AtomicBool::new(false));
    let muted = Arc::clone(&mute);
    let requests = pump(from_client, to_server, move |chunk| {
        let mut needle = needle.lock().unwrap();
        if needle.as_ref().is_some_and(|needle| chunk.windows(needle.len()).any(|window| window == needle)) {
            *needle = None;
            mute.store(true, Ordering::SeqCst);
        }
        true
    });
    let answers = pump(from_server, to_client, move |_| {
        !muted.load(Ordering::SeqCst) && silenced.load(Ordering::SeqCst) == before
    });
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = up.wait_for(|up| !up) => {}
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut pass: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if pass(&buffer[..length]) && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
