package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The identity that reads everything.
const reader = "reader"

// Cluster is what is known of the API server and of the hub.
type Cluster struct {
	settings Settings
	admin    kubernetes.Interface
	token    string
	// A client has heard something since this was last looked at.
	news chan struct{}
}

// setUp makes what must be there before anything is followed.
func setUp(settings Settings) (*Cluster, error) {
	admin, err := kubernetes.NewForConfig(certificateConfig(settings.API, settings.APICA, settings.Admin))
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{settings: settings, admin: admin, news: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := cluster.accounts(ctx); err != nil {
		return nil, err
	}
	return cluster, cluster.bulk(ctx)
}

func certificateConfig(server, ca, pem string) *rest.Config {
	return &rest.Config{
		Host:            server,
		QPS:             -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: ca, CertFile: pem, KeyFile: pem},
	}
}

func (c *Cluster) accounts(ctx context.Context) error {
	core, rbac := c.admin.CoreV1(), c.admin.RbacV1()
	none := metav1.CreateOptions{}
	for _, name := range []string{shop, depot, bulk} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := core.Namespaces().Create(ctx, namespace, none); err != nil {
			return err
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.settings.NodeName}}
	if _, err := core.Nodes().Create(ctx, node, none); err != nil {
		return err
	}
	named := metav1.ObjectMeta{Name: reader, Namespace: shop}
	if _, err := core.ServiceAccounts(shop).Create(ctx, &corev1.ServiceAccount{ObjectMeta: named}, none); err != nil {
		return err
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: reader}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"get", "list", "watch"}},
	}}
	if _, err := rbac.ClusterRoles().Create(ctx, role, none); err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: reader},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: reader},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: reader, Namespace: shop}},
	}
	if _, err := rbac.ClusterRoleBindings().Create(ctx, binding, none); err != nil {
		return err
	}
	day := int64(24 * 60 * 60)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &day}}
	reply, err := core.ServiceAccounts(shop).CreateToken(ctx, reader, request, none)
	if err != nil {
		return err
	}
	c.token = reply.Status.Token
	return nil
}

// bulk makes a collection that takes a while to list.
func (c *Cluster) bulk(ctx context.Context) error {
	var group sync.WaitGroup
	failed := make(chan error, 1)
	const writers = 8
	for writer := range writers {
		group.Go(func() {
			for number := writer; number < c.settings.Bulk; number += writers {
				object := &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bulk-%05d", number), Namespace: bulk},
					Data:       map[string]string{"text": strings.Repeat(fmt.Sprintf("%05d ", number), 150)},
				}
				_, err := c.admin.CoreV1().ConfigMaps(bulk).Create(ctx, object, metav1.CreateOptions{})
				if err != nil && !apierrors.IsAlreadyExists(err) {
					select {
					case failed <- err:
					default:
					}
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("the large collection: %w", err)
	default:
		return nil
	}
}

// version is the newest that the API server has: nobody can have been told of a newer one before this was asked.
func (c *Cluster) version(ctx context.Context) (uint64, error) {
	list, err := c.admin.CoreV1().Namespaces().List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	return versionOf(list.ResourceVersion)
}

func (c *Cluster) heard() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// direct is a client's configuration past the hub.
func (c *Cluster) direct(spec Spec) *rest.Config {
	if spec.AsNode {
		return encoded(certificateConfig(c.settings.API, c.settings.APICA, c.settings.Node), spec.Encoding)
	}
	return encoded(&rest.Config{
		Host: c.settings.API, QPS: -1, BearerToken: c.token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.settings.APICA},
	}, spec.Encoding)
}

// throughHub is the same client's on the node.
func (c *Cluster) throughHub(spec Spec) (*rest.Config, error) {
	config := c.direct(spec)
	ca, err := c.nodeCA()
	if err != nil {
		return nil, err
	}
	config.Host = c.settings.Hub
	config.CAFile, config.CAData = "", ca
	if spec.AsNode {
		pem, err := os.ReadFile(c.settings.Node)
		if err != nil {
			return nil, err
		}
		config.CertFile, config.KeyFile, config.CertData, config.KeyData = "", "", pem, pem
	}
	return config, nil
}

func encoded(config *rest.Config, encoding string) *rest.Config {
	config.ContentType = encoding
	config.AcceptContentTypes = encoding
	if encoding == protobuf {
		config.AcceptContentTypes = protobuf + "," + jsonType
	}
	return config
}

// nodeCA asks the hub for the CA that it vouches for itself with. The hub may just be starting.
func (c *Cluster) nodeCA() ([]byte, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		answer, err := client.Get(c.settings.Health + "/ca.crt")
		if err != nil {
			last = err
			continue
		}
		body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
		answer.Body.Close()
		if err == nil && answer.StatusCode == http.StatusOK && len(body) > 0 {
			return body, nil
		}
		last = fmt.Errorf("HTTP %d: %s (%v)", answer.StatusCode, body, err)
	}
	return nil, fmt.Errorf("the hub does not give its CA: %w", last)
}
