package etcdserver

import (
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	defaultListen = "http://127.0.0.1:2379"
	// member is part of the data: another name wouldn't find its own cluster.
	member = "uvxlan"
	// history is how long old revisions are kept. A client that was away longer
	// reads everything again.
	history = "1h"
	quota   = 1 << 30
	// slow is when etcd complains about its disk; its default of 100 ms is
	// routine on the small machines that embed it.
	slow = time.Second
)

// config is a cluster of one: nobody else can join, so no peer port is opened.
func config(o Options, mute *atomic.Bool) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name, c.Dir = member, o.Dir
	c.InitialCluster = c.InitialClusterFromName(member)
	var err error
	if c.ListenClientUrls, err = urls(o.ListenClient, defaultListen); err != nil {
		return nil, err
	}
	if c.AdvertiseClientUrls, err = urls(o.AdvertiseClient, o.ListenClient, defaultListen); err != nil {
		return nil, err
	}
	c.ListenPeerUrls = nil
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, history
	c.QuotaBackendBytes = quota
	c.WarningApplyDuration, c.WarningUnaryRequestDuration = slow, slow
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(o.Logger, mute))
	return c, nil
}

// urls reads the first list that isn't empty.
func urls(lists ...string) ([]url.URL, error) {
	for len(lists) > 1 && lists[0] == "" {
		lists = lists[1:]
	}
	var out []url.URL
	for s := range strings.SplitSeq(lists[0], ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Scheme != "http" || u.Port() == "" {
			return nil, fmt.Errorf("embedded etcd: address %q: must be like %s", s, defaultListen)
		}
		out = append(out, *u)
	}
	return out, nil
}
