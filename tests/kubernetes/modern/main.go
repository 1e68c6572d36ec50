// A small API server for the tests, over the library k8s.io/apiserver: what a current Kubernetes says on the wire (watch cache, streaming
// lists, bookmarks, pages, patches, server-side apply, protobuf) is that library's own. Who may write what and which defaults an object
// gets is decided by the few rules of strategy.go and services.go, which are far thinner than a real control plane's: there is no
// admission, no RBAC and no controller.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/compatibility"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"

	"modern/described"
)

type settings struct {
	etcd, listen, certs, authority, tokens, services string
	port                                             int
}

func main() {
	var s settings
	flag.StringVar(&s.etcd, "etcd-servers", "http://127.0.0.1:2379", "URL of etcd")
	flag.StringVar(&s.listen, "bind-address", "127.0.0.1", "address to serve on")
	flag.IntVar(&s.port, "secure-port", 6443, "port to serve on")
	flag.StringVar(&s.certs, "cert-dir", ".", "folder with tls.crt and tls.key")
	flag.StringVar(&s.authority, "client-ca-file", "", "authority whose certificates name users")
	flag.StringVar(&s.tokens, "token-auth-file", "", "CSV of token, user, UID and groups")
	flag.StringVar(&s.services, "service-cluster-ip-range", "10.96.0.0/16", "addresses for Services")
	earlier := flag.Bool("service-cidrs-beta", false, "serve ServiceCIDR and IPAddress as 1.31 and 1.32 do, in v1beta1 alone")
	asked := flag.Bool("version", false, "print the version and exit")
	klog.InitFlags(nil)
	flag.Parse()
	if *asked {
		fmt.Println("Kubernetes", version.Get().GitVersion)
		return
	}
	if *earlier {
		beta()
	}
	if err := serve(s); err != nil {
		fmt.Fprintln(os.Stderr, "api-server:", err)
		os.Exit(1)
	}
}

func serve(s settings) error {
	addresses, err := netip.ParsePrefix(s.services)
	if err != nil {
		return err
	}
	scheme, versions, err := newScheme()
	if err != nil {
		return err
	}
	codecs := serializer.NewCodecFactory(scheme)
	config, err := newConfig(s, scheme, codecs, versions)
	if err != nil {
		return err
	}
	generic, err := config.Complete(nil).New("api-server", server.NewEmptyDelegate())
	if err != nil {
		return err
	}
	if err := install(generic, config, scheme, codecs, newPool(addresses)); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return generic.PrepareRun().RunWithContext(ctx)
}

// newScheme knows every kind in its one external version, which also stands for the internal one: nothing is converted.
func newScheme() (*runtime.Scheme, schema.GroupVersions, error) {
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		return nil, nil, err
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	addDefaults(scheme)
	if err := addFieldLabels(scheme); err != nil {
		return nil, nil, err
	}
	var versions schema.GroupVersions
	seen := map[schema.GroupVersion]bool{}
	for _, k := range kinds {
		internal := schema.GroupVersion{Group: k.version.Group, Version: runtime.APIVersionInternal}
		scheme.AddKnownTypes(internal, k.object, k.list)
		if seen[k.version] {
			continue
		}
		seen[k.version] = true
		versions = append(versions, k.version)
		if err := scheme.SetVersionPriority(k.version); err != nil {
			return nil, nil, err
		}
	}
	return scheme, versions, nil
}

func newConfig(s settings, scheme *runtime.Scheme, codecs serializer.CodecFactory, versions schema.GroupVersions) (*server.Config, error) {
	config := server.NewConfig(codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	config.LegacyAPIGroupPrefixes.Insert("/api")
	namer := openapi.NewDefinitionNamer(scheme)
	config.OpenAPIConfig = server.DefaultOpenAPIConfig(described.GetOpenAPIDefinitions, namer)
	config.OpenAPIConfig.Info.Title = "api-server"
	config.OpenAPIV3Config = server.DefaultOpenAPIV3Config(described.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config.Info.Title = "api-server"

	store := options.NewEtcdOptions(storagebackend.NewDefaultConfig("/registry", codecs.LegacyCodec(versions...)))
	store.StorageConfig.EncodeVersioner = versions
	store.StorageConfig.Transport.ServerList = []string{s.etcd}
	if err := store.ApplyTo(config); err != nil {
		return nil, err
	}
	serving := options.NewSecureServingOptions().WithLoopback()
	serving.BindAddress, serving.BindPort = net.ParseIP(s.listen), s.port
	serving.HTTP2MaxStreamsPerConnection = 1000
	serving.ServerCert.CertKey.CertFile = filepath.Join(s.certs, "tls.crt")
	serving.ServerCert.CertKey.KeyFile = filepath.Join(s.certs, "tls.key")
	if err := serving.ApplyToConfig(config); err != nil {
		return nil, err
	}
	known, err := tokenfile.NewCSV(s.tokens)
	if err != nil {
		return nil, err
	}
	authority, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", s.authority)
	if err != nil {
		return nil, err
	}
	config.SecureServing.ClientCA = authority
	certificates := x509.NewDynamic(authority.VerifyOptions, x509.CommonNameUserConversion)
	config.Authentication.Authenticator = group.NewAuthenticatedGroupAdder(union.New(certificates, bearertoken.New(known)))
	config.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	return config, nil
}
