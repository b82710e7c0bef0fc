package main

import (
	"flag"
	"fmt"
	"slices"
	"strings"
)

// defineKube names the flags with which flannel takes leases from Kubernetes:
// unit files give them with values that ask for nothing.
func defineKube(fs *flag.FlagSet) {
	const no = "not supported, leases are in etcd: "
	fs.Bool("kube-subnet-mgr", false, no+"take leases from Kubernetes")
	fs.String("kube-api-url", "", no+"`URL` of the API server")
	fs.String("kubeconfig-file", "", no+"`file` of its credentials")
	fs.String("kube-annotation-prefix", "flannel.alpha.coreos.com", no+"`prefix` of annotations")
	fs.String("net-config-path", "/etc/kube-flannel/net-conf.json", no+"`file` of the network configuration")
	fs.Bool("set-node-network-unavailable", true, no+"tell the node's condition")
}

// checkKube refuses what asks for Kubernetes. The node's condition is a thing of
// -kube-subnet-mgr alone, and asks for nothing without it.
func checkKube(fs *flag.FlagSet) error {
	var asked []string
	for _, name := range []string{"kube-subnet-mgr", "kube-api-url", "kubeconfig-file", "kube-annotation-prefix", "net-config-path"} {
		f := fs.Lookup(name)
		if !slices.Contains([]string{"", f.DefValue}, f.Value.String()) {
			asked = append(asked, "-"+name)
		}
	}
	if len(asked) == 0 {
		return nil
	}
	return fmt.Errorf("%s: leases are in etcd, not in Kubernetes: give -etcd-endpoints instead, and put the network configuration there (uvxlan config set FILE)",
		strings.Join(asked, ", "))
}
