package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"uvxlan/lease"
)

// nodeName is this host's Node, which its pod may tell.
func (r *Registry) nodeName(ctx context.Context) (string, error) {
	if name := r.ownName(); name != "" {
		return name, nil
	}
	var pod struct {
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
	}
	o := r.opts
	err := r.getInto(ctx, "get pod "+o.PodNamespace+"/"+o.Pod, "/api/v1/namespaces/"+o.PodNamespace+"/pods/"+o.Pod, &pod)
	switch {
	case errors.Is(err, errNotFound):
		return "", fmt.Errorf("%w: %w", lease.ErrUnassigned, err)
	case err != nil:
		return "", err
	case pod.Spec.NodeName == "":
		return "", fmt.Errorf("%w: pod %s/%s has no node", lease.ErrUnassigned, o.PodNamespace, o.Pod)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node = pod.Spec.NodeName
	return r.node, nil
}

// ownName is this host's Node, "" before it is known.
func (r *Registry) ownName() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}

// NodeName returns the name of this host's Node, "" before it is known.
func (r *Registry) NodeName() string { return r.ownName() }

func (r *Registry) get(ctx context.Context, name string, into any) error {
	return r.getInto(ctx, "get node "+name, nodesPath+"/"+name, into)
}

func (r *Registry) getInto(ctx context.Context, what, path string, into any) error {
	return r.call(ctx, what, func(ctx context.Context, c *rest.RESTClient) error {
		return decode(c.Get().AbsPath(path).SetHeader("Accept", jsonForm).MaxRetries(retries).Do(ctx), into)
	})
}

