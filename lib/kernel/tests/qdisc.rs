//! Queueing disciplines against the running kernel, with the tc tool as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{cases, ip, sh};
use kernel::Rtnl;
use kernel::qdisc::Qdisc;
use netstate::{IfName, MacAddr, TokenBucket};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

fn tc(args: &str) -> String {
    sh("tc", &args.split_whitespace().collect::<Vec<_>>())
}

fn index(name: &str) -> u32 {
    Rtnl::open().unwrap().link(&IfName::new(name).unwrap()).unwrap().unwrap().index
}

fn veth() -> u32 {
    ip("link add v0 mtu 1450 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
    index("v0")
}

/// The unit in which `tc_tbf_qopt.buffer` counts, as this kernel says.
fn tick_is_what_the_kernel_says() {
    let text = std::fs::read_to_string("/proc/net/psched").unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|word| u64::from_str_radix(word, 16).unwrap()).collect();
    // Nanoseconds in a microsecond, in a tick; ticks of the clock in a second.
    assert_eq!(numbers[..3], [1000, netstate::qdisc::NANOSECONDS_PER_TICK, 1_000_000]);
}

fn bucket_is_what_tc_shows_and_what_is_read_back() {
    let link = veth();
    let mut rtnl = Rtnl::open().unwrap();
    assert_eq!(rtnl.qdiscs(link).unwrap(), []);
    for (rate, burst, shown) in [
        (1_000_000, 100_000, " rate 8Mbit burst 100000b lat 25ms"),
        (1, 1, " rate 8bit burst 1b lat 0us"),
        (125_000, 536_870_911, " rate 1Mbit burst 34359738b lat 25ms"),
        (12_500_000_000, 25_000_000, " rate 100Gbit burst 25000000b lat 25ms"),
    ] {
        let bucket = TokenBucket::new(rate, burst).unwrap();
        rtnl.add_bucket(link, &bucket).unwrap();
        let text = tc("qdisc show dev v0");
        // Between them stands a count that is one more for each queue of the device, which are as many as processors.
        assert!(text.starts_with("qdisc tbf 1: root refcnt ") && text.contains(shown), "{text}");
        assert_eq!(rtnl.qdiscs(link).unwrap(), [Qdisc::Bucket(bucket)]);
        assert_eq!(rtnl.add_bucket(link, &bucket).unwrap_err().errno(), Some(libc::EEXIST));
        rtnl.remove_bucket(link).unwrap();
        rtnl.remove_bucket(link).unwrap();
        assert_eq!(rtnl.qdiscs(link).unwrap(), []);
    }
}

fn foreign_disciplines_stay() {
    let link = veth();
    let mut rtnl = Rtnl::open().unwrap();
    tc("qdisc add dev v0 root handle 7: pfifo limit 9");
    let bucket = TokenBucket::new(1000, 1000).unwrap();
    assert_eq!(rtnl.add_bucket(link, &bucket).unwrap_err().errno(), Some(libc::EEXIST));
    rtnl.remove_bucket(link).unwrap();
    rtnl.remove_ingress(link).unwrap();
    assert!(tc("qdisc show dev v0").contains("pfifo 7:"));
    assert_eq!(rtnl.qdiscs(link).unwrap(), [Qdisc::Other("pfifo".to_owned())]);
    ip("link del v0");
    rtnl.remove_bucket(link).unwrap();
    rtnl.remove_ingress(link).unwrap();
}

fn detour_is_what_tc_shows_and_what_is_read_back() {
    let link = veth();
    let mut rtnl = Rtnl::open().unwrap();
    let name = IfName::new("bwp0123456789ab").unwrap();
    let ifb = rtnl.create_ifb(&name, MAC, 1450).unwrap();
    assert_eq!(ifb, index("bwp0123456789ab"));
    assert_eq!(rtnl.create_ifb(&name, MAC, 1450).unwrap_err().errno(), Some(libc::EEXIST));
    let text = ip("-d link show bwp0123456789ab");
    assert!(
        text.contains(",UP,")
            && text.contains("mtu 1450")
            && text.contains("ifb ")
            && text.contains("02:00:00:00:00:07"),
        "{text}"
    );
    assert!(!text.contains("qlen"), "no queue of its own: {text}");
    assert_eq!(rtnl.redirects(link).unwrap(), Vec::<u32>::new());
    assert!(rtnl.redirect(link, ifb).is_err(), "needs the ingress hook");
    rtnl.add_ingress(link).unwrap();
    assert_eq!(rtnl.add_ingress(link).unwrap_err().errno(), Some(libc::EEXIST));
    assert_eq!(rtnl.redirects(link).unwrap(), Vec::<u32>::new());
    rtnl.redirect(link, ifb).unwrap();
    // Older ones mark a class that there is not.
    let shown = tc("filter show dev v0 ingress").replace("*flowid", "flowid");
    let lines: Vec<&str> = shown.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(
        lines[2..],
        [
            "filter parent ffff: protocol all pref 1 u32 chain 0 fh 800::800 order 2048 key ht 800 bkt 0 flowid 1:1 not_in_hw",
            "match 00000000/00000000 at 0",
            "action order 1: mirred (Egress Redirect to device bwp0123456789ab) stolen",
            "index 1 ref 1 bind 1",
        ]
    );
    assert_eq!(rtnl.redirects(link).unwrap(), [ifb]);
    assert_eq!(rtnl.qdiscs(link).unwrap(), [Qdisc::Ingress]);
    rtnl.remove_ingress(link).unwrap();
    rtnl.remove_ingress(link).unwrap();
    assert_eq!(tc("filter show dev v0 ingress"), "");
}

