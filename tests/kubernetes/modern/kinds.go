package main

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A kind of object that is served.
type kind struct {
	version          schema.GroupVersion
	plural, singular string
	short            []string
	object, list     runtime.Object
	// Objects of the cluster and not of a namespace.
	cluster bool
	// Written by its subresource alone.
	status bool
	// Counted up with each change of what is wanted.
	generation bool
}

var kinds = []kind{
	{version: corev1.SchemeGroupVersion, plural: "namespaces", singular: "namespace", short: []string{"ns"}, object: &corev1.Namespace{}, list: &corev1.NamespaceList{}, cluster: true, status: true},
	{version: corev1.SchemeGroupVersion, plural: "nodes", singular: "node", short: []string{"no"}, object: &corev1.Node{}, list: &corev1.NodeList{}, cluster: true, status: true},
	{version: corev1.SchemeGroupVersion, plural: "services", singular: "service", short: []string{"svc"}, object: &corev1.Service{}, list: &corev1.ServiceList{}, status: true},
	{version: corev1.SchemeGroupVersion, plural: "endpoints", singular: "endpoints", short: []string{"ep"}, object: &corev1.Endpoints{}, list: &corev1.EndpointsList{}},
	{version: corev1.SchemeGroupVersion, plural: "pods", singular: "pod", short: []string{"po"}, object: &corev1.Pod{}, list: &corev1.PodList{}, status: true, generation: true},
	{version: corev1.SchemeGroupVersion, plural: "events", singular: "event", short: []string{"ev"}, object: &corev1.Event{}, list: &corev1.EventList{}},
	{version: corev1.SchemeGroupVersion, plural: "configmaps", singular: "configmap", short: []string{"cm"}, object: &corev1.ConfigMap{}, list: &corev1.ConfigMapList{}},
	{version: corev1.SchemeGroupVersion, plural: "secrets", singular: "secret", object: &corev1.Secret{}, list: &corev1.SecretList{}},
	{version: corev1.SchemeGroupVersion, plural: "serviceaccounts", singular: "serviceaccount", short: []string{"sa"}, object: &corev1.ServiceAccount{}, list: &corev1.ServiceAccountList{}},
	{version: discoveryv1.SchemeGroupVersion, plural: "endpointslices", singular: "endpointslice", object: &discoveryv1.EndpointSlice{}, list: &discoveryv1.EndpointSliceList{}, generation: true},
	{version: coordinationv1.SchemeGroupVersion, plural: "leases", singular: "lease", object: &coordinationv1.Lease{}, list: &coordinationv1.LeaseList{}},
	{version: networkingv1.SchemeGroupVersion, plural: "networkpolicies", singular: "networkpolicy", short: []string{"netpol"}, object: &networkingv1.NetworkPolicy{}, list: &networkingv1.NetworkPolicyList{}, generation: true},
	{version: networkingv1.SchemeGroupVersion, plural: "servicecidrs", singular: "servicecidr", object: &networkingv1.ServiceCIDR{}, list: &networkingv1.ServiceCIDRList{}, cluster: true, status: true},
	{version: networkingv1.SchemeGroupVersion, plural: "ipaddresses", singular: "ipaddress", short: []string{"ip"}, object: &networkingv1.IPAddress{}, list: &networkingv1.IPAddressList{}, cluster: true},
	{version: appsv1.SchemeGroupVersion, plural: "deployments", singular: "deployment", short: []string{"deploy"}, object: &appsv1.Deployment{}, list: &appsv1.DeploymentList{}, status: true, generation: true},
	{version: appsv1.SchemeGroupVersion, plural: "daemonsets", singular: "daemonset", short: []string{"ds"}, object: &appsv1.DaemonSet{}, list: &appsv1.DaemonSetList{}, status: true, generation: true},
}

// beta is what a server of 1.31 and 1.32 has, which serves networks and addresses of Services in their first version alone.
func beta() {
	earlier := map[string]kind{
		"servicecidrs": {object: &networkingv1beta1.ServiceCIDR{}, list: &networkingv1beta1.ServiceCIDRList{}},
		"ipaddresses":  {object: &networkingv1beta1.IPAddress{}, list: &networkingv1beta1.IPAddressList{}},
	}
	for at := range kinds {
		if is, known := earlier[kinds[at].plural]; known {
			kinds[at].version, kinds[at].object, kinds[at].list = networkingv1beta1.SchemeGroupVersion, is.object, is.list
		}
	}
}

// What a field selector may name beside name and namespace.
var selectable = map[string][]string{
	"Pod":     {"spec.nodeName", "status.phase", "status.podIP", "spec.hostNetwork"},
	"Service": {"spec.clusterIP", "spec.type"},
	"Node":    {"spec.unschedulable"},
	"Secret":  {"type"},
}

func addFieldLabels(scheme *runtime.Scheme) error {
	for name, more := range selectable {
		allowed := append([]string{"metadata.name", "metadata.namespace"}, more...)
		convert := func(label, value string) (string, string, error) {
			if slices.Contains(allowed, label) {
				return label, value, nil
			}
			return "", "", fmt.Errorf("field label not supported: %s", label)
		}
		for _, version := range []string{"v1", runtime.APIVersionInternal} {
			if err := scheme.AddFieldLabelConversionFunc(schema.GroupVersionKind{Version: version, Kind: name}, convert); err != nil {
				return err
			}
		}
	}
	return nil
}

// attributes are what selectors look at.
func attributes(object runtime.Object) (labels.Set, fields.Set, error) {
	about, err := meta.Accessor(object)
	if err != nil {
		return nil, nil, err
	}
	set := fields.Set{"metadata.name": about.GetName(), "metadata.namespace": about.GetNamespace()}
	switch x := object.(type) {
	case *corev1.Pod:
		set["spec.nodeName"], set["status.phase"], set["status.podIP"] = x.Spec.NodeName, string(x.Status.Phase), x.Status.PodIP
		set["spec.hostNetwork"] = fmt.Sprint(x.Spec.HostNetwork)
	case *corev1.Service:
		set["spec.clusterIP"], set["spec.type"] = x.Spec.ClusterIP, string(x.Spec.Type)
	case *corev1.Node:
		set["spec.unschedulable"] = fmt.Sprint(x.Spec.Unschedulable)
	case *corev1.Secret:
		set["type"] = string(x.Type)
	}
	return about.GetLabels(), set, nil
}
