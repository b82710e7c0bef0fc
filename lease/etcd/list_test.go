package etcd_test

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// onWrite calls a function when something is logged.
type onWrite func()

func (f onWrite) Write(p []byte) (int, error) { f(); return len(p), nil }

// Many leases are read page by page and all at one revision, also when another
// client writes meanwhile, and compacts what was being read.
func TestListByPages(t *testing.T) {
	s := etcdtest.Start(t)
	c, ctx := etcdtest.Client(t, s.Endpoint()), t.Context()
	const n = 10
	for i := range n {
		if _, err := c.Put(ctx, fmt.Sprintf("%s10.5.%d.0-24", subnets, i), value); err != nil {
			t.Fatal(err)
		}
	}
	for _, compact := range []bool{false, true} {
		t.Run(fmt.Sprintf("compacted %t", compact), func(t *testing.T) {
			late := subnets + "10.5.99.0-24"
			if _, err := c.Delete(ctx, late); err != nil {
				t.Fatal(err)
			}
			// Between two pages: what is no lease is logged.
			if _, err := c.Put(ctx, subnets+"10.5.3.junk", value); err != nil {
				t.Fatal(err)
			}
			var once sync.Once
			meanwhile := onWrite(func() {
				once.Do(func() {
					put, err := c.Put(ctx, late, value)
					if err == nil && compact {
						_, err = c.Compact(ctx, put.Header.Revision)
					}
					if err != nil {
						t.Error(err)
					}
				})
			})
			r, err := etcd.Open(etcd.Options{Endpoints: []string{s.Endpoint()}, Logger: slog.New(slog.NewTextHandler(meanwhile, nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			r.SetPageSize(3)
			all, revision, err := r.List(ctx)
			var keys []string
			for _, l := range all {
				keys = append(keys, l.Key())
				if l.Revision > revision {
					t.Errorf("%s is of revision %d, after %d", l.Key(), l.Revision, revision)
				}
			}
			want := n
			if compact {
				want++ // it began again
			}
			if err != nil || len(all) != want || slices.Contains(keys, "10.5.99.0-24") != compact || len(slices.Compact(keys)) != want {
				t.Errorf("listed %q at %d, %v", keys, revision, err)
			}
		})
	}
}
