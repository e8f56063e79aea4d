// flanneld with what a cluster of kubeadm's needs of it, and nothing else: its Kubernetes subnet manager, its vxlan
// backend and its nftables. The upstream program links every cloud's backend and etcd's client besides.
//
// What it asks the API server for is upstream's own code (pkg/subnet/kube): its pod, its node, a list and watch of all
// nodes, and patches of its node's status.
package main

import (
	"context"
	"flag"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
	"k8s.io/klog/v2"
)

const (
	netConf    = "/etc/kube-flannel/net-conf.json"
	subnetFile = "/run/flannel/subnet.env"
	prefix     = "flannel.alpha.coreos.com"
	resync     = 5
)

func main() {
	klog.InitFlags(nil)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		klog.Exit(err)
	}
}

func run(ctx context.Context) error {
	manager, err := kube.NewSubnetManager(ctx, "", "", prefix, netConf, true)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	public, publicIPv6 := manager.GetStoredPublicIP(ctx)
	options := ipmatch.PublicIPOpts{PublicIP: public, PublicIPv6: publicIPv6}
	external, err := ipmatch.LookupExtIface(public, "", "", stack, options)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	chosen, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	network, err := chosen.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	traffic := &nftables.NFTablesManager{}
	if err := traffic.Init(ctx); err != nil {
		return err
	}
	none, noneIPv6 := ip.IP4Net{}, ip.IP6Net{}
	if err := traffic.SetupAndEnsureMasqRules(ctx, config.Network, none, none, config.IPv6Network, noneIPv6, noneIPv6,
		lease, resync, false); err != nil {
		return err
	}
	traffic.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	if err := manager.HandleSubnetFile(subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	running.Add(1)
	go func() {
		defer running.Done()
		network.Run(ctx)
	}()
	// As upstream's own program: it goes on without. Offline the node cannot be told that its network is there, and it
	// has been told before.
	if err := manager.CompleteLease(ctx, lease, &running); err != nil {
		klog.Errorf("the lease: %v", err)
	}
	running.Wait()
	return nil
}
