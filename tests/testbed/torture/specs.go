package main

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The encodings that client-go asks for.
const (
	protobuf = "application/vnd.kubernetes.protobuf"
	jsonType = "application/json"
)

// The namespaces that objects are written to.
const (
	shop  = "shop"
	depot = "depot"
	// The large collection, which nobody changes.
	bulk = "bulk"
)

// Spec is one collection as one client follows it.
type Spec struct {
	Name      string
	Resource  schema.GroupVersionResource
	Namespace string
	Labels    string
	Fields    string
	Encoding  string
	// As PartialObjectMetadata.
	Metadata bool
	// By WatchList, or by list and watch.
	WatchList bool
	// As the node and not as a ServiceAccount.
	AsNode bool
}

var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	pods       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	services   = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	slices     = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
)

// specs are all that is followed: both ways to begin, both encodings, selectors that objects enter and leave.
func specs(node string) []Spec {
	return []Spec{
		{Name: "ConfigMaps", Resource: configMaps, Namespace: shop, Encoding: protobuf},
		{Name: "ConfigMaps, JSON, WatchList", Resource: configMaps, Namespace: shop, Encoding: jsonType, WatchList: true},
		{Name: "ConfigMaps of a label", Resource: configMaps, Namespace: depot, Labels: "tier=front", Encoding: protobuf, WatchList: true},
		{Name: "ConfigMaps of two labels, JSON", Resource: configMaps, Namespace: depot, Labels: "tier in (front,back)", Encoding: jsonType},
		{Name: "one ConfigMap", Resource: configMaps, Namespace: shop, Fields: "metadata.name=item-3", Encoding: protobuf},
		{Name: "Pods, JSON", Resource: pods, Encoding: jsonType},
		{Name: "Pods that run, WatchList", Resource: pods, Fields: "status.phase=Running", Encoding: protobuf, WatchList: true},
		{Name: "Pods of the node", Resource: pods, Fields: "spec.nodeName=" + node, Encoding: protobuf, AsNode: true},
		{Name: "Secrets", Resource: secrets, Namespace: shop, Encoding: protobuf, WatchList: true},
		{Name: "Secrets of a label, JSON", Resource: secrets, Namespace: shop, Labels: "tier!=front", Encoding: jsonType},
		{Name: "Services, WatchList", Resource: services, Encoding: protobuf, WatchList: true},
		{Name: "EndpointSlices", Resource: slices, Encoding: protobuf},
		{Name: "ConfigMaps' metadata", Resource: configMaps, Namespace: shop, Encoding: protobuf, Metadata: true},
		{Name: "Pods' metadata, JSON, WatchList", Resource: pods, Labels: "tier", Encoding: jsonType, Metadata: true, WatchList: true},
	}
}
