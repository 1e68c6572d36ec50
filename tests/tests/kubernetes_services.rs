//! Kubernetes' end-to-end tests of Services, and flannel's, by their names, with real Pods: API server, controllers and kubelets of 1.20
//! and our three programs. `docs/conformance.md` has the whole lists.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod kube_cluster;
mod kube_services;
mod netd_node;

use std::process::ExitCode;

use cni_node::containerd;
use kube_services::affinity::*;
use kube_services::balancers::*;
use kube_services::cluster_ip::*;
use kube_services::current::*;
use kube_services::datagrams::*;
use kube_services::flannel::*;
use kube_services::kinds::*;
use kube_services::labels::*;
use kube_services::networking::*;
use kube_services::readiness::*;
use kube_services::restarts::*;
use kube_services::terminating::*;
use lab::Need;
use lab::kubernetes::Release;

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables])
        .unless(containerd::obstacle())
        .with_kubernetes(Release::V1_20)
        .side_by_side(4)
        .run(lab::tests![
            should_provide_secure_master_service,
            should_serve_a_basic_endpoint_from_pods,
            should_serve_multiport_endpoints_from_pods,
            should_serve_endpoints_on_same_port_and_different_protocols,
            should_serve_endpoints_on_same_port_and_different_protocol_for_internal_traffic_on_type_loadbalancer,
            should_be_updated_after_adding_or_deleting_ports,
            should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip,
            should_allow_pods_to_hairpin_back_to_themselves_through_services,
            should_be_able_to_up_and_down_services,
            should_work_after_the_service_has_been_recreated,
            should_be_rejected_when_no_endpoints_exist,
            should_be_rejected_for_evicted_pods,
            should_be_able_to_create_a_functioning_nodeport_service,
            should_be_possible_to_connect_to_a_service_via_external_ip_when_it_is_not_assigned_to_a_node,
            should_be_able_to_update_service_type_to_nodeport_listening_on_same_port_number_but_different_protocols,
            should_be_able_to_change_the_type_from_externalname_to_clusterip,
            should_be_able_to_change_the_type_from_externalname_to_nodeport,
            should_be_able_to_change_the_type_from_clusterip_to_externalname,
            should_be_able_to_change_the_type_from_nodeport_to_externalname,
            should_prevent_nodeport_collisions,
            should_check_nodeport_out_of_range,
            should_release_nodeports_on_delete,
            should_be_able_to_change_the_type_and_ports_of_a_tcp_service,
            should_be_able_to_change_the_type_and_ports_of_a_udp_service,
            should_implement_service_kubernetes_io_service_proxy_name,
            should_implement_service_kubernetes_io_headless,
            should_have_session_affinity_work_for_service_with_type_clusterip,
            should_have_session_affinity_work_for_nodeport_service,
            should_function_for_client_ip_based_session_affinity_udp,
            should_have_session_affinity_timeout_work_for_service_with_type_clusterip,
            should_have_session_affinity_timeout_work_for_nodeport_service,
            should_be_able_to_switch_session_affinity_for_service_with_type_clusterip,
            should_be_able_to_switch_session_affinity_for_nodeport_service,
            should_have_session_affinity_work_for_loadbalancer_service_with_etp_on_and_off,
            should_be_able_to_switch_session_affinity_for_loadbalancer_service_with_etp_off,
            should_create_endpoints_for_unready_pods,
            should_be_able_to_connect_to_terminating_and_unready_endpoints_if_published,
            should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_not_published,
            should_update_endpoints,
            should_fail_health_check_node_port_if_there_are_only_terminating_endpoints,
            should_fallback_to_terminating_endpoints_with_internal_traffic_policy_cluster,
            should_fallback_to_terminating_endpoints_with_external_traffic_policy_cluster,
            should_fallback_to_local_terminating_endpoints_with_external_traffic_policy_local,
            should_preserve_udp_traffic_when_server_pod_cycles_for_a_nodeport_service,
            should_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service,
            should_preserve_udp_traffic_when_server_pod_cycles_for_a_clusterip_service_and_client_is_hostnetwork,
            should_preserve_udp_traffic_when_initial_unready_endpoints_get_ready,
            should_only_allow_access_from_service_loadbalancer_source_ranges,
            should_be_able_to_create_loadbalancer_service_without_nodeport_and_change_it,
            esipp_should_work_for_type_loadbalancer,
            esipp_should_work_for_type_nodeport,
            esipp_should_only_target_nodes_with_endpoints,
            esipp_should_work_from_pods,
            esipp_should_handle_updates_to_external_traffic_policy_field,
            should_function_for_pod_service_http,
            should_function_for_pod_service_udp,
            should_function_for_node_service_http,
            should_function_for_node_service_udp,
            should_function_for_endpoint_service_http,
            should_function_for_endpoint_service_udp,
            should_function_for_multiple_endpoint_services_with_same_selector,
            should_function_for_service_endpoints_using_hostnetwork,
            should_update_nodeport_http,
            should_update_nodeport_udp,
            should_function_for_intra_pod_communication,
            should_be_able_to_send_traffic_between_pods_without_snat,
            should_set_tcp_close_wait_timeout,
            no_conflict_between_pods_with_same_hostport_but_different_hostip_and_protocol,
            should_allow_creating_a_basic_sctp_service_with_pod_and_endpoints,
            vxlan_provides_pod_to_pod_connectivity,
            host_gw_provides_pod_to_pod_connectivity,
            vxlan_passes_iperf3_throughput_test,
            recovers_pod_connectivity_after_a_pod_is_deleted_and_recreated,
            preserves_connectivity_and_subnet_leases_across_a_flannel_daemonset_restart,
            resolves_and_reaches_a_clusterip_service_across_nodes,
            should_work_after_restarting_kube_proxy,
            should_work_after_restarting_apiserver,
            should_recreate_its_iptables_rules_if_they_are_deleted,
            should_respect_internal_traffic_policy_local_pod_to_pod,
            should_respect_internal_traffic_policy_local_pod_of_hostnetwork_to_pod,
            should_respect_internal_traffic_policy_local_pod_and_node_to_pod_of_hostnetwork,
            should_fallback_to_local_terminating_endpoints_with_internal_traffic_policy_local,
            should_preserve_udp_traffic_for_a_clusterip_service_with_internal_traffic_policy_local,
            should_route_traffic_to_an_endpoint_in_the_same_zone_when_it_is_preferred,
            should_route_traffic_to_an_endpoint_on_the_same_node_when_it_is_preferred,
            should_distribute_endpoints_evenly_and_follow_zone_hints,
            should_serve_an_address_of_a_new_servicecidr,
        ])
}
