//! Rows as an operator reads them: one line each, what it is and how it is.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use netstate::ipvs::{RealServer, Row, VirtualServer, VirtualServerKey};
use netstate::nft::{self, Element, Table};
use netstate::{BridgeOptions, IfName, IpipOptions, Link, LinkKind, Protocol, VxlanExtra, VxlanOptions, row_text};

fn link(kind: LinkKind) -> Link {
    Link { kind, mtu: None, mac: None, up: true, master: None }
}

#[test]
fn links_say_their_kind_and_what_is_set() {
    let name: IfName = "flannel.1".parse().unwrap();
    let (local, lower) = (Some([10, 4, 7, 21].into()), "eth0".parse().ok());
    let options = VxlanOptions { local, lower, ..VxlanOptions::new(1, 8472) };
    let extras = [VxlanExtra::SourcePorts(1024, 2048), VxlanExtra::L2Miss].into();
    let other = VxlanOptions { learning: true, ttl: 1, extras, ..VxlanOptions::new(7, 4789) };
    assert_eq!(other.to_string(), "id 7 dstport 4789 learning ttl 1 srcport 1024 2048 l2miss");
    let mac = "02:00:00:00:00:21".parse().ok();
    let vxlan = Link { mtu: Some(1450), mac, ..link(LinkKind::Vxlan(options)) };
    assert_eq!(
        row_text(&name, &vxlan),
        "flannel.1 vxlan id 1 dstport 8472 local 10.4.7.21 dev eth0 nolearning mtu 1450 lladdr 02:00:00:00:00:21 up"
    );
    let bridge = link(LinkKind::Bridge(BridgeOptions { vlan_filtering: true }));
    assert_eq!(bridge.to_string(), "bridge vlan_filtering 1 up");
    let down = Link { up: false, master: Some("cbr0".parse().unwrap()), ..link(LinkKind::Other(String::new())) };
    assert_eq!(down.to_string(), "device master cbr0 down");
    let ipip = link(LinkKind::Ipip(IpipOptions { local: Some([10, 4, 7, 21].into()), remote: None }));
    assert_eq!(ipip.to_string(), "ipip local 10.4.7.21 remote any up");
    assert_eq!(link(LinkKind::Wireguard).to_string(), "wireguard up");
}

#[test]
fn servers_say_scheduler_and_weight() {
    let service = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
    let server = VirtualServer::new("rr".to_owned(), Some(10800.into()));
    let row = Row::from(server);
    assert_eq!(row_text(&service, &row), "tcp 192.168.0.10:80 scheduler rr persistent 10800");
    let reals = [2, 3].map(|last| (([172, 7, 21, last], 80).into(), RealServer::new(last.into())));
    assert_eq!(
        row_text(&service, &row.with(reals.into_iter().collect())),
        "tcp 192.168.0.10:80 scheduler rr persistent 10800 -> 172.7.21.2:80 weight 2, 172.7.21.3:80 weight 3"
    );
}

#[test]
fn nft_rows_fit_on_a_line() {
    assert_eq!(nft::Row::from(Table { dormant: true, ..Table::default() }).to_string(), "{ flags dormant }");
    assert_eq!(nft::Row::Element(Element::member()).to_string(), "");
    let named = Element { comment: Some("default/web".into()), ..Element::member() };
    assert_eq!(nft::Row::Element(named).to_string(), "comment \"default/web\"");
}
