//! Two real kubelets with containerd on the reference cluster, and a control plane of Kubernetes: network and Services are DaemonSets of our
//! own manifests, rights and image, and nothing of flannel or kube-proxy is there. After each test every node has what the API says: see
//! `kube_cluster::equal`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod kube_steps;
mod netd_node;

use std::process::ExitCode;

use kube_cluster::shared;
use kube_steps::changes::{
    a_client_outside_reaches_pods_of_the_node_alone_by_the_policy_local,
    a_deployment_is_rolled_over_under_load_without_a_failed_request,
    a_deployment_is_scaled_to_24_pods_and_back_under_load_without_a_failed_request,
    daemon_sets_of_our_manifests_make_nodes_ready_and_pods_reach_each_other,
    pods_deleted_by_force_under_load_get_no_connection_once_their_endpoints_are_gone,
};
use kube_steps::entrances::a_host_port_leads_to_its_pod_and_ends_with_it;
use kube_steps::kills::programs_killed_at_random_fail_no_request_and_every_node_gets_equal_again;
use kube_steps::names::a_pod_finds_a_service_by_its_name_while_the_resolvers_are_replaced;
use kube_steps::outage::a_minute_without_a_control_plane_changes_nothing_in_the_kernel_and_fails_no_request;
use kube_steps::power::a_node_without_power_gets_no_connection_once_its_endpoints_are_gone_and_comes_back_equal;
use kube_steps::rights::rights_of_our_accounts_are_exactly_the_calls_of_the_whole_run;
use kube_steps::upgrade::an_upgrade_of_both_daemon_sets_drops_no_packet_and_fails_no_request;

fn main() -> ExitCode {
    // In this order: the last one looks back on all of them.
    let verdict = kube_cluster::suite().side_by_side(1).run(lab::tests![
        daemon_sets_of_our_manifests_make_nodes_ready_and_pods_reach_each_other,
        a_deployment_is_scaled_to_24_pods_and_back_under_load_without_a_failed_request,
        a_deployment_is_rolled_over_under_load_without_a_failed_request,
        pods_deleted_by_force_under_load_get_no_connection_once_their_endpoints_are_gone,
        a_client_outside_reaches_pods_of_the_node_alone_by_the_policy_local,
        a_host_port_leads_to_its_pod_and_ends_with_it,
        a_pod_finds_a_service_by_its_name_while_the_resolvers_are_replaced,
        an_upgrade_of_both_daemon_sets_drops_no_packet_and_fails_no_request,
        a_minute_without_a_control_plane_changes_nothing_in_the_kernel_and_fails_no_request,
        a_node_without_power_gets_no_connection_once_its_endpoints_are_gone_and_comes_back_equal,
        programs_killed_at_random_fail_no_request_and_every_node_gets_equal_again,
        rights_of_our_accounts_are_exactly_the_calls_of_the_whole_run,
    ]);
    shared::end();
    verdict
}
