package kube

import (
	"net/netip"
	"strconv"
	"time"

	"uvxlan/lease"
)

// node is what counts of a Node.
type node struct {
	Metadata struct {
		Name              string            `json:"name"`
		UID               string            `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		CreationTimestamp time.Time         `json:"creationTimestamp"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
}

// ownNode has a condition beside that.
type ownNode struct {
	node
	Status struct {
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type   string `json:"type"`
	Status string `json:"status"`
	Reason string `json:"reason"`
}

// networkUnavailable is the condition by which Kubernetes keeps pods off a node.
const networkUnavailable = "NetworkUnavailable"

// available tells whether the Node says that it has its network.
func (n *ownNode) available() bool {
	for _, c := range n.Status.Conditions {
		if c.Type == networkUnavailable {
			return c.Status == "False"
		}
	}
	return false
}

// subnets are the podCIDRs, the first of each family.
type subnets struct{ v4, v6 netip.Prefix }

func (n *node) subnets() (s subnets) {
	all := n.Spec.PodCIDRs
	if len(all) == 0 {
		all = []string{n.Spec.PodCIDR}
	}
	for _, text := range all {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
		case p.Addr().Is4() && !s.v4.IsValid():
			s.v4 = p.Masked()
		case p.Addr().Is6() && !s.v6.IsValid():
			s.v6 = p.Masked()
		}
	}
	return s
}

func (s subnets) isZero() bool { return s == subnets{} }

// all are the subnets that there are.
func (s subnets) all() (all []netip.Prefix) {
	for _, n := range []netip.Prefix{s.v4, s.v6} {
		if n.IsValid() {
			all = append(all, n)
		}
	}
	return all
}

// revision is a resourceVersion's number; 0 if it has none. Since Kubernetes 1.35 it
// is promised to be one, and it has been one with etcd before.
func revision(resourceVersion string) int64 {
	n, _ := strconv.ParseInt(resourceVersion, 10, 64)
	return n
}

// leaseOf is the Node's lease.
func leaseOf(s subnets, a lease.Attrs, at int64) lease.Lease {
	return lease.Lease{Subnet: s.v4, IPv6Subnet: s.v6, Attrs: a, Revision: at, Permanent: true}
}