fn filters_that_match_less_are_no_detour() {
    let link = veth();
    let mut rtnl = Rtnl::open().unwrap();
    rtnl.create_ifb(&IfName::new("ifb7").unwrap(), MAC, 1450).unwrap();
    rtnl.add_ingress(link).unwrap();
    tc(
        "filter add dev v0 parent ffff: protocol ip u32 match ip dst 10.0.0.1/32 action mirred egress redirect dev ifb7",
    );
    tc("filter add dev v0 parent ffff: protocol ip u32 match u32 0 0 action mirred egress redirect dev ifb7");
    tc("filter add dev v0 parent ffff: protocol all u32 match u32 0 0 action mirred egress mirror dev ifb7");
    tc("filter add dev v0 parent ffff: protocol all u32 match u32 0 0 flowid 1:1");
    assert_eq!(rtnl.redirects(link).unwrap(), Vec::<u32>::new());
}

/// Sends `bytes` from the other namespace to this one over `addr`; answers how long that took.
fn transfer(from: &'static str, addr: &str, bytes: usize) -> Duration {
    let listener = TcpListener::bind((addr, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        kernel::Netns::open(std::path::Path::new(from)).unwrap().run(|| {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
            std::io::Write::write_all(&mut stream, &vec![7; bytes]).unwrap();
        })
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let received = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert_eq!(usize::try_from(received).unwrap(), bytes);
    sender.join().unwrap().unwrap();
    start.elapsed()
}

fn what_takes_the_detour_is_limited_and_counted() {
    // A namespace whose every packet comes in over v0.
    let (sender, path) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let peer = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        sender.send(nix::unistd::gettid()).unwrap();
        // Ends with the sender, whatever becomes of it.
        let _ = stopped.recv();
    });
    let tid = path.recv().unwrap();
    let netns: &'static str = Box::leak(format!("/proc/self/task/{tid}/ns/net").into_boxed_str());
    let link = veth();
    ip(&format!("link set v1 netns {tid}"));
    ip("addr add 10.0.0.1/24 dev v0");
    kernel::Netns::open(std::path::Path::new(netns))
        .unwrap()
        .run(|| {
            ip("addr add 10.0.0.2/24 dev v1");
            ip("link set v1 up");
        })
        .unwrap();
    const BYTES: usize = 1_000_000;
    // On a busy machine the first of them may wait for a processor longer than the limit would make it wait.
    let free = (0..20).map(|_| transfer(netns, "10.0.0.1", BYTES)).find(|took| *took < Duration::from_millis(230));
    let mut rtnl = Rtnl::open().unwrap();
    let ifb = rtnl.create_ifb(&IfName::new("ifb7").unwrap(), MAC, 1500).unwrap();
    rtnl.add_bucket(ifb, &TokenBucket::new(1_000_000, 50_000).unwrap()).unwrap();
    rtnl.add_ingress(link).unwrap();
    rtnl.redirect(link, ifb).unwrap();
    let limited = transfer(netns, "10.0.0.1", BYTES);
    assert!(limited > Duration::from_millis(700), "a second's worth took {limited:?}");
    assert!(free.is_some_and(|free| free * 3 < limited), "unlimited {free:?}, limited {limited:?}");
    let counted = tc("-s qdisc show dev ifb7");
    let sent: usize = counted.split("Sent ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(sent > BYTES, "{counted}");
    drop(stop);
    peer.join().unwrap();
}

const CASES: &[common::Case] = cases![
    tick_is_what_the_kernel_says,
    bucket_is_what_tc_shows_and_what_is_read_back,
    foreign_disciplines_stay,
    detour_is_what_tc_shows_and_what_is_read_back,
    filters_that_match_less_are_no_detour,
    what_takes_the_detour_is_limited_and_counted,
];

fn main() -> ExitCode {
    let limited = || -> Result<(), kernel::KernelError> {
        let mut rtnl = Rtnl::open()?;
        let ifb = rtnl.create_ifb(&IfName::new("ifb7").unwrap(), MAC, 1500)?;
        rtnl.add_bucket(ifb, &TokenBucket::new(1000, 1000).unwrap())?;
        let lo = index("lo");
        rtnl.add_ingress(lo)?;
        rtnl.redirect(lo, ifb)
    };
    let probe = std::thread::spawn(move || {
        // Without the right to make a namespace, every case says so itself.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_or(Ok(()), |()| limited().map_err(|e| kernel::Chain(&e).to_string()))
    });
    match probe.join() {
        Ok(Ok(())) => common::main(CASES),
        lacks => {
            eprintln!("SKIPPED: this kernel lacks tbf, ifb, ingress, u32 or mirred: {lacks:?}");
            let ignored =
                |(name, _): &common::Case| libtest_mimic::Trial::test(*name, || Ok(())).with_ignored_flag(true);
            libtest_mimic::run(&libtest_mimic::Arguments::from_args(), CASES.iter().map(ignored).collect()).exit_code()
        }
    }
}
