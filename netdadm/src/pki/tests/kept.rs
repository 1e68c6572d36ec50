//! What is there and good is kept; what is not is made anew, and why.

use super::*;

/// What becomes of a pair that was written for `before`, `days` ago, when `after` is asked for.
fn again(before: &Request, after: &Request, days: i64) -> (bool, Option<Reason>) {
    let folder = Folder::new();
    write(folder.path(), &mut Store::open(None, None, NOW.plus_days(-days)).unwrap(), before);
    let mut store = Store::open(Some(folder.path()), None, NOW).unwrap();
    let pair = store.issue(after).unwrap().clone();
    let same = fs::read_to_string(store::suffixed(&store::place(folder.path(), before), "crt")).unwrap();
    assert_eq!(store.issued().len(), usize::from(same != pair.certificate_pem), "{:?}", store.issued());
    (same == pair.certificate_pem, store.issued().first().map(|issued| issued.reason.clone()))
}

#[test]
fn what_is_good_stays_byte_for_byte() {
    assert_eq!(again(&member(), &member(), 0), (true, None));
    assert_eq!(again(&kubelet(), &kubelet(), 243), (true, None));
}

#[test]
fn what_differs_is_made_anew_with_its_reason() {
    let other = |change: &dyn Fn(&mut Request)| {
        let mut request = member();
        change(&mut request);
        again(&member(), &request, 0).1.map(|reason| reason.to_string()).unwrap_or_default()
    };
    assert_eq!(other(&|one| _ = one.names.insert("m1.host.com".to_owned())), "it lacks m1.host.com");
    assert_eq!(other(&|one| _ = one.addresses.pop_last()), "it has also ::1");
    assert_eq!(other(&|one| one.names = ["m2".to_owned()].into()), "it lacks m2; it has also localhost, m1");
    assert_eq!(other(&|one| one.usage = Usage::Server), "it is for other uses");
    assert_eq!(other(&|one| one.common_name = "m2".to_owned()), "it names CN=m1");
    assert_eq!(other(&|one| one.organization = Some("system:masters".to_owned())), "it names CN=m1");
    assert_eq!(other(&|one| one.authority = Ca::Cluster), "another CA signed it");
    assert_eq!(
        again(&kubelet(), &kubelet(), 244).1.unwrap().to_string(),
        "less than a third of its life is left, 121 days"
    );
    assert_eq!(again(&kubelet(), &kubelet(), 366).1, Some(Reason::Ended(NOW.plus_days(-1))));
}

/// As of a host whose clock was ahead.
#[test]
fn what_has_not_begun_is_made_anew() {
    let folder = Folder::new();
    write(folder.path(), &mut Store::open(None, None, NOW).unwrap(), &member());
    let ahead = Store::open(Some(folder.path()), None, NOW.plus_days(1)).unwrap();
    write(folder.path(), &mut ahead.renewing(Renewal::All), &member());
    let mut store = Store::open(Some(folder.path()), None, NOW).unwrap();
    store.issue(&member()).unwrap();
    let reason = store.issued().first().map(|issued| issued.reason.to_string());
    assert!(reason.as_ref().is_some_and(|reason| reason.starts_with("it is not valid before 2")), "{reason:?}");
}

#[test]
fn half_a_pair_and_a_key_of_another_are_made_anew() {
    let folder = Folder::new();
    write(folder.path(), &mut Store::open(None, None, NOW).unwrap(), &member());
    let place = store::place(folder.path(), &member());
    let (certificate, key) = (store::suffixed(&place, "crt"), store::suffixed(&place, "key"));
    let reason = || {
        let mut store = Store::open(Some(folder.path()), None, NOW).unwrap();
        store.issue(&member()).unwrap();
        store.issued().first().map(|issued| issued.reason.to_string())
    };
    assert_eq!(reason(), None);
    fs::write(&key, Key::generate().unwrap().pem().expose()).unwrap();
    assert_eq!(reason().unwrap(), "its key does not fit");
    fs::remove_file(&key).unwrap();
    assert_eq!(reason().unwrap(), "there is none");
    fs::write(&key, "garbage").unwrap();
    assert!(reason().unwrap().starts_with("it has no PEM block `PRIVATE KEY`"), "{:?}", reason());
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(reason().unwrap().starts_with("it is no X.509 certificate"), "{:?}", reason());
}

#[test]
fn what_is_asked_for_is_made_anew_although_it_is_good() {
    let folder = Folder::new();
    write(folder.path(), &mut Store::open(None, None, NOW).unwrap(), &member());
    let asked = |renewal: Renewal| {
        let mut store = Store::open(Some(folder.path()), None, NOW).unwrap().renewing(renewal);
        store.issue(&member()).unwrap();
        store.issued().first().map(|issued| issued.reason.clone())
    };
    assert_eq!(asked(Renewal::Due), None);
    assert_eq!(asked(Renewal::All), Some(Reason::Asked));
    assert_eq!(asked(Renewal::Only(vec!["etcd/server".to_owned()])), Some(Reason::Asked));
    assert_eq!(asked(Renewal::Only(vec!["m1: etcd/server".to_owned()])), Some(Reason::Asked));
    assert_eq!(asked(Renewal::Only(vec!["m2: etcd/server".to_owned(), "etcd".to_owned()])), None);
}

#[test]
fn each_host_has_a_pair_of_its_own() {
    let mut store = Store::open(None, None, NOW).unwrap();
    let first = store.issue(&member()).unwrap().clone();
    let other = Request { host: Some("m2".to_owned()), ..member() };
    assert_ne!(store.issue(&other).unwrap(), &first);
    assert_eq!(store.issue(&member()).unwrap(), &first);
}
