//! Plans for members that serve, are silent, learn or have not started.

use cluster::etcd::{MemberEntry, MemberStatus};

use super::*;

/// `a* b c!`: `a` leads, `c` is silent; `d?` learns, `e-` has not started.
fn view(text: &str) -> View {
    let leader = text.split(' ').position(|word| word.contains('*')).map_or(0, |place| place as u64 + 1);
    let member = |(place, word): (usize, &str)| {
        let (id, name) = (place as u64 + 1, word[..1].to_owned());
        let status = MemberStatus { id, leader, applied: 10 - id, ..MemberStatus::default() };
        let silent = word.contains(['!', '-']);
        Member {
            entry: MemberEntry {
                id,
                name: if word.contains('-') { String::new() } else { name.clone() },
                peer_urls: vec![format!("https://{name}:2380")],
                client_urls: Vec::new(),
                is_learner: word.contains('?'),
            },
            host: Some(name),
            status: if silent { Err("no answer".to_owned()) } else { Ok(status) },
        }
    };
    View { members: text.split(' ').enumerate().map(member).collect() }
}

/// A host that is rendered to know these.
fn place(host: &str, initial: &str) -> Place {
    let url = |name: &str| format!("https://{name}:2380");
    let initial = initial.split(' ').map(url).collect();
    Place { host: host.to_owned(), peer: url(host), client: String::new(), joins: true, initial }
}

fn planned(members: &str, order: &Order) -> String {
    match plan(&view(members), order) {
        Ok(steps) => steps.iter().map(|step| step.to_string() + "\n").collect(),
        Err(reason) => format!("refused: {reason}"),
    }
}

#[test]
fn a_new_member_learns_before_it_votes() {
    let order = Order::Add(place("d", "a b c d"));
    assert_eq!(
        planned("a* b c", &order),
        "add d at https://d:2380 as a learner, which has no vote\n\
         wait until the member of d has started with an empty folder\n\
         give d a vote once it has caught up: 4 members vote and survive the loss of one, no more than one less would\n"
    );
    assert_eq!(
        planned("a* b c d?-", &order).lines().map(|line| &line[..4]).collect::<Vec<_>>(),
        ["wait", "give"],
        "what was done is not done again"
    );
    assert!(planned("a* b c d?", &order).starts_with("give d a vote"));
    assert_eq!(planned("a* b c d", &order), "");
    assert_eq!(planned("a* b c d-", &order), "wait until the member of d has started with an empty folder\n");
}

#[test]
fn nobody_is_added_that_etcd_would_not_take_in() {
    let order = Order::Add(place("d", "a b c d"));
    let silent = planned("a* b c!", &order);
    assert!(silent.starts_with("refused: c does not serve (no answer), and etcd adds nobody while"), "{silent}");
    assert!(planned("a* b c e?", &order).starts_with("refused: e learns still"));
    assert!(planned("a* b c d!", &order).contains("`netdadm etcd replace d` if it does not come back"));
    let fewer = planned("a* b c", &Order::Add(place("d", "a b d")));
    assert!(
        fewer.contains("the members will be https://a:2380 https://b:2380 https://c:2380 https://d:2380, and"),
        "{fewer}"
    );
    let alone = Place { joins: false, ..place("d", "a b c d") };
    assert!(planned("a* b c", &Order::Add(alone)).contains("hosts.d.joins is not true"));
    for nobody in ["a b c", "a*! b c"] {
        assert!(planned(nobody, &order).starts_with("refused: no member of etcd leads"), "{nobody}");
    }
}

#[test]
fn the_quorum_is_never_removed_and_who_leads_goes_last() {
    let remove = |members: &str, name: &str| planned(members, &Order::Remove(name.to_owned()));
    assert_eq!(
        remove("a* b c", "b"),
        "remove the member b (2): 2 members vote and survive the loss of none, no more than one less would\n"
    );
    assert!(remove("a* b c", "a").starts_with("have b lead\nremove the member a (1): "));
    assert_eq!(
        remove("a* b!", "a"),
        "refused: without a 0 of 1 members would serve, and 1 must: the quorum would be lost; bring b back first"
    );
    assert_eq!(remove("a* b", "b"), "remove the member b (2): 1 member votes and survives the loss of none\n");
    assert_eq!(remove("a*", "a"), "refused: a is the only member: without it there is no etcd");
    let lost = remove("a* b c!", "b");
    assert_eq!(
        lost,
        "refused: without b 1 of 2 members would serve, and 2 must: the quorum would be lost; bring c back first"
    );
    assert!(remove("a* b c!", "c").starts_with("remove the member c (3)"));
    assert!(remove("a* b c d e! f?", "f").starts_with("remove the member f (6)"));
    assert_eq!(remove("a* b c", "x"), "", "what is gone is gone");
}

