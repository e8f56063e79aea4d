package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Collection is what a spec means to one server.
type Collection interface {
	List(ctx context.Context, options metav1.ListOptions) (runtime.Object, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

func open(config *rest.Config, spec Spec) (Collection, error) {
	if spec.Metadata {
		client, err := metadata.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		resource := client.Resource(spec.Resource)
		if spec.Namespace == "" {
			return &partial{resource}, nil
		}
		return &partial{resource.Namespace(spec.Namespace)}, nil
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	client := set.CoreV1().RESTClient()
	if spec.Resource.Group != "" {
		client = set.DiscoveryV1().RESTClient()
	}
	return &typed{client, spec}, nil
}

type typed struct {
	client rest.Interface
	spec   Spec
}

func (t *typed) request(options metav1.ListOptions) *rest.Request {
	return t.client.Get().Namespace(t.spec.Namespace).Resource(t.spec.Resource.Resource).
		VersionedParams(&options, scheme.ParameterCodec)
}

func (t *typed) List(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return t.request(options).Do(ctx).Get()
}

func (t *typed) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	return t.request(options).Watch(ctx)
}

type partial struct {
	client metadata.ResourceInterface
}

func (p *partial) List(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return p.client.List(ctx, options)
}

func (p *partial) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return p.client.Watch(ctx, options)
}

// Item is what counts of an object.
type Item struct {
	Key     string
	UID     string
	Version uint64
	// Of all that is in it.
	Hash uint64
	// Its bytes as JSON.
	size int
}

func itemOf(object runtime.Object) (Item, error) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return Item{}, err
	}
	version, err := versionOf(accessor.GetResourceVersion())
	if err != nil {
		return Item{}, err
	}
	key := accessor.GetName()
	if namespace := accessor.GetNamespace(); namespace != "" {
		key = namespace + "/" + key
	}
	// Encodings and lists differ in whether they say what an object is.
	plain := object.DeepCopyObject()
	plain.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	text, err := json.Marshal(plain)
	if err != nil {
		return Item{}, err
	}
	hash := fnv.New64a()
	hash.Write(text)
	return Item{Key: key, UID: string(accessor.GetUID()), Version: version, Hash: hash.Sum64(), size: len(text)}, nil
}

func versionOf(text string) (uint64, error) {
	version, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no resourceVersion", text)
	}
	return version, nil
}

// itemsOf takes a list apart.
func itemsOf(list runtime.Object) ([]Item, uint64, error) {
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return nil, 0, err
	}
	version, err := versionOf(accessor.GetResourceVersion())
	if err != nil {
		return nil, 0, err
	}
	if accessor.GetContinue() != "" {
		return nil, 0, fmt.Errorf("the list at %d has more pages", version)
	}
	var items []Item
	err = meta.EachListItem(list, func(object runtime.Object) error {
		item, err := itemOf(object)
		items = append(items, item)
		return err
	})
	return items, version, err
}
