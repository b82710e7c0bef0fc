package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"uvxlan/lease"
)

const (
	// configInterval is how often the configuration's file is read again.
	configInterval = 5 * time.Second
	// shortWatch is how long a watch lasts at least that is no sign of trouble.
	shortWatch = 2 * time.Second
	// Bounds of the wait before a watch that was short begins again.
	resumeMin, resumeMax = 50 * time.Millisecond, 5 * time.Second
	// watchTime is how long the API server is to let a watch last, in seconds, half of
	// it at least: so that hosts spread over API servers that come back.
	watchTime = 600
)

// Watch implements [lease.Registry]. The API server ends each watch after some minutes.
// It goes on then from where it was, without an error. While it lasts the Node's
// condition NetworkUnavailable is kept False, unless the options say otherwise.
func (r *Registry) Watch(ctx context.Context, from int64, report func(lease.Update)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { r.keepCondition(ctx) })
	w := &watcher{Registry: r, at: from - 1, report: report, ipv6: r.hasIPv6()}
	w.compareConfig()
	pause := resumeMin
	for {
		start := time.Now()
		err := r.unlimited(ctx, "watch nodes", w.once)
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, lease.ErrCompacted) {
			r.forget()
		}
		if err != nil {
			return err
		}
		if time.Since(start) > shortWatch {
			pause = resumeMin
			continue
		}
		// It may be none at all.
		if _, err := r.ownNode(ctx); err != nil && !errors.Is(err, lease.ErrUnassigned) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, resumeMax)
	}
}

// forget has all Nodes read again.
func (r *Registry) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table = nil
}

// watcher is one call of Watch.
type watcher struct {
	*Registry
	at     int64 // the revision up to which everything is reported
	ipv6   bool
	report func(lease.Update)
}

// once follows the Nodes until the watch ends, which is no error.
func (w *watcher) once(ctx context.Context, c *rest.RESTClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.setReconnect(cancel)
	defer w.setReconnect(nil)
	stream, err := c.Get().AbsPath(nodesPath).SetHeader("Accept", metadataForm).MaxRetries(retries).
		Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("resourceVersion", strconv.FormatInt(w.at, 10)).
		Param("timeoutSeconds", strconv.Itoa(watchTime/2+rand.N(watchTime/2))).Watch(ctx)
	if err != nil {
		return err
	}
	defer stream.Stop()
	tick := time.NewTicker(configInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done(): // or by Reconnect, which is no error
			return nil
		case <-tick.C:
			w.compareConfig()
		case e, ok := <-stream.ResultChan():
			if !ok {
				return nil
			}
			if err := w.take(ctx, e); err != nil {
				return err
			}
		}
	}
}

func (r *Registry) setReconnect(cancel context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reconnect = cancel
}

// compareConfig reports the configuration if its file has changed.
func (w *watcher) compareConfig() {
	now, _ := w.readConfig() // it may be gone
	w.mu.Lock()
	changed := w.told != nil && !bytes.Equal(*w.told, now)
	w.told = &now
	w.mu.Unlock()
	if changed {
		w.report(lease.Update{Config: append([]byte{}, now...), Revision: w.at})
	}
}

// take takes an event.
func (w *watcher) take(ctx context.Context, e watch.Event) error {
	if e.Type == watch.Error {
		return apierrors.FromObject(e.Object)
	}
	m, ok := e.Object.(*metav1.PartialObjectMetadata)
	if !ok {
		return fmt.Errorf("%w: an event has a %T", lease.ErrUnavailable, e.Object)
	}
	at := revision(m.ResourceVersion)
	if at == 0 {
		return fmt.Errorf("%w: %w", lease.ErrUnavailable, errNoRevision)
	}
	var c change
	switch e.Type {
	case watch.Deleted:
		c = w.changeTable(func(t *table) change { return t.remove(m.Name) })
	case watch.Added, watch.Modified:
		entry, err := w.entryOf(ctx, m)
		if err != nil {
			return err
		}
		if entry != nil {
			c = w.changeTable(func(t *table) change { return t.set(entry) })
		}
		if m.Name == w.ownName() {
			w.wake()
		}
	}
	w.at = at
	w.advance(at)
	w.pass(c, at)
	return nil
}

// changeTable changes the table, if it is still there.
func (r *Registry) changeTable(f func(*table) change) change {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil {
		return change{}
	}
	return f(r.table)
}

// advance notes that the table has everything up to a revision.
func (r *Registry) advance(at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table != nil {
		r.table.revision = max(r.table.revision, at)
	}
}

// pass reports what has changed. What is gone comes first, as the same subnet may have
// come to another host.
func (w *watcher) pass(c change, at int64) {
	w.warn(c.losers)
	if len(c.deleted) > 0 {
		for i := range c.deleted {
			c.deleted[i].Revision = at
		}
		w.report(lease.Update{Deleted: c.deleted, Revision: at})
	}
	if len(c.leases) > 0 {
		w.report(lease.Update{Leases: c.leases, Revision: at})
	}
}

// entryOf makes an entry of a Node's metadata. The podCIDRs aren't in them: those that
// aren't known are asked for. It is nil if the Node is another one by now, of which
// the watch will tell.
func (w *watcher) entryOf(ctx context.Context, m *metav1.PartialObjectMetadata) (*entry, error) {
	n := &node{}
	n.Metadata.Name, n.Metadata.UID, n.Metadata.ResourceVersion = m.Name, string(m.UID), m.ResourceVersion
	n.Metadata.CreationTimestamp, n.Metadata.Annotations = m.CreationTimestamp.Time, m.Annotations
	s := w.knownSubnets(m.Name, string(m.UID))
	if w.lacks(s) && w.names.isManaged(m.Annotations) {
		var now node
		err := w.get(ctx, m.Name, &now)
		switch {
		case errors.Is(err, errNotFound) || err == nil && now.Metadata.UID != n.Metadata.UID:
			return nil, nil
		case err != nil:
			return nil, err
		}
		s = now.subnets()
	}
	return w.entry(n, s, w.ipv6), nil
}

// lacks tells whether a Node may have podCIDRs that aren't known.
func (w *watcher) lacks(s subnets) bool { return !s.v4.IsValid() || w.ipv6 && !s.v6.IsValid() }

func (r *Registry) knownSubnets(name, uid string) subnets {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table == nil || r.table.nodes[name] == nil || r.table.nodes[name].uid != uid {
		return subnets{}
	}
	return r.table.nodes[name].subnets
}
