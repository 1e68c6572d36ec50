//! A member that has not got what the others have is left, and its listing is not believed.

use std::time::{Duration, Instant};

use cluster::Event;
use cluster::etcd::{Client, Config, Limits, Store};

use crate::consumer::Consumer;
use crate::server::Server;
use crate::wire::Wire;
use crate::{Case, block_on, subnets};

pub(crate) const CASES: &[Case] = &[
    ("member_that_lies_behind_is_left_within_seconds", left_within_seconds),
    ("members_that_keep_up_are_compared_and_nothing_is_listed", members_that_keep_up),
    ("listing_that_goes_back_is_not_believed_while_another_member_may_know_better", listing_that_goes_back),
];

/// The original, and a member that has what the original had: the key `old`.
async fn forked(original: &mut Server) -> Server {
    original.store().put(&subnets().key("old"), b"1", None).await.unwrap();
    tokio::task::block_in_place(|| {
        original.kill(0);
        let copy = Server::copy_of(original);
        original.restart(0);
        copy
    })
}

/// A client of both that begins with the first of them.
fn client(endpoints: [String; 2], limits: &Limits) -> Client {
    let config = Config { endpoints: endpoints.join(","), limits: limits.clone(), ..Config::default() };
    let mut clients = (0..).map(|seed| Client::new(&config, seed).unwrap());
    clients.find(|client| client.current_endpoint() == endpoints[0]).unwrap()
}

fn losses(consumer: &Consumer) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Lost(error) => Some(error.to_string()),
        _ => None,
    };
    consumer.log.iter().filter_map(text).collect()
}

fn left_within_seconds() {
    let mut original = Server::single();
    block_on(async {
        let stale = forked(&mut original).await;
        let store = original.store();
        let (endpoint, ahead) = (stale.endpoints(), original.endpoints());
        let client = client([endpoint.clone(), ahead.clone()], &Limits::default());
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        assert_eq!(client.current_endpoint(), endpoint);
        for name in 1..=5_u32 {
            store.put(&subnets().key(&name.to_string()), b"1", None).await.unwrap();
        }
        let begin = Instant::now();
        consumer.until("all that there is", |c| c.knows("5") && c.snapshot.lost().is_none()).await;
        // Half to one and a half of 5 s, and 3 s for the member to catch up.
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!(consumer.snapshot.entries().len(), 6);
        assert_eq!(client.current_endpoint(), ahead);
        let losses = losses(&consumer);
        let [loss] = losses.as_slice() else { panic!("{losses:?}") };
        assert!(loss.contains(&format!("at {endpoint}: the member is behind")), "{loss}");
        assert!(loss.contains(&format!(", 5 less than {ahead} has")), "{loss}");
    });
}

/// Written to all the time, so that the others are ahead by a moment whenever they are asked.
fn members_that_keep_up() {
    let server = Server::three();
    block_on(async {
        let limits = Limits { compare: Duration::from_millis(20), ..Limits::default() };
        let client = Client::new(&Config { limits, ..server.config() }, 1).unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        let store = server.store();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            store.put("/elsewhere", b"1", None).await.unwrap();
            store.put(&subnets().key("a"), b"1", None).await.unwrap();
        }
        store.put(&subnets().key("last"), b"1", None).await.unwrap();
        consumer.until("the last put", |c| c.knows("last")).await;
        assert_eq!((consumer.resets(), losses(&consumer)), (1, Vec::new()));
    });
}

fn listing_that_goes_back() {
    let mut original = Server::single();
    block_on(async {
        let stale = forked(&mut original).await;
        let wire = Wire::to(original.address(0)).await;
        // Found by the listing: nobody is compared.
        let limits = Limits { compare: Duration::from_secs(3600), ..Limits::default() };
        let client = client([wire.endpoint(), stale.endpoints()], &limits);
        let store: Store = original.store();
        store.put(&subnets().key("new"), b"1", None).await.unwrap();
        let mut consumer = Consumer::of(&client, &subnets());
        consumer.listed().await;
        store.put(&subnets().key("open"), b"1", None).await.unwrap();
        consumer.until("the stream is open", |c| c.knows("open")).await;
        wire.cut();
        let behind = |c: &Consumer| losses(c).iter().any(|loss| loss.contains("it lists revision"));
        consumer.until("the other one is not believed", behind).await;
        assert_eq!((consumer.resets(), consumer.snapshot.entries().len()), (1, 3));
        wire.mend();
        store.put(&subnets().key("after"), b"1", None).await.unwrap();
        consumer.until("a change", |c| c.knows("after") && c.snapshot.lost().is_none()).await;
        assert_eq!((consumer.resets(), consumer.snapshot.entries().len()), (2, 4));
    });
}
