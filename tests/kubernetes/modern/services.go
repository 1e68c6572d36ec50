package main

import (
	"encoding/binary"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// pool hands out addresses and node ports of Services. It remembers them in memory alone: a server lives for a few tests.
type pool struct {
	mutex     sync.Mutex
	addresses netip.Prefix
	next      uint32
	used      map[string]bool
	port      int32
}

// Addresses before this one are left to tests that ask for them by name, and ports likewise.
const (
	firstAddress = 10_000
	firstPort    = 31_000
)

func newPool(from netip.Prefix) *pool {
	return &pool{addresses: from, next: firstAddress, used: map[string]bool{}, port: firstPort}
}

// complete gives a Service the address, the families and the node ports that it does not bring.
func (p *pool) complete(x *corev1.Service) {
	if x.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if x.Spec.ClusterIP == "" && len(x.Spec.ClusterIPs) > 0 {
		x.Spec.ClusterIP = x.Spec.ClusterIPs[0]
	}
	if x.Spec.ClusterIP == "" {
		x.Spec.ClusterIP = p.free()
	}
	p.used[x.Spec.ClusterIP] = true
	if len(x.Spec.ClusterIPs) == 0 {
		x.Spec.ClusterIPs = []string{x.Spec.ClusterIP}
	}
	if len(x.Spec.IPFamilies) == 0 {
		x.Spec.IPFamilies = families(x.Spec.ClusterIPs)
	}
	if x.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(x.Spec.IPFamilies) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		x.Spec.IPFamilyPolicy = &policy
	}
	if !hasNodePorts(x) {
		return
	}
	for i := range x.Spec.Ports {
		if x.Spec.Ports[i].NodePort == 0 {
			x.Spec.Ports[i].NodePort = p.port
			p.port++
		}
	}
}

func (p *pool) free() string {
	for {
		p.next++
		bytes := p.addresses.Addr().As4()
		binary.BigEndian.PutUint32(bytes[:], binary.BigEndian.Uint32(bytes[:])+p.next)
		if address := netip.AddrFrom4(bytes).String(); !p.used[address] {
			return address
		}
	}
}

func families(addresses []string) (of []corev1.IPFamily) {
	for _, text := range addresses {
		if address, err := netip.ParseAddr(text); err == nil && address.Is6() {
			of = append(of, corev1.IPv6Protocol)
		} else {
			of = append(of, corev1.IPv4Protocol)
		}
	}
	return of
}

func hasNodePorts(x *corev1.Service) bool {
	return x.Spec.Type == corev1.ServiceTypeNodePort || x.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// keepAddresses lets an update leave out the address of a Service.
func keepAddresses(x, was *corev1.Service) {
	if x.Spec.ClusterIP == "" && x.Spec.Type != corev1.ServiceTypeExternalName {
		x.Spec.ClusterIP, x.Spec.ClusterIPs = was.Spec.ClusterIP, was.Spec.ClusterIPs
	}
}

func validateService(x *corev1.Service) (wrong field.ErrorList) {
	ports := field.NewPath("spec", "ports")
	if x.Spec.Type != corev1.ServiceTypeExternalName && x.Spec.ClusterIP != corev1.ClusterIPNone && len(x.Spec.Ports) == 0 {
		wrong = append(wrong, field.Required(ports, ""))
	}
	for i, port := range x.Spec.Ports {
		if port.Port < 1 || port.Port > 65535 {
			wrong = append(wrong, field.Invalid(ports.Index(i).Child("port"), port.Port, "must be between 1 and 65535, inclusive"))
		}
	}
	return wrong
}

// or puts a default in the place of a value that is not there.
func or[T comparable](place *T, value T) {
	var none T
	if *place == none {
		*place = value
	}
}

func orPointer[T any](place **T, value T) {
	if *place == nil {
		*place = &value
	}
}

func addDefaults(scheme *runtime.Scheme) {
	scheme.AddTypeDefaultingFunc(&corev1.Service{}, func(object any) {
		spec := &object.(*corev1.Service).Spec
		or(&spec.Type, corev1.ServiceTypeClusterIP)
		or(&spec.SessionAffinity, corev1.ServiceAffinityNone)
		if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
			seconds := int32(10800)
			orPointer(&spec.SessionAffinityConfig, corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}})
		}
		if spec.Type != corev1.ServiceTypeExternalName {
			orPointer(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
		}
		if hasNodePorts(object.(*corev1.Service)) {
			or(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
		}
		for i := range spec.Ports {
			port := &spec.Ports[i]
			or(&port.Protocol, corev1.ProtocolTCP)
			if port.TargetPort == intstr.FromInt32(0) || port.TargetPort == intstr.FromString("") {
				port.TargetPort = intstr.FromInt32(port.Port)
			}
		}
	})
	scheme.AddTypeDefaultingFunc(&discoveryv1.EndpointSlice{}, func(object any) {
		slice := object.(*discoveryv1.EndpointSlice)
		for i := range slice.Ports {
			orPointer(&slice.Ports[i].Name, "")
			orPointer(&slice.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	})
}
