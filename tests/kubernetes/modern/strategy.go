package main

import (
	"context"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/storage/names"
	netutils "k8s.io/utils/net"
)

// strategy says what a client may write of a kind: everything but the status, which is left to the subresource, as in Kubernetes.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	kind kind
	pool *pool
}

func (s strategy) NamespaceScoped() bool                                   { return !s.kind.cluster }
func (strategy) AllowCreateOnUpdate() bool                                 { return false }
func (strategy) AllowUnconditionalUpdate() bool                            { return true }
func (strategy) Canonicalize(runtime.Object)                               {}
func (strategy) WarningsOnCreate(context.Context, runtime.Object) []string { return nil }
func (strategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// part is a field of an object; not valid when its kind has none of that name.
func part(object runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(object).Elem().FieldByName(name)
}

func (s strategy) PrepareForCreate(_ context.Context, object runtime.Object) {
	switch x := object.(type) {
	case *corev1.Node:
		// A kubelet registers its Node with the status that it has.
	case *corev1.Namespace:
		x.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	case *corev1.Pod:
		x.Status = corev1.PodStatus{Phase: corev1.PodPending}
	case *corev1.Service:
		x.Status = corev1.ServiceStatus{}
		s.pool.complete(x)
	default:
		if s.kind.status {
			part(object, "Status").SetZero()
		}
	}
	if s.kind.generation {
		if about, err := meta.Accessor(object); err == nil {
			about.SetGeneration(1)
		}
	}
}

func (s strategy) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	if s.kind.status {
		part(object, "Status").Set(part(old, "Status"))
	}
	if service, is := object.(*corev1.Service); is {
		keepAddresses(service, old.(*corev1.Service))
		s.pool.complete(service)
	}
	if !s.kind.generation {
		return
	}
	about, err := meta.Accessor(object)
	before, errBefore := meta.Accessor(old)
	if err != nil || errBefore != nil {
		return
	}
	about.SetGeneration(before.GetGeneration())
	if !reflect.DeepEqual(wanted(object), wanted(old)) {
		about.SetGeneration(before.GetGeneration() + 1)
	}
}

// wanted is an object without what is known about it.
func wanted(object runtime.Object) runtime.Object {
	bare := object.DeepCopyObject()
	for _, name := range []string{"TypeMeta", "ObjectMeta", "Status"} {
		if known := part(bare, name); known.IsValid() {
			known.SetZero()
		}
	}
	return bare
}

func (s strategy) Validate(_ context.Context, object runtime.Object) field.ErrorList {
	switch x := object.(type) {
	case *corev1.Service:
		return validateService(x)
	case *discoveryv1.EndpointSlice:
		return validateSlice(x)
	}
	return nil
}

func (s strategy) ValidateUpdate(ctx context.Context, object, old runtime.Object) field.ErrorList {
	wrong := s.Validate(ctx, object)
	switch x := object.(type) {
	case *corev1.Service:
		was := old.(*corev1.Service)
		if was.Spec.ClusterIP != "" && was.Spec.Type == x.Spec.Type && was.Spec.ClusterIP != x.Spec.ClusterIP {
			wrong = append(wrong, field.Invalid(field.NewPath("spec", "clusterIPs").Index(0), x.Spec.ClusterIP, "may not change once set"))
		}
	case *discoveryv1.EndpointSlice:
		if was := old.(*discoveryv1.EndpointSlice); was.AddressType != x.AddressType {
			wrong = append(wrong, field.Invalid(field.NewPath("addressType"), x.AddressType, "field is immutable"))
		}
	}
	return wrong
}

func validateSlice(x *discoveryv1.EndpointSlice) (wrong field.ErrorList) {
	if x.AddressType == "" {
		wrong = append(wrong, field.Required(field.NewPath("addressType"), ""))
	}
	for i, endpoint := range x.Endpoints {
		for j, address := range endpoint.Addresses {
			if x.AddressType != discoveryv1.AddressTypeFQDN && netutils.ParseIPSloppy(address) == nil {
				at := field.NewPath("endpoints").Index(i).Child("addresses").Index(j)
				wrong = append(wrong, field.Invalid(at, address, "must be a valid IP address"))
			}
		}
	}
	return wrong
}

// statusStrategy is that of the subresource: the status and the metadata are written, what is wanted stays, as in Kubernetes. (flannel
// writes its annotations this way.)
type statusStrategy struct{ strategy }

func (statusStrategy) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	part(object, "Spec").Set(part(old, "Spec"))
}
