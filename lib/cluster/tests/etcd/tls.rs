//! TLS with and without a client certificate, and etcd's own users.

use std::time::{Duration, Instant};

use cluster::Class;
use cluster::etcd::{Client, Config, Store, TlsFiles};
use etcd_client::{Permission, PermissionType};

use crate::consumer::{Consumer, eventually};
use crate::server::{Server, free_addresses, read};
use crate::{Case, block_on, subnets};

pub(crate) const CASES: &[Case] = &[
    ("client_certificate_opens_a_server_that_asks_for_one", mutual_tls),
    ("wrong_ca_is_reported_and_nothing_is_sent", wrong_ca),
    ("renewed_certificates_are_read_again_when_the_old_ones_are_refused", renewed),
    ("without_a_ca_the_systems_roots_are_asked", system_roots),
    ("the_wrong_scheme_is_asked_about_in_either_direction", wrong_scheme),
    ("user_and_password_open_a_store_with_users", users),
    ("tokens_that_expire_within_seconds_cost_nothing", signed_tokens),
    ("user_is_none_until_the_store_has_users", users_later),
    ("token_of_before_a_change_of_the_users_is_renewed", users_changed),
];

fn mutual_tls() {
    let server = Server::with_client_certificates();
    block_on(async {
        let store = server.store();
        store.put(&subnets().key("a"), b"x", None).await.unwrap();
        let mut consumer = Consumer::of(&server.client(), &subnets());
        consumer.listed().await;
        store.put(&subnets().key("b"), b"x", None).await.unwrap();
        consumer.until("a change over TLS", |c| c.knows("b")).await;

        let without =
            Config { tls: TlsFiles { cert: None, key: None, ..server.pki().client() }.read(), ..server.config() };
        let refused = Store::new(Client::new(&without, 1).unwrap()).get("a").await.unwrap_err();
        // In TLS 1.3 the server refuses after the client believes to be connected: whether its alert or the end
        // of the connection is seen first is a race, so the words are not compared.
        assert_eq!(refused.class, Class::Retry, "{refused}");
        let key = read(&server.pki().path("client.key"));
        assert!(key.lines().all(|line| !format!("{:?} {refused}", server.config()).contains(line)));
    });
}

fn wrong_ca() {
    let server = Server::with_client_certificates();
    block_on(async {
        let config = Config {
            tls: TlsFiles { ca: Some(server.pki().path("stranger.pem")), ..server.pki().client() }.read(),
            ..server.config()
        };
        let refused = Store::new(Client::new(&config, 1).unwrap()).put("a", b"x", None).await.unwrap_err();
        assert!(refused.message.contains("invalid peer certificate"), "{refused}");
        assert_eq!(server.store().get("a").await.unwrap(), None);
    });
}

/// CA, server and client certificates are replaced on the disk, and the member restarts with the new ones.
fn renewed() {
    let mut server = Server::with_client_certificates();
    block_on(async {
        let store = server.store();
        store.put(&subnets().key("a"), b"x", None).await.unwrap();
        let mut consumer = Consumer::of(store.client(), &subnets());
        consumer.listed().await;
        server.pki().renew();
        store.put(&subnets().key("b"), b"x", None).await.expect("the connection that is open goes on");
        server.kill(0);
        tokio::task::block_in_place(|| server.restart(0));
        store.put(&subnets().key("c"), b"x", None).await.expect("the first request reads the files again");
        consumer.until("the watch as well", |c| c.knows("c") && c.snapshot.lost().is_none()).await;
    });
}

fn system_roots() {
    let server = Server::with_client_certificates();
    block_on(async {
        let config = Config { tls: TlsFiles { ca: None, ..server.pki().client() }.read(), ..server.config() };
        // The test's CA is in nobody's system: the member is asked, and not believed.
        let refused = Store::new(Client::new(&config, 1).unwrap()).get("a").await.unwrap_err();
        assert_eq!(refused.class, Class::Retry);
        assert!(refused.message.contains("invalid peer certificate"), "{refused}");
    });
}

/// TLS on one side alone.
fn wrong_scheme() {
    let (plain, encrypted) = (Server::single(), Server::with_client_certificates());
    block_on(async {
        let said = async |config: Config| {
            let refused = Store::new(Client::new(&config, 1).unwrap()).get("a").await.unwrap_err();
            assert_eq!(refused.class, Class::Retry, "somebody may mend the member: {refused}");
            refused.message
        };
        let endpoints = plain.endpoints().replace("http:", "https:");
        let tls = Config { endpoints, tls: encrypted.pki().client().read(), ..Config::default() };
        let over = said(tls).await;
        assert!(over.contains("does the member speak TLS? without it its URL begins with http://"), "{over}");
        let endpoints = encrypted.endpoints().replace("https:", "http:");
        let under = said(Config { endpoints, ..Config::default() }).await;
        assert!(under.contains("does the member speak TLS? with it its URL begins with https://"), "{under}");
        // Nobody who listens nowhere is asked so.
        let nobody = format!("http://{}", free_addresses(1)[0]);
        let silent = said(Config { endpoints: nobody.clone(), ..Config::default() }).await;
        let nobody = nobody.replace("http:", "https:");
        let tls = Config { endpoints: nobody, tls: encrypted.pki().client().read(), ..Config::default() };
        assert!(![silent, said(tls).await].concat().contains("speak TLS"));
    });
}