#[test]
fn a_dead_member_is_removed_first_and_a_living_one_last() {
    let same = Order::Replace("c".to_owned(), place("c", "a b c"));
    let verbs = |members: &str, order: &Order| -> Vec<String> {
        planned(members, order).lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(verbs("a* b c!", &same), ["remove", "add", "wait", "give"]);
    assert_eq!(verbs("a* b", &same), ["add", "wait", "give"]);
    assert_eq!(verbs("a* b c?-", &same), ["wait", "give"]);
    assert_eq!(verbs("a* b c?", &same), ["give"]);
    assert!(verbs("a* b c", &same).is_empty());
    let other = Order::Replace("a".to_owned(), place("d", "a b c d"));
    assert_eq!(verbs("a* b c", &other), ["add", "wait", "give", "have", "remove"]);
    assert_eq!(verbs("a b* c d", &other), ["remove"]);
    assert!(
        planned("a* b c", &other).ends_with("remove the member a (1): 3 members vote and survive the loss of one\n")
    );
    assert!(verbs("b* c d", &other).is_empty());
    let other = Order::Replace("a".to_owned(), place("d", "b c d"));
    // A checked topology has an odd number of members, and so not the one that goes.
    assert_eq!(verbs("a* b c", &other), ["have", "remove", "add", "wait", "give"]);
    assert_eq!(verbs("b* c", &other), ["add", "wait", "give"]);
    assert_eq!(verbs("a! b* c", &other), ["remove", "add", "wait", "give"]);
    assert_eq!(verbs("a! b* c!", &other), ["refused:"]);
}

#[test]
fn of_members_that_are_called_the_same_none_is_chosen() {
    let mut view = view("a* b c d");
    for (member, host) in view.members[2..].iter_mut().zip([Some("c"), None]) {
        (member.entry.name, member.host) = ("c".to_owned(), host.map(str::to_owned));
    }
    let orders = [
        Order::Remove("c".to_owned()),
        Order::Replace("c".to_owned(), place("c", "a b c")),
        Order::Replace("c".to_owned(), place("e", "a b c d e")),
        Order::Add(place("c", "a b c d")),
    ];
    for order in &orders {
        let refused = plan(&view, order).unwrap_err();
        assert_eq!(refused, "c is the name of the members 3, 4: remove the one that is too much by its id");
    }
    // A host's member is called as the host is, and one of no host by its own name alone.
    view.members[0].entry.name = "c".to_owned();
    assert_eq!(view.called("c").count(), 2);
    assert_eq!((view.called("a").count(), view.called("d").count(), view.called("3").count()), (1, 0, 1));
    let by_id = plan(&view, &Order::Remove("4".to_owned())).unwrap();
    assert_eq!(by_id, [Step::Remove { name: "c".to_owned(), id: 4, voters: 3 }]);
}

/// Carries a plan out on a value, as etcd would, and asks for the rest after every step.
#[test]
fn no_step_of_any_plan_leaves_fewer_members_than_a_quorum() {
    let old = ["a", "b", "c"];
    let cases = ["a* b c", "a b* c!", "a! b* c", "a* b c! d e", "a b c d* e!", "a* b"];
    let orders = cases.iter().flat_map(|members| old.iter().map(move |old| (*members, *old)));
    let mut finished = 0;
    for ((members, old), knows_old) in orders.flat_map(|order| [(order, true), (order, false)]) {
        let mut now = view(members);
        let names: Vec<String> = now.members.iter().map(Member::name).collect();
        let known: Vec<&str> = names.iter().map(String::as_str).filter(|name| knows_old || *name != old).collect();
        let order = Order::Replace(old.to_owned(), place("x", &format!("{} x", known.join(" "))));
        let Ok(mut steps) = plan(&now, &order) else { continue };
        let mut taken = 0;
        while let Some(step) = steps.first() {
            take(&mut now, step);
            let serving = now.voters().filter(|member| member.serves()).count();
            assert!(serving >= quorum(voters(&now)), "{members} {old} {step}: {now:?}");
            steps = plan(&now, &order).unwrap();
            taken += 1;
            assert!(taken < 9, "{members} {old}: {steps:?}");
        }
        assert!(now.member("x").is_some_and(Member::serves) && now.member(old).is_none(), "{members} {old}");
        finished += 1;
    }
    assert!(finished > 10, "{finished}");
}

fn take(view: &mut View, step: &Step) {
    let leader = view.leader().unwrap().entry.id;
    match step {
        Step::Add { host, peer } => {
            assert!(view.voters().all(Member::serves), "etcd takes nobody in");
            let entry =
                MemberEntry { id: 99, peer_urls: vec![peer.clone()], is_learner: true, ..MemberEntry::default() };
            view.members.push(Member { entry, host: Some(host.clone()), status: Err("not started".to_owned()) });
        }
        Step::Start { host } => {
            let member = view.members.iter_mut().find(|member| member.host.as_ref() == Some(host)).unwrap();
            member.entry.name = host.clone();
            member.status = Ok(MemberStatus { id: 99, leader, applied: 1, ..MemberStatus::default() });
        }
        Step::Promote { host, .. } => {
            let member = view.members.iter_mut().find(|member| member.host.as_ref() == Some(host)).unwrap();
            assert!(member.serves());
            member.entry.is_learner = false;
        }
        Step::MoveLeader { id, .. } => {
            for status in view.members.iter_mut().filter_map(|member| member.status.as_mut().ok()) {
                status.leader = *id;
            }
        }
        Step::Remove { id, .. } => {
            assert_ne!(*id, leader, "the leader goes when it does not lead any more");
            *view = view.without(*id);
        }
    }
}
