package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Checked says what lists of the hub were worth.
type Checked struct {
	// Lists that were exactly the API server's at their resourceVersion, and objects in them.
	Lists   int `json:"lists"`
	Objects int `json:"objects"`
	// Honest refusals: the hub says that it does not have it.
	Refused int `json:"refused"`
	// What is wrong.
	Faults []string `json:"faults,omitempty"`
}

// everything are the specs, and the large collection.
func (c *Cluster) everything() []Spec {
	all := specs(c.settings.NodeName)
	return append(all, Spec{Name: "the large collection", Resource: configMaps, Namespace: bulk, Encoding: protobuf})
}

// check lists everything through the hub and asks the API server for the very same resourceVersion.
func (c *Cluster) check(offline bool) (*Checked, error) {
	result := &Checked{}
	for _, spec := range c.everything() {
		if err := c.checkOne(spec, offline, result); err != nil {
			return nil, fmt.Errorf("%s: %w", spec.Name, err)
		}
	}
	return result, nil
}

func (c *Cluster) checkOne(spec Spec, offline bool, result *Checked) error {
	config, err := c.throughHub(spec)
	if err != nil {
		return err
	}
	config.Timeout = 40 * time.Second
	hub, err := open(config, spec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	options := metav1.ListOptions{ResourceVersion: "0", LabelSelector: spec.Labels, FieldSelector: spec.Fields}
	list, err := hub.List(ctx, options)
	for deadline := time.Now().Add(30 * time.Second); err != nil && (!offline || !isAnswer(err)) && time.Now().Before(deadline); {
		// The link has just come back, or the hub: a client asks again. Without a link an answer is one.
		time.Sleep(200 * time.Millisecond)
		list, err = hub.List(ctx, options)
	}
	if err != nil {
		if offline && (apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) || apierrors.IsUnauthorized(err) || isStatus(err, http.StatusGatewayTimeout) || saysDamaged(err)) {
			result.Refused++
			return nil
		}
		result.Faults = append(result.Faults, fmt.Sprintf("%s: %v", spec.Name, err))
		return nil
	}
	have, version, err := itemsOf(list)
	if err != nil {
		result.Faults = append(result.Faults, fmt.Sprintf("%s: %v", spec.Name, err))
		return nil
	}
	direct, err := open(c.direct(spec), spec)
	if err != nil {
		return err
	}
	options.ResourceVersion = strconv.FormatUint(version, 10)
	options.ResourceVersionMatch = metav1.ResourceVersionMatchExact
	list, err = direct.List(ctx, options)
	if err != nil {
		result.Faults = append(result.Faults, fmt.Sprintf("%s: the hub's list is at %d, and the API server says %v", spec.Name, version, err))
		return nil
	}
	want, _, err := itemsOf(list)
	if err != nil {
		return err
	}
	found := differences(byKey(want), byKey(have))
	if len(have) != len(byKey(have)) {
		found = append(found, "an object is in it twice")
	}
	if len(found) > 0 {
		result.Faults = append(result.Faults, fmt.Sprintf("%s at %d: %d differences, of %d objects: %s", spec.Name, version, len(found), len(want), found[0]))
		return nil
	}
	result.Lists++
	result.Objects += len(want)
	return nil
}

// saysDamaged is the first answer from a view of which a record is damaged; it starts over.
func saysDamaged(err error) bool {
	return isStatus(err, http.StatusInternalServerError) && strings.Contains(err.Error(), "of the store is damaged")
}

// isAnswer tells what the hub has said from a connection that broke.
func isAnswer(err error) bool {
	_, ok := err.(apierrors.APIStatus)
	return ok
}

func isStatus(err error, code int32) bool {
	status, ok := err.(apierrors.APIStatus)
	return ok && status.Status().Code == code
}

// firstList waits for the first list of a collection that the hub has.
func (c *Cluster) firstList() (any, error) {
	began := time.Now()
	spec := specs(c.settings.NodeName)[0]
	config, err := c.throughHub(spec)
	if err != nil {
		return nil, err
	}
	config.Timeout = 2 * time.Second
	hub, err := open(config, spec)
	if err != nil {
		return nil, err
	}
	options := metav1.ListOptions{ResourceVersion: "0"}
	for {
		_, err = hub.List(context.Background(), options)
		if err == nil {
			return map[string]any{"ms": float64(time.Since(began).Microseconds()) / 1000}, nil
		}
		if time.Since(began) > 40*time.Second {
			return nil, fmt.Errorf("no list within 40 s: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// askForBulk asks for the large collection by a selector that nobody has used, and does not wait: the hub has to fetch
// and store all of it.
func (c *Cluster) askForBulk(number int) (any, error) {
	spec := Spec{Resource: configMaps, Namespace: bulk, Encoding: protobuf}
	config, err := c.throughHub(spec)
	if err != nil {
		return nil, err
	}
	config.Timeout = 30 * time.Second
	hub, err := open(config, spec)
	if err != nil {
		return nil, err
	}
	options := metav1.ListOptions{ResourceVersion: "0", LabelSelector: fmt.Sprintf("round!=number-%d", number)}
	go func() { _, _ = hub.List(context.Background(), options) }()
	return map[string]any{}, nil
}
