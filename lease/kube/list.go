package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"k8s.io/client-go/rest"

	"uvxlan/lease"
)

const (
	nodesPath = "/api/v1/nodes"
	// pageSize is how many Nodes one call reads: some 4 MB.
	pageSize = 250
	// tries is how often a list begins again whose end the API server has forgotten.
	tries = 3
)

// List implements [lease.Registry]. As long as the API server remembers what has
// happened since the last time, that is what it goes on with: it only makes sure that
// the API server answers, and [Registry.Watch] tells what has changed.
func (r *Registry) List(ctx context.Context) (all []lease.Lease, revision int64, err error) {
	r.listing.Lock()
	defer r.listing.Unlock()
	if r.hasTable() {
		if _, err := r.ownNode(ctx); err != nil && !errors.Is(err, lease.ErrUnassigned) {
			return nil, 0, err
		}
	} else if err := r.readAll(ctx); err != nil {
		return nil, 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table.leases(), r.table.revision, nil
}

func (r *Registry) hasTable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table != nil
}

// readAll makes the table anew.
func (r *Registry) readAll(ctx context.Context) error {
	own, err := r.nodeName(ctx)
	if err != nil {
		return err
	}
	ipv6 := r.hasIPv6()
	for range tries {
		t := newTable(own)
		var losers []string
		err = r.pages(ctx, t, func(n *node) { losers = append(losers, t.set(r.entry(n, n.subnets(), ipv6)).losers...) })
		if err == nil {
			r.warn(losers)
			r.mu.Lock()
			r.table = t
			r.mu.Unlock()
			return nil
		}
		if !errors.Is(err, lease.ErrCompacted) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", lease.ErrUnavailable, err)
}

// warn tells of Nodes that have another's podCIDR.
func (r *Registry) warn(losers []string) {
	for _, words := range losers {
		r.opts.Logger.Warn("two nodes have one podCIDR: delete the younger, so that it gets another", "error", words)
	}
}

// pages reads all Nodes, a page at a time, which the API server takes from one
// revision.
func (r *Registry) pages(ctx context.Context, t *table, each func(*node)) error {
	for next := ""; ; {
		err := r.call(ctx, "list nodes", func(ctx context.Context, c *rest.RESTClient) error {
			body, err := c.Get().AbsPath(nodesPath).SetHeader("Accept", jsonForm).MaxRetries(retries).
				Param("limit", strconv.Itoa(pageSize)).Param("continue", next).Stream(ctx)
			if err != nil {
				return err
			}
			defer body.Close()
			t.revision, next, err = readPage(body, each)
			return err
		})
		if err != nil || next == "" {
			return err
		}
	}
}

// errNoRevision says that an answer lacks what leases are followed by.
var errNoRevision = errors.New("the answer has no number as its resourceVersion")

// readPage reads a NodeList, a Node at a time, since a page is large.
func readPage(body io.Reader, each func(*node)) (at int64, next string, err error) {
	var meta struct {
		ResourceVersion string `json:"resourceVersion"`
		Continue        string `json:"continue"`
	}
	d := json.NewDecoder(body)
	if _, err := d.Token(); err != nil {
		return 0, "", err
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0, "", err
		}
		switch name {
		case "metadata":
			err = d.Decode(&meta)
		case "items":
			err = readItems(d, each)
		default:
			var other json.RawMessage
			err = d.Decode(&other)
		}
		if err != nil {
			return 0, "", err
		}
	}
	if _, err := d.Token(); err != nil {
		return 0, "", err
	}
	if at = revision(meta.ResourceVersion); at == 0 {
		return 0, "", errNoRevision
	}
	return at, meta.Continue, nil
}

func readItems(d *json.Decoder, each func(*node)) error {
	if t, err := d.Token(); err != nil || t == nil { // null is no Node
		return err
	}
	for d.More() {
		var n node
		if err := d.Decode(&n); err != nil {
			return err
		}
		each(&n)
	}
	_, err := d.Token()
	return err
}

// entry is what a Node is to the table.
func (r *Registry) entry(n *node, s subnets, ipv6 bool) *entry {
	if !ipv6 {
		s.v6 = subnets{}.v6
	}
	m := n.Metadata
	e := &entry{name: m.Name, uid: m.UID, created: m.CreationTimestamp, subnets: s}
	if !r.names.isManaged(m.Annotations) {
		r.junk.well(m.Name)
		return e
	}
	if !s.v4.IsValid() {
		r.junk.add(m.Name, errors.New("it has no IPv4 podCIDR"))
		return e
	}
	a, err := r.names.read(m.Annotations, ipv6)
	if err == nil {
		err = missing(a, s)
	}
	if err != nil {
		r.junk.add(m.Name, err)
		e.lease = leaseOf(s, lease.Attrs{}, revision(m.ResourceVersion))
		e.lease.Damaged = true
		return e
	}
	r.junk.well(m.Name)
	if own := r.givenTo(m.Name); own != nil && r.names.says(m.Annotations, *own) {
		a = *own
	} else if own != nil {
		a = unlike(a, *own)
	}
	e.lease = leaseOf(s, a, revision(m.ResourceVersion))
	return e
}

// missing says what a lease lacks that somebody may have taken away: no daemon leaves it
// out. Other backends' data are not for us to judge.
func missing(a lease.Attrs, s subnets) error {
	if a.BackendType != lease.TypeVXLAN && a.BackendType != lease.TypeHostGW {
		return nil
	}
	if !a.PublicIP.IsValid() || s.v6.IsValid() && !a.PublicIPv6.IsValid() {
		return errors.New("it says no public address")
	}
	if a.BackendType == lease.TypeHostGW {
		return nil
	}
	_, err := a.VXLAN()
	if err == nil && s.v6.IsValid() {
		_, err = a.VXLANv6()
	}
	return err
}

// givenTo is what the lease was last to say, if the Node is this host's.
func (r *Registry) givenTo(name string) *lease.Attrs {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name != r.node {
		return nil
	}
	return r.given
}

// unlike returns attributes that don't equal own, since the annotations differ from
// what those would be.
func unlike(a, own lease.Attrs) lease.Attrs {
	if a.Equal(own) {
		a.PublicIP = subnets{}.v4.Addr()
	}
	return a
}
