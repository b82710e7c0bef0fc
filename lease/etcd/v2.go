package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Bounds of the look at etcd's old store: one endpoint, seldom, and no more than a
// configuration can be.
const (
	v2Interval = 30 * time.Second
	v2Timeout  = 2 * time.Second
	v2Limit    = 64 << 10
)

// v2 remembers what etcd's old store has under the configuration's key. Tutorials of
// flannel write it there, with etcdctl set, where no client of today finds it.
type v2 struct {
	mu    sync.Mutex // guards both
	asked time.Time
	value string // empty if there is none
}

// howToWrite says what to do where there is no configuration.
func (r *Registry) howToWrite(ctx context.Context) string {
	r.v2.mu.Lock()
	defer r.v2.mu.Unlock()
	if time.Since(r.v2.asked) > v2Interval {
		r.v2.value, r.v2.asked = r.askV2(ctx), time.Now()
	}
	if r.v2.value == "" {
		return fmt.Sprintf(`write one, such as by uvxlan config set%s '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'`, r.opts.Flags())
	}
	return fmt.Sprintf("it has one that was written by its old v2 API (etcdctl set): write it anew, by uvxlan config set%s '%s' or ETCDCTL_API=3 etcdctl%s put %s '%[2]s'",
		r.opts.Flags(), r.v2.value, r.opts.etcdctlFlags(), r.configKey())
}

// askV2 asks the first endpoint that answers at all; an etcd without the old API has
// nothing.
func (r *Registry) askV2(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, v2Timeout)
	defer cancel()
	transport := &http.Transport{DialContext: r.dialAny, TLSClientConfig: r.files.config(), DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	for _, e := range r.opts.Endpoints {
		base, ok := r.webAddress(e)
		if !ok {
			continue
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/keys"+r.configKey(), nil)
		if err != nil {
			continue
		}
		answer, err := client.Do(request)
		if err != nil {
			continue
		}
		defer answer.Body.Close()
		var found struct{ Node struct{ Value string } }
		text, err := io.ReadAll(io.LimitReader(answer.Body, v2Limit))
		if err != nil || answer.StatusCode != http.StatusOK || json.Unmarshal(text, &found) != nil {
			return ""
		}
		return strings.Join(strings.Fields(found.Node.Value), " ")
	}
	return ""
}

// webAddress is the endpoint's as HTTP has it; false if it is no network's.
func (r *Registry) webAddress(endpoint string) (string, bool) {
	switch schemeOf(endpoint) {
	case "http", "https":
		return endpoint, true
	case "":
		if r.opts.hasTLS() {
			return "https://" + endpoint, true
		}
		return "http://" + endpoint, true
	}
	return "", false
}
