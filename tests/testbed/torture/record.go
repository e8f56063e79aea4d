package main

import (
	"context"
	"fmt"
	stdslices "slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Event is one thing that a watch said.
type Event struct {
	Type watch.EventType
	Item
	// A bookmark that ends the initial events.
	End bool
}

// Stretch is one list, or one watch from its beginning to its end.
type Stretch struct {
	// Where a watch begins; 0 for a list and for a WatchList.
	Since uint64
	// The newest version that the API server had when this was answered: what came before may have been folded.
	Known uint64
	// What a list, or a WatchList up to its bookmark, gave, and at which version.
	Whole   bool
	State   []Item
	Version uint64
	// What came afterwards.
	Events []Event
	// Why it ended, if it was an error.
	Error string
	Gone  bool
	Began time.Time
	Ended time.Time
}

// How long a watch has to last for client-go, if it brings nothing: after one that ends sooner, a second by its own clock,
// it lists. What is measured here begins earlier and ends later.
const veryShort = 5 * time.Second

// veryShort says whether client-go may list after this watch although it was refused nothing.
func (s *Stretch) veryShort() bool {
	return s.Error == "" && len(s.Events) == 0 && !s.Whole && s.Since > 0 && s.Ended.Sub(s.Began) < veryShort
}

// Recorder is client-go's reflector with a list and a watch that keep what they hear.
type Recorder struct {
	name       string
	cluster    *Cluster
	collection Collection
	spec       Spec
	store      cache.Store
	cancel     context.CancelFunc
	ended      chan struct{}

	// Bytes of all that was heard, at each version.
	owing owing

	mu        sync.Mutex
	stretches []*Stretch
	// What was heard and could not be understood.
	faults []string
}

func record(cluster *Cluster, name string, collection Collection, spec Spec) *Recorder {
	ctx, cancel := context.WithCancel(context.Background())
	r := &Recorder{
		name: name, cluster: cluster, collection: collection, spec: spec,
		store:  cache.NewStore(cache.MetaNamespaceKeyFunc),
		cancel: cancel, ended: make(chan struct{}),
	}
	// As client-go's own, but for pauses of half a minute: the hub is killed more often than that.
	backoff := &wait.Backoff{Duration: 100 * time.Millisecond, Cap: time.Second, Steps: 5, Factor: 2, Jitter: 1}
	reflector := cache.NewReflectorWithOptions(r, nil, r.store, cache.ReflectorOptions{Name: name, Backoff: backoff})
	go func() {
		defer close(r.ended)
		reflector.RunWithContext(ctx)
	}()
	return r
}

func (r *Recorder) stop() {
	r.cancel()
	<-r.ended
}

// IsWatchListSemanticsUnSupported is how client-go is told which of the two ways to take.
func (r *Recorder) IsWatchListSemanticsUnSupported() bool { return !r.spec.WatchList }

func (r *Recorder) begin(since uint64) *Stretch {
	stretch := &Stretch{Since: since, Began: time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stretches = append(r.stretches, stretch)
	return stretch
}

func (r *Recorder) note(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *Recorder) fault(format string, values ...any) {
	r.note(func() {
		if len(r.faults) < 20 {
			r.faults = append(r.faults, fmt.Sprintf(format, values...))
		}
	})
}

func (s *Stretch) failed(err error) {
	s.Error = err.Error()
	s.Gone = apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// List is what the reflector calls.
func (r *Recorder) List(options metav1.ListOptions) (runtime.Object, error) {
	return r.ListWithContext(context.Background(), options)
}

// ListWithContext is what the reflector calls.
func (r *Recorder) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	options.LabelSelector, options.FieldSelector = r.spec.Labels, r.spec.Fields
	stretch := r.begin(0)
	// A whole list is asked for: pages are the pager's business, and what it makes of them is not a list of one version.
	options.Limit = 0
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	list, err := r.collection.List(ctx, options)
	if err != nil {
		r.note(func() { stretch.failed(err) })
		return nil, err
	}
	items, version, err := itemsOf(list)
	if err != nil {
		r.fault("a list: %v", err)
		return nil, err
	}
	r.note(func() { stretch.State, stretch.Version, stretch.Whole = items, version, true })
	r.reached(version, 0)
	return list, nil
}

// Watch is what the reflector calls.
func (r *Recorder) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return r.WatchWithContext(context.Background(), options)
}

// WatchWithContext is what the reflector calls.
func (r *Recorder) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.LabelSelector, options.FieldSelector = r.spec.Labels, r.spec.Fields
	var since uint64
	initial := options.SendInitialEvents != nil && *options.SendInitialEvents
	if !initial {
		version, err := versionOf(options.ResourceVersion)
		if err != nil {
			return nil, err
		}
		since = version
	}
	stretch := r.begin(since)
	inner, err := r.collection.Watch(ctx, options)
	if err != nil {
		r.note(func() { stretch.failed(err) })
		return nil, err
	}
	known, err := r.cluster.version(ctx)
	if err != nil {
		inner.Stop()
		return nil, err
	}
	r.note(func() { stretch.Known = known })
	r.watches(true, known)
	tap := &tap{inner: inner, events: make(chan watch.Event), stop: make(chan struct{})}
	go tap.run(r, stretch, initial)
	return tap, nil
}

