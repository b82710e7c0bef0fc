package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"sync"

	"uvxlan/lease"
)

var _ lease.Assigner = (*Registry)(nil)

// Registry is a cluster's leases in Kubernetes.
type Registry struct {
	opts  Options // immutable, as is names
	names names
	junk  junk

	listing sync.Mutex // held while all Nodes are read

	mu     sync.Mutex // guards the rest
	client *client
	closed bool
	node   string // this host's, "" before it is known
	// table is what is known of the Nodes, nil if that isn't to be had without
	// reading them all.
	table *table
	told  *[]byte // the configuration as Config or Watch has told it last, nil before
	// given is what this host's lease was last to say. It may be published with
	// another address.
	given *lease.Attrs
	// conditions wakes up who looks after the Node's condition.
	conditions chan struct{}
	reconnect  context.CancelFunc // ends the watch's request, nil without a watch
}

// Open checks the options. It contacts nobody and reads no file: the first call does.
func Open(o Options) (*Registry, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	return &Registry{
		opts: o, names: newNames(o.AnnotationPrefix), node: o.Node, junk: junk{log: o.Logger},
		conditions: make(chan struct{}, 1),
	}, nil
}

// Close ends the connections and every call; later ones return net.ErrClosed. It is
// idempotent.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.client != nil {
		r.client.close()
	}
	return nil
}

// Reconnect makes connections from the host's address as it is.
func (r *Registry) Reconnect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		r.client.http.CloseIdleConnections()
	}
	if r.reconnect != nil {
		r.reconnect()
	}
}

// Skipped returns how many Nodes say that they have a lease and have none that can be
// read, each version of a Node's annotations counted once.
func (r *Registry) Skipped() uint64 { return r.junk.total() }

// Lifetimes does nothing: leases last as long as their Nodes.
func (*Registry) Lifetimes(context.Context, []lease.Lease) error { return nil }

// Config implements [lease.Registry]. It reads the options' ConfigFile, whether or not
// the API server answers.
func (r *Registry) Config(context.Context) ([]byte, error) {
	text, err := r.readConfig()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = &text
	return text, err
}

func (r *Registry) readConfig() ([]byte, error) {
	text, err := os.ReadFile(r.opts.ConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no file %s", lease.ErrNoConfig, r.opts.ConfigFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", lease.ErrNoConfig, err)
	}
	return text, nil
}

// hasIPv6 tells whether the network has IPv6. Without a configuration it hasn't.
func (r *Registry) hasIPv6() bool {
	text, err := r.readConfig()
	if err != nil {
		return false
	}
	c, err := lease.ParseConfig(text)
	return err == nil && c.EnableIPv6
}

// Conflict implements [lease.Assigner].
func (r *Registry) Conflict() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil {
		return ""
	}
	return r.table.conflict()
}

// PublicIPs are the addresses that the Node's annotations node-public-ip and
// node-public-ipv6 give this host, whatever its interfaces say; the zero Addr where
// there is none. The errors are those of Assigned.
func (r *Registry) PublicIPs(ctx context.Context) (v4, v6 netip.Addr, err error) {
	n, err := r.ownNode(ctx)
	if err != nil {
		return v4, v6, err
	}
	if v4, err = address(r.names.nodePublicIP, n.Metadata.Annotations[r.names.nodePublicIP]); err == nil {
		v6, err = address(r.names.nodePublicIPv6, n.Metadata.Annotations[r.names.nodePublicIPv6])
	}
	if err != nil {
		err = fmt.Errorf("%w: node %s: %w", lease.ErrUnassigned, n.Metadata.Name, err)
	}
	return v4, v6, err
}