async fn with_users(server: &Server) {
    let mut raw = server.raw().await;
    for user in ["root", "netd"] {
        raw.user_add(user, "hunter2", None).await.unwrap();
    }
    raw.role_add("network").await.unwrap();
    let below = Permission::new(PermissionType::Readwrite, "/coreos.com/network/").with_prefix();
    raw.role_grant_permission("network", below).await.unwrap();
    raw.user_grant_role("netd", "network").await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.auth_enable().await.unwrap();
}

/// JWT tokens that are good for a second, used for several.
fn signed_tokens() {
    let server = Server::with_signed_tokens("1s");
    block_on(async {
        with_users(&server).await;
        let config = Config { username: Some("netd".into()), password: Some("hunter2".into()), ..server.config() };
        let store = Store::new(Client::new(&config, 1).unwrap());
        let mut consumer = Consumer::of(store.client(), &subnets());
        consumer.listed().await;
        let begin = Instant::now();
        let mut written = 0;
        while begin.elapsed() < Duration::from_secs(4) {
            store.put(&subnets().key(&written.to_string()), b"x", None).await.expect("a token is asked for anew");
            written += 1;
        }
        consumer.until("everything", |c| c.snapshot.entries().len() == written).await;
        // What breaks the watch while its token is over.
        drop(consumer);
        let mut consumer = Consumer::of(store.client(), &subnets());
        consumer.until("everything again", |c| c.snapshot.entries().len() == written).await;
        store.put(&subnets().key("last"), b"x", None).await.unwrap();
        consumer.until("a change", |c| c.knows("last")).await;
    });
}

fn users() {
    let mut server = Server::single();
    block_on(async {
        with_users(&server).await;
        let config = |name: &str, password: &str| Config {
            username: Some(name.into()),
            password: Some(password.into()),
            ..server.config()
        };
        let store = Store::new(Client::new(&config("netd", "hunter2"), 1).unwrap());
        store.put(&subnets().key("a"), b"x", None).await.unwrap();
        let mut consumer = Consumer::of(store.client(), &subnets());
        consumer.listed().await;
        store.put(&subnets().key("b"), b"x", None).await.unwrap();
        consumer.until("a change with a token", |c| c.knows("b")).await;

        let outside = store.get("/elsewhere").await.unwrap_err();
        assert!(outside.class == Class::Refuse && outside.message.contains("permission denied"), "{outside}");
        assert!(outside.message.contains("etcdctl role grant-permission"), "{outside}");
        let nobody = Store::new(server.client()).get("x").await.unwrap_err();
        assert!(nobody.message.contains("user name is empty; the store has users"), "{nobody}");
        let wrong = Store::new(Client::new(&config("netd", "s3cret"), 1).unwrap()).get("x").await.unwrap_err();
        assert!(wrong.class == Class::Refuse && wrong.message.contains("etcdctl user passwd"), "{wrong}");
        assert!(!format!("{wrong:?} {wrong}").contains("s3cret"));

        // A restarted member has forgotten every token it gave out.
        server.kill(0);
        tokio::task::block_in_place(|| server.respawn(0));
        eventually("a new token", || async { store.put(&subnets().key("c"), b"x", None).await.is_ok() }).await;
        consumer.until("the watch as well", |c| c.knows("c")).await;
    });
}

/// An operator who sets user and password before `etcdctl auth enable`, or takes users away for a while.
fn users_later() {
    let server = Server::single();
    block_on(async {
        let config = Config { username: Some("netd".into()), password: Some("hunter2".into()), ..server.config() };
        let store = Store::new(Client::new(&config, 1).unwrap());
        store.put(&subnets().key("a"), b"x", None).await.expect("a store without users asks for none");
        let mut consumer = Consumer::of(store.client(), &subnets());
        consumer.listed().await;
        with_users(&server).await;
        store.put(&subnets().key("b"), b"x", None).await.expect("a token is asked for");
        consumer.until("a change", |c| c.knows("b")).await;
        let root = etcd_client::ConnectOptions::new().with_user("root", "hunter2");
        let mut raw = etcd_client::Client::connect([server.endpoints()], Some(root)).await.unwrap();
        raw.auth_disable().await.unwrap();
        store.put(&subnets().key("c"), b"x", None).await.expect("a token too many is nothing");
        let fresh = Store::new(Client::new(&config, 1).unwrap());
        fresh.put(&subnets().key("d"), b"x", None).await.expect("none is asked for again");
        consumer.until("both", |c| c.knows("c") && c.knows("d")).await;
    });
}

/// Signed tokens hold the revision of users and roles, and are refused after the next change of one.
fn users_changed() {
    let server = Server::with_signed_tokens("1h");
    block_on(async {
        with_users(&server).await;
        let config = Config { username: Some("netd".into()), password: Some("hunter2".into()), ..server.config() };
        let store = Store::new(Client::new(&config, 1).unwrap());
        store.put(&subnets().key("a"), b"x", None).await.unwrap();
        let root = etcd_client::ConnectOptions::new().with_user("root", "hunter2");
        let mut raw = etcd_client::Client::connect([server.endpoints()], Some(root)).await.unwrap();
        raw.user_add("another", "hunter2", None).await.unwrap();
        store.get(&subnets().key("a")).await.expect("a token of now is asked for");
        store.put(&subnets().key("b"), b"x", None).await.expect("and good for writes");
    });
}
