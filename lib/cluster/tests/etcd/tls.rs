//! TLS with and without a client certificate, and etcd's own users.

use cluster::Class;
use cluster::etcd::{Client, Config, Store};
use etcd_client::{Permission, PermissionType};

use crate::consumer::{Consumer, eventually};
use crate::server::{Server, read};
use crate::{Case, block_on, subnets};

pub(crate) const CASES: &[Case] = &[
    ("client_certificate_opens_a_server_that_asks_for_one", mutual_tls),
    ("wrong_ca_is_told_and_nothing_is_sent", wrong_ca),
    ("user_and_password_open_a_store_with_users", users),
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

        let without = Config { cert_file: None, key_file: None, ..server.config() };
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
        let config = Config { ca_file: Some(server.pki().path("stranger.pem")), ..server.config() };
        let refused = Store::new(Client::new(&config, 1).unwrap()).put("a", b"x", None).await.unwrap_err();
        assert!(refused.message.contains("invalid peer certificate"), "{refused}");
        assert_eq!(server.store().get("a").await.unwrap(), None);
    });
}

fn users() {
    let mut server = Server::single();
    block_on(async {
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
        let wrong = Store::new(Client::new(&config("netd", "s3cret"), 1).unwrap()).get("x").await.unwrap_err();
        assert_eq!(wrong.class, Class::Refuse, "{wrong}");
        assert!(!format!("{wrong:?} {wrong}").contains("s3cret"));

        // A restarted member has forgotten every token it gave out.
        server.kill(0);
        tokio::task::block_in_place(|| server.respawn(0));
        eventually("a new token", || async { store.put(&subnets().key("c"), b"x", None).await.is_ok() }).await;
        consumer.until("the watch as well", |c| c.knows("c")).await;
    });
}
