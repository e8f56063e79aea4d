package main

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Writer changes objects as fast as it is told to: makes, changes, relabels, deletes and makes them again by the same
// names, now and then one of them many times in a row.
type Writer struct {
	cluster *Cluster
	random  *rand.Rand
	cancel  context.CancelFunc
	ended   sync.WaitGroup
	pace    func() Pace
	small   bool
	there   map[string]bool
	writes  int
	faults  int
	last    string
}

// newWriter makes one that writes at a pace that clients set.
func newWriter(cluster *Cluster, pace func() Pace) *Writer {
	return &Writer{cluster: cluster, pace: pace, random: rand.New(rand.NewSource(cluster.settings.Seed)), there: map[string]bool{}}
}

func (w *Writer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.ended.Go(func() {
		pause := time.Duration(float64(time.Second) / w.cluster.settings.Rate)
		ticks := time.NewTicker(pause)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
				w.step(ctx)
			}
		}
	})
}

func (w *Writer) stop() any {
	w.cancel()
	w.ended.Wait()
	return map[string]any{"writes": w.writes, "failed": w.faults, "lastFailure": w.last}
}

// The kinds that are written, each with as many names as it has here.
var written = []struct {
	kind  string
	names int
	// Of a hundred.
	share int
}{{"configmap", 40, 50}, {"pod", 24, 25}, {"secret", 16, 10}, {"service", 12, 8}, {"slice", 10, 7}}

func (w *Writer) step(ctx context.Context) {
	dice := w.random.Intn(100)
	for _, of := range written {
		if dice -= of.share; dice >= 0 {
			continue
		}
		namespace := []string{shop, depot}[w.random.Intn(2)]
		name := fmt.Sprintf("item-%d", w.random.Intn(of.names))
		times := 1
		if w.random.Intn(15) == 0 {
			times = 5 + w.random.Intn(25)
		}
		for range times {
			w.write(ctx, of.kind, namespace, name)
		}
		return
	}
}

func (w *Writer) write(ctx context.Context, kind, namespace, name string) {
	for pace := w.pace(); ; pace = w.pace() {
		if w.small = pace == small; pace != nothing {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-w.cluster.news:
		}
	}
	key := kind + "/" + namespace + "/" + name
	var err error
	switch {
	case !w.there[key]:
		_, err = w.create(ctx, kind, namespace, name)
		w.there[key] = err == nil
	case w.random.Intn(8) == 0:
		err = w.remove(ctx, kind, namespace, name)
		w.there[key] = err != nil
	default:
		_, err = w.change(ctx, kind, namespace, name)
	}
	if ctx.Err() != nil {
		// Cut off in the middle: what came of it is seen by whoever follows.
		delete(w.there, key)
		return
	}
	w.writes++
	if err != nil {
		w.faults++
		w.last = err.Error()
		w.there[key] = !w.there[key]
	}
}

func (w *Writer) meta(namespace, name string) metav1.ObjectMeta {
	tier := []string{"front", "back", "none"}[w.random.Intn(3)]
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"tier": tier}}
}

// text is of very different lengths.
func (w *Writer) text() string {
	length := 10 + w.random.Intn(400)
	if w.random.Intn(20) == 0 {
		if long := 20_000 + w.random.Intn(60_000); !w.small {
			length = long
		}
	}
	return strings.Repeat(string(rune('a'+w.random.Intn(26))), length)
}

func (w *Writer) create(ctx context.Context, kind, namespace, name string) (metav1.Object, error) {
	core, none, described := w.cluster.admin.CoreV1(), metav1.CreateOptions{}, w.meta(namespace, name)
	switch kind {
	case "configmap":
		return core.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: described, Data: map[string]string{"text": w.text()}}, none)
	case "secret":
		return core.Secrets(namespace).Create(ctx, &corev1.Secret{ObjectMeta: described, StringData: map[string]string{"text": w.text()}}, none)
	case "service":
		return core.Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: described, Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Port: 80}},
		}}, none)
	case "slice":
		return w.cluster.admin.DiscoveryV1().EndpointSlices(namespace).Create(ctx, &discoveryv1.EndpointSlice{
			ObjectMeta: described, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprintf("10.1.%d.%d", w.random.Intn(256), 1+w.random.Intn(250))}}},
		}, none)
	default:
		node := []string{w.cluster.settings.NodeName, "another"}[w.random.Intn(2)]
		return core.Pods(namespace).Create(ctx, &corev1.Pod{ObjectMeta: described, Spec: corev1.PodSpec{
			NodeName: node,
			Containers: []corev1.Container{{
				Name: "app", Image: "registry.example.com/app:1.2.3", ImagePullPolicy: corev1.PullIfNotPresent,
			}},
		}}, none)
	}
}

func (w *Writer) remove(ctx context.Context, kind, namespace, name string) error {
	core, now := w.cluster.admin.CoreV1(), int64(0)
	options := metav1.DeleteOptions{GracePeriodSeconds: &now}
	switch kind {
	case "configmap":
		return core.ConfigMaps(namespace).Delete(ctx, name, options)
	case "secret":
		return core.Secrets(namespace).Delete(ctx, name, options)
	case "service":
		return core.Services(namespace).Delete(ctx, name, options)
	case "slice":
		return w.cluster.admin.DiscoveryV1().EndpointSlices(namespace).Delete(ctx, name, options)
	default:
		return core.Pods(namespace).Delete(ctx, name, options)
	}
}

// change gives an object another text, another label, or a pod another phase.
func (w *Writer) change(ctx context.Context, kind, namespace, name string) (metav1.Object, error) {
	core, none := w.cluster.admin.CoreV1(), metav1.PatchOptions{}
	tier := []string{"front", "back", "none"}[w.random.Intn(3)]
	body := fmt.Sprintf(`{"metadata":{"labels":{"tier":%q},"annotations":{"text":%q}}}`, tier, w.text())
	if w.random.Intn(3) > 0 {
		body = fmt.Sprintf(`{"metadata":{"annotations":{"text":%q}}}`, w.text())
	}
	patch := []byte(body)
	switch kind {
	case "configmap":
		return core.ConfigMaps(namespace).Patch(ctx, name, types.MergePatchType, patch, none)
	case "secret":
		return core.Secrets(namespace).Patch(ctx, name, types.MergePatchType, patch, none)
	case "service":
		return core.Services(namespace).Patch(ctx, name, types.MergePatchType, patch, none)
	case "slice":
		return w.cluster.admin.DiscoveryV1().EndpointSlices(namespace).Patch(ctx, name, types.MergePatchType, patch, none)
	}
	if w.random.Intn(2) == 0 {
		return core.Pods(namespace).Patch(ctx, name, types.MergePatchType, patch, none)
	}
	phase := []string{"Pending", "Running"}[w.random.Intn(2)]
	status := fmt.Sprintf(`{"status":{"phase":%q,"message":"number %d"}}`, phase, w.writes)
	return core.Pods(namespace).Patch(ctx, name, types.MergePatchType, []byte(status), none, "status")
}
