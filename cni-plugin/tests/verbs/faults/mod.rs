//! Bad input, broken disks, collisions and crowds: every fault that users of the predecessor reported, by name.
//!
//! Each issue that concerns a plugin, and the test that shows what happens here. Tests are trials of this binary unless a
//! path is given.
//!
//! | reported in | what broke | shown by |
//! |---|---|---|
//! | cni#204, plugins#252, plugins#332 | a reboot leaves every address reserved | `leftovers_are_reclaimed_when_the_range_is_full_and_living_pods_are_not`, `status_is_ready_after_a_reboot_whatever_it_left` |
//! | flannel#1416, rancher#14504 | leaked files fill the range | the same, `a_slash_24_holds_253_pods_and_the_254th_is_refused` |
//! | plugins#498 | a power cut leaves empty address files | `empty_reservation_of_a_crash_is_taken_over`, `after_a_power_cut_empty_files_are_in_nobodys_way` |
//! | plugins#1047, PR#1289, antrea PR#5660 | host-local has no GC | `gc_removes_what_is_not_listed_and_keeps_what_is` |
//! | containerd/cri#948 | the namespace was gone, the address stayed | `del_needs_no_namespace` |
//! | containerd#5438, PR#5569, #5768 | ADD timed out, DEL never came | `add_killed_and_never_deleted_is_reclaimed_when_the_range_is_full` |
//! | containerd#6604 | ADD fails after a half ADD | `add_killed_after_any_step_may_be_repeated` |
//! | kata-containers/tests PR#1937, cri-o#2410 | no cached result, addresses not freed | `del_without_version_and_previous_result_frees_everything` |
//! | plugins#1196, PR#1197 | the device is gone, DEL fails before the address | `del_after_somebody_removed_the_link_frees_the_address` |
//! | plugins#666, plugins#791 | the address is free while the old link answers | `del_killed_after_any_step_is_finished_by_del` |
//! | cni-plugin#43, flannel#1662, PR#33 | an empty state file keeps the Pod for ever | `flannel_state_file_that_is_empty_or_junk_does_not_stop_del` |
//! | plugins#426 | state files leak when ADD fails | `add_that_fails_in_the_pod_unwinds_the_link_and_the_address` |
//! | flannel#2253, #2232, #2063, k8s#70202, k3s#11619 | no subnet file | `missing_subnet_file_asks_to_try_again`, `status_is_ready_with_a_lease_and_not_without` |
//! | coredns/deployment#87, k8s#39557, cni#306 | the bridge has an earlier lease's address | `bridge_of_an_earlier_lease_is_readdressed_when_empty_and_refused_when_not` |
//! | k8s#67183, flannel#974 | the bridge lost its address | `bridge_that_lost_its_address_gets_it_back_with_the_next_add` |
//! | plugins#282 | a bridge outlives its subnet | `bridge_of_an_earlier_lease_is_readdressed_when_empty_and_refused_when_not` |
//! | plugins#510, #464, #662, cni#605, antrea#1499, k8s#48107, kind PR#1720 | seconds in iptables, the lock of xtables | `no_verb_executes_another_program` |
//! | cni#215, plugins PR#279 | a masquerade chain for each Pod | `one_masquerade_table_serves_all_pods` |
//! | plugins#1121, containerd PR#11614, moby#48400, cilium#48718 | interrupted listings fail ADD | `adds_and_dels_mixed_with_status_never_fail`; lib/kernel/src/socket.rs lists again |
//! | containerd#4666, cni#567, containerd#9627 | a plugin hangs | `held_locks_end_in_code_11_after_a_bounded_wait`, `nothing_that_blocks_is_waited_for` |
//! | cni.md §8 | portmap fails when chains are made at once | `adds_with_ports_at_once_on_a_fresh_node_all_succeed` |
//! | k8s#72044, k8s#57465, openshift/sriov-cni#188 | DEL fails without, or with an ordinary file for a namespace | `del_needs_no_namespace` |
//! | plugins#29 | `eth0 already exists` | `add_that_finds_eth0_taken_leaves_nothing_behind`, `half_created_veth_does_not_stop_the_next_add` |
//! | plugins#810, PR#1078, nerdctl#1872 | rules stay when the namespace is gone | `del_without_a_namespace_closes_the_ports` |
//! | plugins#756, #858, #588, cni#88, moby#36069 | a reused address has a stale neighbour | `reused_address_is_known_by_its_new_hardware_address_at_once` |
//! | plugins#680, PR#695, k8s#54651, PR#55247, containerd/cri#566 | ADD waits for duplicate address detection | `dual_stack_pod_has_both_families_at_once` |
//! | flannel#846, PR#849, #1072, rancher#18721, cni#320, kops#2601, k8s#20475 | a Pod cannot reach itself | `host_port_is_reached_from_everywhere`, `hairpin_is_on_and_queues_and_addresses_are_set` |
//! | cni#285 | the bridge's hardware address changes | `bridge_keeps_its_hardware_address_when_ports_come_and_go` |
//! | plugins#805, PR#809, cri-o#3437, ocicni#74, cni#1057, flatcar/init#33, systemd#21185 | udev rewrites hardware addresses | `hairpin_is_on_and_queues_and_addresses_are_set` |
//! | cni PR#199, k8s PR#25136, plugins PR#1097 | a queue of length 0 breaks shapers | the same |
//! | plugins#123, PR#553, #1190, PR#1277, k8s#95258 | UDP goes on to the old Pod | `udp_flow_follows_the_port_to_its_new_pod` |
//! | plugins#1209, PR#1210, GHSA-jv3w-x3r3-g6rm | other hosts' traffic is taken | `host_port_is_reached_from_everywhere` |
//! | cni#356, flannel#1775, #1011, talos#13457 | the MTU never changes | `mtu_of_the_subnet_file_reaches_bridge_and_new_pods` |
//! | cni.md §0.10 | a default route twice fails ADD | `default_route_is_not_added_twice` |
//!
//! And what no report is needed for:
//!
//! | fault | shown by |
//! |---|---|
//! | full disk, read-only state directory | `full_or_read_only_disk_fails_add_and_leaves_nothing`, `no_inode_free_fails_add_and_leaves_nothing` |
//! | empty and junk state files | `junk_in_state_files_stops_no_verb_and_gc_clears_what_says_nothing`, `one_broken_record_does_not_keep_a_full_range_from_being_reclaimed` |
//! | unreadable subnet file | `unreadable_subnet_file_is_reported_and_nothing_is_touched` |
//! | missing namespace, ordinary file for one | `the_hosts_own_namespace_is_refused_before_anything_is_touched`, `del_needs_no_namespace` |
//! | bridge with a foreign address | `bridge_with_a_foreign_address_is_refused_before_a_pod_is_made` |
//! | names that are taken | `foreign_link_with_a_pods_name_is_refused_and_kept`, `bridge_name_taken_by_another_link_is_refused_and_kept` |
//! | half a veth pair | `half_created_veth_does_not_stop_the_next_add` |
//! | two ADDs at once for one container | `two_adds_at_once_for_one_container_leave_one_attachment` |
//! | 500 ADDs at once | `five_hundred_adds_at_once_get_five_hundred_addresses` |
//! | DEL during ADD | `del_during_add_leaves_a_whole_attachment_or_none` |
//! | a clock that is set | `clock_set_back_or_forward_decides_nothing` |
//! | death after any step | `add_killed_after_any_step_is_undone_by_del` and the other walks of crash.rs |
//!
//! Not a plugin's affair: flannel#1437 and plugins#629 (another conflist sorts first) are decided by the runtime before a
//! plugin is executed. What it can do it does: `two_bridges_never_hold_one_subnet`.