// tap passes a watch on and keeps what passes.
type tap struct {
	inner  watch.Interface
	events chan watch.Event
	once   sync.Once
	stop   chan struct{}
}

func (t *tap) ResultChan() <-chan watch.Event { return t.events }

func (t *tap) Stop() {
	t.once.Do(func() { close(t.stop); t.inner.Stop() })
}

func (t *tap) run(r *Recorder, stretch *Stretch, initial bool) {
	defer close(t.events)
	defer r.note(func() { stretch.Ended = time.Now() })
	defer r.watches(false, 0)
	for event := range t.inner.ResultChan() {
		// What the reflector does not take any more was not heard.
		select {
		case <-t.stop:
			return
		case t.events <- event:
		}
		initial = r.heard(stretch, event, initial)
	}
}

// heard keeps an event and says whether the initial ones go on.
func (r *Recorder) heard(stretch *Stretch, event watch.Event, initial bool) bool {
	if event.Type == watch.Error {
		err := apierrors.FromObject(event.Object)
		r.note(func() { stretch.failed(err) })
		return initial
	}
	item, err := itemOf(event.Object)
	if err != nil {
		r.fault("%s: %v", event.Type, err)
		return initial
	}
	end := false
	if event.Type == watch.Bookmark {
		if accessor, err := meta.Accessor(event.Object); err == nil {
			end = accessor.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
		}
	}
	defer r.reached(item.Version, item.size)
	r.note(func() {
		switch {
		case !initial:
			stretch.Events = append(stretch.Events, Event{Type: event.Type, Item: item, End: end})
		case end:
			stretch.Whole, stretch.Version = true, item.Version
			initial = false
		default:
			if !stretch.begins(event.Type, item) {
				r.faults = append(r.faults, fmt.Sprintf("%s of %s at %d among the initial events", event.Type, item.Key, item.Version))
			}
		}
	})
	return initial
}

// begins takes one of the initial events: an object, or what has become meanwhile of one that came before. It says
// whether there was one.
func (s *Stretch) begins(kind watch.EventType, item Item) bool {
	if kind == watch.Added {
		s.State = append(s.State, item)
		return true
	}
	at := stdslices.IndexFunc(s.State, func(other Item) bool { return other.Key == item.Key })
	switch {
	case at < 0:
		return false
	case kind == watch.Deleted:
		s.State = stdslices.Delete(s.State, at, at+1)
	default:
		s.State[at] = item
	}
	return true
}

// state is what the client holds in the end.
func (r *Recorder) state() (map[string]Item, error) {
	held := map[string]Item{}
	for _, object := range r.store.List() {
		item, err := itemOf(object.(runtime.Object))
		if err != nil {
			return nil, err
		}
		held[item.Key] = item
	}
	return held, nil
}

// Pair is one collection, followed directly and through the hub.
type Pair struct {
	spec   Spec
	direct *Recorder
	hub    *Recorder
}

func followBoth(cluster *Cluster, spec Spec) (*Pair, error) {
	direct, err := open(cluster.direct(spec), spec)
	if err != nil {
		return nil, err
	}
	config, err := cluster.throughHub(spec)
	if err != nil {
		return nil, err
	}
	hub, err := open(config, spec)
	if err != nil {
		return nil, err
	}
	// The one that is compared with must know all that the other may hear.
	first := record(cluster, "direct: "+spec.Name, direct, spec)
	for deadline := time.Now().Add(30 * time.Second); !first.synced(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			first.stop()
			return nil, fmt.Errorf("the API server gives no list within half a minute")
		}
	}
	return &Pair{spec: spec, direct: first, hub: record(cluster, "hub: "+spec.Name, hub, spec)}, nil
}

func (r *Recorder) synced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, stretch := range r.stretches {
		if stretch.Whole {
			return true
		}
	}
	return false
}

func (p *Pair) stop() {
	p.hub.stop()
	p.direct.stop()
}
