package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// The pod whose status is patched without a link, in a namespace that is not followed.
const patched = "patched"

// Patches are status patches of the node's own pod, as kubelet sends them. Each says its number.
type Patches struct {
	cluster *Cluster
	// The newest that was sent, and the newest that was acknowledged.
	sent, acknowledged int
	made               bool
}

func (p *Patches) client() (kubernetes.Interface, error) {
	config, err := p.cluster.throughHub(Spec{AsNode: true, Encoding: jsonType})
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

// make creates the pod and waits until the hub knows it.
func (p *Patches) make(ctx context.Context) error {
	if p.made {
		return nil
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: patched, Namespace: bulk}, Spec: corev1.PodSpec{
		NodeName:   p.cluster.settings.NodeName,
		Containers: []corev1.Container{{Name: "app", Image: "registry.example.com/app:1.2.3", ImagePullPolicy: corev1.PullIfNotPresent}},
	}}
	_, err := p.cluster.admin.CoreV1().Pods(bulk).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	p.made = err == nil || apierrors.IsAlreadyExists(err)
	return nil
}

// send patches until it has done so often enough or is not answered. Without a number it makes the pod alone.
func (p *Patches) send(times int) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.make(ctx); err != nil {
		return nil, err
	}
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	for range times {
		p.sent++
		body := fmt.Sprintf(`{"status":{"message":"%d"}}`, p.sent)
		_, err := client.CoreV1().Pods(bulk).Patch(ctx, patched, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status")
		if err != nil {
			return map[string]any{"acknowledged": p.acknowledged, "refused": err.Error()}, nil
		}
		p.acknowledged = p.sent
	}
	return map[string]any{"acknowledged": p.acknowledged}, nil
}

func (p *Patches) number(pod *corev1.Pod) int {
	number, err := strconv.Atoi(pod.Status.Message)
	if err != nil {
		return 0
	}
	return number
}

// kept asks the hub for the pod: what was acknowledged must be there.
func (p *Patches) kept() (any, error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var pod *corev1.Pod
	for {
		pod, err = client.CoreV1().Pods(bulk).Get(ctx, patched, metav1.GetOptions{})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the patched pod is not given: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	number := p.number(pod)
	if number < p.acknowledged || number > p.sent {
		return nil, fmt.Errorf("the hub has patch %d; %d was acknowledged and %d sent", number, p.acknowledged, p.sent)
	}
	return map[string]any{"number": number}, nil
}

// arrived waits until the API server has what was acknowledged.
func (p *Patches) arrived() (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		pod, err := p.cluster.admin.CoreV1().Pods(bulk).Get(ctx, patched, metav1.GetOptions{})
		if err == nil {
			if number := p.number(pod); number >= p.acknowledged {
				return map[string]any{"number": number}, nil
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("patch %d was acknowledged and has not arrived after a minute (%v; %+v)", p.acknowledged, err, pod.Status.Message)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