// decode reads an answer. Its error has the API server's own words.
func decode(answer rest.Result, into any) error {
	if err := answer.Error(); err != nil {
		return err
	}
	text, err := answer.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// ownNode reads this host's Node. The error wraps ErrUnassigned if there is none.
func (r *Registry) ownNode(ctx context.Context) (*ownNode, error) {
	name, err := r.nodeName(ctx)
	if err != nil {
		return nil, err
	}
	n := &ownNode{}
	if err = r.get(ctx, name, n); errors.Is(err, errNotFound) {
		return nil, fmt.Errorf("%w: there is no node %s: it comes when the kubelet registers it, at its start", lease.ErrUnassigned, name)
	}
	return n, err
}

// Assigned implements [lease.Assigner].
func (r *Registry) Assigned(ctx context.Context) (lease.Lease, error) {
	n, err := r.ownNode(ctx)
	if err != nil {
		return lease.Lease{}, err
	}
	return r.assigned(n, r.hasIPv6())
}

func (r *Registry) assigned(n *ownNode, ipv6 bool) (lease.Lease, error) {
	name, s := n.Metadata.Name, n.subnets()
	switch {
	case s.isZero():
		return lease.Lease{}, fmt.Errorf("%w: node %s has no podCIDR yet: it comes from kube-controller-manager, with --allocate-node-cidrs and --cluster-cidr", lease.ErrUnassigned, name)
	case !s.v4.IsValid():
		return lease.Lease{}, fmt.Errorf("%w: node %s has only the IPv6 podCIDR %s: a cluster with IPv6 alone is not supported, give it IPv4 as well", lease.ErrUnassigned, name, s.v6)
	case ipv6 && !s.v6.IsValid():
		return lease.Lease{}, fmt.Errorf("%w: node %s has no IPv6 podCIDR beside %s, although the network has EnableIPv6: give kube-controller-manager a --cluster-cidr of both families", lease.ErrUnassigned, name, s.v4)
	}
	e := r.entry(&n.node, s, ipv6)
	l := e.lease
	if !l.Subnet.IsValid() { // it says nothing yet, or nothing that can be read
		l = leaseOf(e.subnets, lease.Attrs{}, 0)
	}
	l.Own = true
	return l, nil
}

// errNotOurs says that Kubernetes decides who has which subnet.
var errNotOurs = errors.New("subnets are the nodes' podCIDRs, which Kubernetes gives and takes: to take one back, delete the node (kubectl delete node)")

// Create implements [lease.Assigner]. It writes the Node's annotations.
func (r *Registry) Create(ctx context.Context, l lease.Lease, _ time.Duration) (lease.Lease, error) {
	return r.publish(ctx, l)
}

// Update implements [lease.Assigner]. It writes the Node's annotations.
func (r *Registry) Update(ctx context.Context, l lease.Lease, _ time.Duration) (lease.Lease, error) {
	return r.publish(ctx, l)
}

// Renew implements [lease.Registry]. There is nothing to renew. It returns ErrConflict
// if the Node's annotations don't say what the lease does.
func (r *Registry) Renew(ctx context.Context, l lease.Lease, _ time.Duration) (lease.Lease, error) {
	now, err := r.Assigned(ctx)
	if err != nil {
		return l, err
	}
	if !now.Equal(l) {
		return l, fmt.Errorf("renew lease of node %s: %w", r.ownName(), lease.ErrConflict)
	}
	r.give(l.Attrs)
	return now, nil
}

// Delete implements [lease.Registry]. It is refused: Nodes are Kubernetes' own.
func (r *Registry) Delete(context.Context, lease.Lease) error { return errNotOurs }

// publish writes the annotations. It reads the Node first, since that may be another
// one by now, and has its say in the address.
func (r *Registry) publish(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	n, err := r.ownNode(ctx)
	if err != nil {
		return l, err
	}
	ipv6 := r.hasIPv6()
	now, err := r.assigned(n, ipv6)
	if err != nil {
		return l, err
	}
	if now.Subnet != l.Subnet || now.IPv6Subnet != l.IPv6Subnet {
		if !l.Own {
			return l, errNotOurs
		}
		return l, fmt.Errorf("node %s has the podCIDR %s, not %s: %w", n.Metadata.Name, now.Subnet, l.Subnet, lease.ErrConflict)
	}
	if o := n.Metadata.Annotations[r.names.overwrite]; o != "" && o != n.Metadata.Annotations[r.names.publicIP] {
		r.opts.Logger.Info("the node's annotation has the other hosts reach this one by another address", "annotation", r.names.overwrite, "public_ip", o)
	}
	after, err := r.patch(ctx, n, map[string]any{"annotations": r.names.write(l.Attrs, n.Metadata.Annotations)}, nil)
	if err != nil {
		return l, err
	}
	r.give(l.Attrs)
	l.Revision, l.Permanent, l.Own = revision(after.Metadata.ResourceVersion), true, true
	r.wake()
	return l, nil
}

// Hold implements [lease.Assigner].
func (r *Registry) Hold(own lease.Lease) { r.give(own.Attrs) }

// give notes what this host's lease is to say.
func (r *Registry) give(a lease.Attrs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given = &a
}

// patch changes this host's Node if that is still the same.
func (r *Registry) patch(ctx context.Context, n *ownNode, metadata map[string]any, status map[string]any) (after node, err error) {
	name := n.Metadata.Name
	if metadata == nil {
		metadata = map[string]any{}
	}
	metadata["uid"] = n.Metadata.UID // else it is refused
	change := map[string]any{"metadata": metadata}
	if status != nil {
		change["status"] = status
	}
	body, err := json.Marshal(change)
	if err != nil {
		return after, fmt.Errorf("encode patch: %w", err)
	}
	what := "patch node " + name
	err = r.call(ctx, what, func(ctx context.Context, c *rest.RESTClient) error {
		err := decode(c.Patch(types.StrategicMergePatchType).AbsPath(nodesPath, name, "status").SetHeader("Accept", jsonForm).
			Param("fieldManager", "uvxlan").Body(body).MaxRetries(retries).Do(ctx), &after)
		switch {
		case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) && r.isAnother(ctx, n):
			return fmt.Errorf("%s: %w", what, lease.ErrConflict)
		case isWriteRefused(err):
			return fmt.Errorf("%s: %w: %w (%s)", what, lease.ErrReadOnly, err, roleWords)
		}
		return err
	})
	return after, err
}

// isAnother tells whether there is another Node of the name.
func (r *Registry) isAnother(ctx context.Context, n *ownNode) bool {
	var now node
	err := r.get(ctx, n.Metadata.Name, &now)
	return errors.Is(err, errNotFound) || err == nil && now.Metadata.UID != n.Metadata.UID
}
