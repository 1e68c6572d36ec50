//! What taking rules and chains away means in messages.

use super::*;

fn name_of(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key() -> TableKey {
    TableKey { family: netstate::nft::Family::Ip, name: name_of("nat") }
}

fn rule_in(chain: &str, comment: Option<&str>, target: Option<&str>, handle: u8) -> ForeignRule {
    ForeignRule {
        chain: name_of(chain),
        comment: comment.map(str::to_owned),
        target: target.map(name_of),
        handle: vec![0, 0, 0, 0, 0, 0, 0, handle],
    }
}

/// The rules of a host-port plugin of old: a jump from the hook, one chain for each Pod.
fn rules() -> Vec<ForeignRule> {
    vec![
        rule_in("PREROUTING", Some("dnat entry point"), Some("CNI-HOSTPORT-DNAT"), 1),
        rule_in("CNI-HOSTPORT-DNAT", Some("for pod a"), Some("CNI-DN-a"), 2),
        rule_in("CNI-HOSTPORT-DNAT", Some("for pod b"), Some("CNI-DN-b"), 3),
        rule_in("CNI-DN-a", None, None, 4),
        rule_in("CNI-DN-b", None, None, 5),
        rule_in("POSTROUTING", Some("somebody"), None, 6),
    ]
}

/// Messages as `-rule HANDLE`, `-rules CHAIN`, `-chain CHAIN`.
fn taken(chains: &[&str], fate: impl Fn(&ForeignRule) -> Fate) -> Vec<String> {
    let messages = removal(&key(), &rules(), chains.iter().map(|text| name_of(text)).collect(), fate);
    let describe = |message: &Message| {
        let attributes = &message.body[4..];
        assert_eq!(text(attributes, table::NAME).unwrap(), "nat");
        match (message.kind & 0xff, attribute::find(attributes, self::rule::HANDLE)) {
            (kind::DELRULE, Some(handle)) => format!("-rule {}", handle[7]),
            (kind::DELRULE, None) => format!("-rules {}", text(attributes, self::rule::CHAIN).unwrap()),
            (kind::DELCHAIN, _) => format!("-chain {}", text(attributes, chain::NAME).unwrap()),
            other => panic!("{other:?}"),
        }
    };
    messages.iter().map(describe).collect()
}

#[test]
fn nothing_picked_is_nothing_taken() {
    assert_eq!(taken(&[], |_| Fate::Stay), Vec::<String>::new());
}

#[test]
fn rule_goes_alone_or_with_the_chain_that_it_leads_to() {
    let of_a = |rule: &ForeignRule| rule.comment.as_deref() == Some("for pod a");
    assert_eq!(taken(&[], |rule| if of_a(rule) { Fate::Go } else { Fate::Stay }), ["-rule 2"]);
    assert_eq!(
        taken(&[], |rule| if of_a(rule) { Fate::GoWithTarget } else { Fate::Stay }),
        ["-rule 2", "-rules CNI-DN-a", "-chain CNI-DN-a"]
    );
}

#[test]
fn chain_goes_with_every_rule_that_leads_to_it() {
    assert_eq!(
        taken(&["CNI-HOSTPORT-DNAT"], |_| Fate::Stay),
        ["-rule 1", "-rules CNI-HOSTPORT-DNAT", "-chain CNI-HOSTPORT-DNAT"]
    );
    // All of it: each chain is emptied before one is taken away, for they may lead to each other.
    assert_eq!(
        taken(&["CNI-HOSTPORT-DNAT", "CNI-DN-a", "CNI-DN-b"], |_| Fate::Stay),
        [
            "-rule 1",
            "-rules CNI-DN-a",
            "-rules CNI-DN-b",
            "-rules CNI-HOSTPORT-DNAT",
            "-chain CNI-DN-a",
            "-chain CNI-DN-b",
            "-chain CNI-HOSTPORT-DNAT",
        ]
    );
}

fn attributes(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.put_str(self::rule::CHAIN, "FORWARD").put(self::rule::HANDLE, &[9; 8]);
    fill(&mut writer);
    writer.finish()
}

fn comment_of_iptables(list: &mut Writer, said: &str) {
    list.nest(LIST_ELEM, |element| {
        element.put_str(1, "match").nest(2, |data| {
            let mut info = said.as_bytes().to_vec();
            info.resize(256, 0);
            data.put_str(MATCH_NAME, COMMENT).put(MATCH_INFO, &info);
        });
    });
}

#[test]
fn comment_is_read_in_either_form_and_the_tools_counts_first() {
    let said = |fill: &dyn Fn(&mut Writer)| foreign_rule(&attributes(|body| fill(body))).unwrap().comment;
    assert_eq!(said(&|_| {}), None);
    let tool = |body: &mut Writer| {
        body.put(self::rule::USERDATA, &crate::nft::wire::comment_bytes("by nft"));
    };
    let iptables = |body: &mut Writer| {
        body.nest(self::rule::EXPRESSIONS, |list| comment_of_iptables(list, "by iptables"));
    };
    assert_eq!(said(&tool).as_deref(), Some("by nft"));
    assert_eq!(said(&iptables).as_deref(), Some("by iptables"));
    let both = |body: &mut Writer| {
        tool(body);
        iptables(body);
    };
    assert_eq!(said(&both).as_deref(), Some("by nft"));
}

#[test]
fn rule_without_chain_or_handle_cannot_be_picked() {
    assert!(foreign_rule(&attributes(|_| {})).is_some());
    let mut no_handle = Writer::default();
    no_handle.put_str(self::rule::CHAIN, "FORWARD");
    assert!(foreign_rule(&no_handle.finish()).is_none());
    let mut no_chain = Writer::default();
    no_chain.put(self::rule::HANDLE, &[9; 8]);
    assert!(foreign_rule(&no_chain.finish()).is_none());
}
