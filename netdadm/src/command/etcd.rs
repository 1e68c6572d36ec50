//! `etcd`: a member is added, removed or replaced.
//!
//! Invariants: everything is said before anything is asked, and asked before anything is changed; what is asked for again and is done
//! already is a success.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::args::{EtcdVerb, Membership};
use super::{apply, said, verify};
use crate::members::{Order, Place, Session, Step, View, carry, places, plan};
use crate::render::DATA;
use crate::topology::Topology;

/// Runs the verb.
///
/// # Errors
/// When it would lose the quorum, is not agreed to, or a step is not done in its time.
pub(super) fn run(asked: &EtcdVerb, out: &mut impl Write) -> Result<ExitCode, String> {
    let (EtcdVerb::Add(common) | EtcdVerb::Remove(common) | EtcdVerb::Replace { common, .. }) = asked;
    let Some(topology) = verify::topology(&common.members.file, out)? else { return Ok(ExitCode::FAILURE) };
    let order = order(asked, &topology)?;
    let session = Session::open(&topology, &common.members.output, Duration::from_secs(common.members.timeout.into()))?;
    let view = session.view()?;
    let steps = plan(&view, &order)?;
    said(out, &unknown(&order, &view).unwrap_or_default())?;
    if steps.is_empty() {
        let text = format!("{}: nothing is left to do\n", title(&order));
        return said(out, &(text + &afterwards(&order, &common.members.output)));
    }
    said(out, &announced(&order, &steps, common))?;
    if !common.yes && !apply::answer("do it?")? {
        return Err("nothing was changed".to_owned());
    }
    carry(&session, &order, &steps, Duration::from_secs(common.wait.into()), out)?;
    said(out, &format!("done\n{}", afterwards(&order, &common.members.output)))
}

fn order(asked: &EtcdVerb, topology: &Topology) -> Result<Order, String> {
    let place = |host: &str| -> Result<Place, String> {
        let found = places(topology).into_iter().find(|place| place.host == host);
        found.ok_or_else(|| format!("the topology has no host {host} with the role etcd; write it there first"))
    };
    Ok(match asked {
        EtcdVerb::Add(common) => Order::Add(place(&common.name)?),
        EtcdVerb::Remove(common) => Order::Remove(common.name.clone()),
        EtcdVerb::Replace { common, by } => {
            Order::Replace(common.name.clone(), place(by.as_ref().unwrap_or(&common.name))?)
        }
    })
}

/// Of a member that goes: what is said where none is called so, which may be a mistake.
fn unknown(order: &Order, view: &View) -> Option<String> {
    let (Order::Remove(name) | Order::Replace(name, _)) = order else { return None };
    let is_new = matches!(order, Order::Replace(old, place) if *old == place.host);
    if is_new || view.member(name).is_some() {
        return None;
    }
    let there = view.members.iter().map(|member| format!("{} ({:x})", member.name(), member.entry.id));
    let there = there.collect::<Vec<_>>().join(", ");
    Some(format!("no member is called {name}: it is gone already, or the name is another; there are {there}\n"))
}

fn title(order: &Order) -> String {
    match order {
        Order::Add(place) => format!("add a member of etcd on {}", place.host),
        Order::Remove(name) => format!("remove the member {name} of etcd"),
        Order::Replace(old, place) if *old == place.host => {
            format!("replace the member {old} of etcd, whose data are lost")
        }
        Order::Replace(old, place) => format!("replace the member {old} of etcd by one on {}", place.host),
    }
}

fn announced(order: &Order, steps: &[Step], asked: &Membership) -> String {
    // Writing into a text does not fail.
    let mut text = format!("{}:\n", title(order));
    for (number, step) in steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {step}", number.saturating_add(1));
        if let Step::Start { host } = step {
            let _ = writeln!(
                text,
                "     on {host}, while this waits (at most {} s): move {DATA} aside if it is there, then\n     netdadm apply --host {host} {}",
                asked.wait,
                asked.members.output.display()
            );
        }
    }
    text
}