pub(crate) mod crowd;
pub(crate) mod files;
pub(crate) mod links;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::node::{Node, Outcome, with};

/// Longer than any wait of the plugin itself.
const LONG: Duration = Duration::from_secs(30);

type Test = (&'static str, fn(&Node));

/// The tables above, held against the tests that there are.
pub(crate) const TESTS: &[Test] = &[("every_test_that_the_table_of_issues_names_exists", table_is_true)];

fn table_is_true(_: &Node) {
    let listed = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let rows = include_str!("mod.rs").lines().filter(|line| line.starts_with("//! |"));
    let reported_names: BTreeSet<&str> =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|word| word.len() > 20).collect();
    assert!(reported_names.len() > 30, "{reported_names:?}");
    let missing: Vec<_> = reported_names.difference(&names).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// `conf` in the version that knows GC and STATUS.
pub(crate) fn modern(conf: &Value) -> Value {
    with(conf, "cniVersion", json!("1.1.0"))
}

/// Runs one verb that must end within `limit`.
pub(crate) fn verb_within(node: &Node, limit: Duration, conf: &Value, vars: &[(&str, &str)]) -> Outcome {
    let child = node.start(conf["type"].as_str().unwrap(), vars, &conf.to_string());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    match end.recv_timeout(limit) {
        Ok(output) => Outcome::of(&output),
        Err(_) => {
            // It was started above and has not been waited for: the number is still its own.
            kill(pid, Signal::SIGKILL).unwrap();
            panic!("{vars:?} did not end within {limit:?}");
        }
    }
}
