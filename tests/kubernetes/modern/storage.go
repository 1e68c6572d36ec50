package main

import (
	"context"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
)

// install serves every kind under the path of its group.
func install(to *server.GenericAPIServer, config *server.Config, scheme *runtime.Scheme, codecs serializer.CodecFactory, addresses *pool) error {
	groups := map[string]*server.APIGroupInfo{}
	for _, k := range kinds {
		info := groups[k.version.Group]
		if info == nil {
			fresh := server.NewDefaultAPIGroupInfo(k.version.Group, scheme, runtime.NewParameterCodec(scheme), codecs)
			fresh.PrioritizedVersions = nil
			info = &fresh
			groups[k.version.Group] = info
		}
		if info.VersionedResourcesStorageMap[k.version.Version] == nil {
			info.PrioritizedVersions = append(info.PrioritizedVersions, k.version)
			info.VersionedResourcesStorageMap[k.version.Version] = map[string]rest.Storage{}
		}
		own := strategy{ObjectTyper: scheme, NameGenerator: names.SimpleNameGenerator, kind: k, pool: addresses}
		if err := own.store(config, info.VersionedResourcesStorageMap[k.version.Version]); err != nil {
			return err
		}
	}
	for name, info := range groups {
		var err error
		if name == "" {
			err = to.InstallLegacyAPIGroup("/api", info)
		} else {
			err = to.InstallAPIGroup(info)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// store adds what keeps the objects of a kind, and its subresource.
func (s strategy) store(config *server.Config, resources map[string]rest.Storage) error {
	group := s.kind.version.Group
	resource := schema.GroupResource{Group: group, Resource: s.kind.plural}
	kept := &registry.Store{
		NewFunc: fresh(s.kind.object), NewListFunc: fresh(s.kind.list),
		DefaultQualifiedResource:  resource,
		SingularQualifiedResource: schema.GroupResource{Group: group, Resource: s.kind.singular},
		PredicateFunc: func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
			return storage.SelectionPredicate{Label: label, Field: field, GetAttrs: attributes}
		},
		CreateStrategy: s, UpdateStrategy: s, DeleteStrategy: s,
		TableConvertor: rest.NewDefaultTableConvertor(resource),
	}
	if err := kept.CompleteWithOptions(&generic.StoreOptions{RESTOptions: config.RESTOptionsGetter, AttrFunc: attributes}); err != nil {
		return err
	}
	resources[s.kind.plural] = named{kept, s.kind.short}
	if s.kind.status {
		status := *kept
		status.UpdateStrategy = statusStrategy{s}
		resources[s.kind.plural+"/status"] = subresource{&status}
	}
	return nil
}

func fresh(like runtime.Object) func() runtime.Object {
	of := reflect.TypeOf(like).Elem()
	return func() runtime.Object { return reflect.New(of).Interface().(runtime.Object) }
}

// named adds the short names that kubectl asks for.
type named struct {
	*registry.Store
	short []string
}

func (n named) ShortNames() []string { return n.short }

// subresource lets the status be read and changed, and no object be made.
type subresource struct{ kept *registry.Store }

func (s subresource) New() runtime.Object { return s.kept.New() }
func (s subresource) Destroy()            {}
func (s subresource) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return s.kept.Get(ctx, name, o)
}
func (s subresource) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.kept.Update(ctx, name, info, create, update, false, o)
}
