package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"uvxlan/cmd/internal/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(h http.Handler, method, path, accept string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func health(s control.Source) http.Handler {
	return control.HealthHandler(s, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics") }))
}

func TestHealth(t *testing.T) {
	s := running()
	h := health(s)
	for _, c := range []struct {
		name, method, path string
		change             func(*control.Status)
		code               int
		want               []string
	}{
		{name: "alive", path: "/healthz", code: 200, want: []string{"uvxland is running\n"}},
		{name: "metrics", path: "/metrics", code: 200, want: []string{"metrics"}},
		{name: "no such path", path: "/", code: 404},
		{name: "no such method", method: "POST", path: "/readyz", code: 405},
		{name: "ready", path: "/readyz", code: 200, want: []string{
			"uvxland is ready\n", "device: flannel.1, mtu 1450\n", "lease: 172.7.21.0/24, renewed 2h0m ago, expires in 22h0m\n",
			"etcd: up for 1h30m, 7 errors, the last 1h31m ago: no answer, 1 entries that are no leases\n",
			"watch: alive for 1h30m, last heard of a lease 1.5s ago\n", "peers: 2\n",
		}},
		{
			name: "etcd away", path: "/readyz", code: 200, want: []string{"uvxland is ready\n", "note: by the last table\n", "etcd: down for 1m0s", "watch: not alive"},
			change: func(s *control.Status) {
				s.Notes = []string{"by the last table"}
				s.Etcd.Up, s.Etcd.Since, s.Watch.Alive = false, s.Now.Add(-time.Minute), false
			},
		},
		{
			name: "not ready", path: "/readyz", code: 503, want: []string{"uvxland is not ready yet\n", "not ready: the device is down\n", "lease: none yet\n"},
			change: func(s *control.Status) { s.Ready, s.Reasons, s.Lease = false, []string{"the device is down"}, nil },
		},
		{name: "alive although not ready", path: "/healthz", code: 200},
	} {
		if c.change != nil {
			s.change(c.change)
		}
		method := "GET"
		if c.method != "" {
			method = c.method
		}
		got := ask(h, method, c.path, "")
		if got.Code != c.code {
			t.Errorf("%s: code %d, want %d", c.name, got.Code, c.code)
		}
		for _, want := range c.want {
			if !strings.Contains(got.Body.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, got.Body)
			}
		}
	}
}

func TestReadyInJSON(t *testing.T) {
	s := running()
	for _, ready := range []bool{true, false} {
		s.change(func(s *control.Status) { s.Ready = ready })
		got := ask(health(s), "GET", "/readyz", "text/html, application/json;q=0.9")
		var status control.Status
		if err := json.Unmarshal(got.Body.Bytes(), &status); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(status, s.Status()) {
			t.Errorf("it says\n%s", got.Body)
		}
		if (got.Code == http.StatusOK) != ready || got.Header().Get("Content-Type") != "application/json" {
			t.Errorf("ready %t: %d, %v", ready, got.Code, got.Header())
		}
	}
}

func TestLine(t *testing.T) {
	s := running().status
	s.Notes = []string{"etcd is away"}
	if got := s.Line(); got != "172.7.21.0/24, vxlan, direct by socket, peers: 2; etcd is away" {
		t.Errorf("ready: %q", got)
	}
	s.Reasons = []string{"no lease", "no device"}
	if got := s.Line(); got != "not ready: no lease; etcd is away" {
		t.Errorf("not ready: %q", got)
	}
}

func TestRound(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second:                                 "0s",
		1500 * time.Microsecond:                      "2ms",
		1540 * time.Millisecond:                      "1.5s",
		61 * time.Second:                             "1m1s",
		3*time.Hour + 12*time.Minute + 4*time.Second: "3h12m",
		50 * time.Hour:                               "2d2h",
	} {
		if got := control.Round(d); got != want {
			t.Errorf("%d is %q, want %q", d, got, want)
		}
	}
}

// etcdAway is a daemon that can't reach the leases.
type etcdAway struct{}

func (etcdAway) ListLeases(ctx context.Context) ([]control.LeaseRow, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (etcdAway) ChangeLease(context.Context, control.LeaseChange) (string, error) {
	return "", errors.New("release 10.5.52.0/24: refused: a host holds it")
}

// What went wrong with the leases is told in the daemon's words.
func TestLeasesInWords(t *testing.T) {
	client := control.NewClient(filepath.Join(t.TempDir(), "socket"))
	if _, err := client.Leases(t.Context()); !errors.Is(err, control.ErrNotRunning) {
		t.Error(err)
	}
	h := control.Handler(running(), etcdAway{})
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, "GET", "/v1/leases", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 503 || !strings.Contains(w.Body.String(), "etcd does not answer within") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	for body, want := range map[string]string{
		`{"do":"release","subnet":"10.5.52.0/24"}`: "a host holds it",
		`{"do":`: "unexpected EOF",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", "/v1/leases", strings.NewReader(body)))
		if w.Code == 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d: %s", body, w.Code, w.Body)
		}
	}
	if w := ask(control.Handler(running(), nil), "GET", "/v1/leases", ""); w.Code != 404 {
		t.Errorf("without leases: %d", w.Code)
	}
}