/// What is left to do elsewhere.
fn afterwards(order: &Order, out: &Path) -> String {
    let out = out.display();
    let rest = format!(
        "then `netdadm render -o {out}` and `netdadm apply` on every host that it names, so that clients know the members\n"
    );
    match order {
        Order::Add(_) => rest,
        Order::Remove(name) => gone(name) + &format!("take the role etcd from {name} in the topology, ") + &rest,
        Order::Replace(old, place) if *old == place.host => String::new(),
        Order::Replace(old, _) => gone(old) + &format!("take the role etcd from {old} in the topology, ") + &rest,
    }
}

fn gone(name: &str) -> String {
    format!(
        "on {name}, if it lives: systemctl disable --now etcd.service, and move {DATA} aside: its data must never be used again\n"
    )
}

#[cfg(test)]
mod tests {
    use cluster::etcd::MemberEntry;

    use super::super::args::Members;
    use super::*;
    use crate::command;
    use crate::members::Member;

    #[test]
    fn a_step_may_take_ten_minutes_unless_somebody_says_otherwise() {
        let cases = [
            (&["etcd", "add", "a"][..], 600),
            (&["etcd", "replace", "a", "--wait", "7"], 7),
            (&["node", "add", "a"], 600),
            (&["node", "remove", "a"], 600),
        ];
        for (words, wait) in cases {
            let all = ["netdadm"].iter().chain(words).chain(&["-f", "cluster.yaml", "-o", "out"]);
            let found = command::args::command().try_get_matches_from(all).unwrap();
            let (_, verb) = found.subcommand().and_then(|(_, verb)| verb.subcommand()).unwrap();
            assert_eq!(verb.get_one::<u16>("wait"), Some(&wait), "{words:?}");
        }
    }

    #[test]
    fn hosts_that_are_no_members_and_folders_without_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        std::fs::write(&file, include_str!("../../../configs/clusters/reference.yaml")).unwrap();
        let run = |words: &[&str]| {
            let places = ["-f", file.to_str().unwrap(), "-o", "/nowhere"];
            let all = ["netdadm", "etcd"].iter().chain(words).chain(&places).map(Into::into);
            command::run(all, &mut Vec::new()).unwrap_err()
        };
        for words in [&["add", "hdss7-11"][..], &["replace", "hdss7-21", "--by", "hdss7-11"]] {
            assert_eq!(run(words), "the topology has no host hdss7-11 with the role etcd; write it there first");
        }
        assert!(run(&["remove", "hdss7-21"]).starts_with("/nowhere/pki/etcd/ca.crt is not there"));
    }

    #[test]
    fn a_name_that_no_member_has_is_spoken_of_with_those_that_there_are() {
        let entry = |id: u64, name: &str| MemberEntry { id, name: name.to_owned(), ..MemberEntry::default() };
        let member = |id, name| Member { entry: entry(id, name), host: None, status: Err(String::new()) };
        let view = View { members: vec![member(10, "a"), member(11, "b")] };
        let remove = |name: &str| unknown(&Order::Remove(name.to_owned()), &view);
        assert_eq!(
            remove("x").as_deref(),
            Some("no member is called x: it is gone already, or the name is another; there are a (a), b (b)\n")
        );
        assert_eq!((remove("a"), remove("b")), (None, None));
    }

    #[test]
    fn what_somebody_has_to_do_on_a_host_is_said_where_it_is_waited_for() {
        let place = Place {
            host: "b".to_owned(),
            peer: "https://b:2380".to_owned(),
            client: String::new(),
            joins: true,
            initial: Vec::new(),
        };
        let order = Order::Replace("a".to_owned(), place);
        let asked = Membership {
            name: "a".to_owned(),
            members: Members { file: "cluster.yaml".into(), output: "out".into(), timeout: 3 },
            wait: 300,
            yes: false,
        };
        assert_eq!(
            announced(&order, &[Step::Start { host: "b".to_owned() }], &asked),
            "replace the member a of etcd by one on b:\n  1. wait until the member of b has started with an empty folder\n     on b, while this waits (at most 300 \
             s): move /var/lib/etcd/default.etcd aside if it is there, then\n     netdadm apply --host b out\n"
        );
        let text = afterwards(&order, Path::new("out"));
        assert!(text.starts_with("on a, if it lives: systemctl disable --now etcd.service"), "{text}");
        assert!(text.contains("take the role etcd from a in the topology, then `netdadm render -o out`"), "{text}");
    }
}
