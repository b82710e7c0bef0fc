package kube_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"uvxlan/lease"
	"uvxlan/lease/kube"
	"uvxlan/lease/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	network = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`
	dual    = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/56","Backend":{"Type":"vxlan"}}`
	// patience bounds the wait for what should be at once.
	patience = 20 * time.Second
)

// start is a cluster with three nodes, of which n2 and n3 have joined.
func start(t *testing.T) *kubetest.Server {
	t.Helper()
	s := kubetest.Start(t)
	fill(t, s.Cluster)
	return s
}

func fill(t *testing.T, s *kubetest.Cluster) {
	t.Helper()
	s.WriteConfig(t, network)
	for i := range 3 {
		s.CreateNode(t, node(i+1), subnet(i+1))
	}
	s.Join(t, "n2", "192.168.14.22", "02:00:00:00:00:22")
	s.Join(t, "n3", "192.168.14.23", "02:00:00:00:00:23")
}

func node(i int) string   { return fmt.Sprintf("n%d", i) }
func subnet(i int) string { return fmt.Sprintf("10.244.%d.0/24", i-1) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// watched is what a watch has reported.
type watched struct {
	mu      sync.Mutex
	updates []lease.Update
	table   map[netip.Prefix]lease.Lease
	err     error
	done    chan struct{}
}

// follow lists and watches until the test ends, or the watch does.
func follow(t *testing.T, r *kube.Registry) *watched {
	t.Helper()
	all, at, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{table: map[netip.Prefix]lease.Lease{}, done: make(chan struct{})}
	for _, l := range all {
		w.table[l.Subnet] = l
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(w.done)
		err := r.Watch(ctx, at+1, w.report)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}()
	t.Cleanup(func() {
		cancel()
		<-w.done
	})
	return w
}

func (w *watched) report(u lease.Update) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updates = append(w.updates, u)
	for _, l := range u.Deleted {
		delete(w.table, l.Subnet)
	}
	for _, l := range u.Leases {
		w.table[l.Subnet] = l
	}
}

func (w *watched) reports() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.updates)
}

// at is the public address of who has a subnet, "" if nobody has.
func (w *watched) at(i int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l, ok := w.table[netip.MustParsePrefix(subnet(i))]; ok {
		if l.Damaged {
			return "damaged"
		}
		return l.Attrs.PublicIP.String()
	}
	return ""
}

func attrs(ip string) lease.Attrs {
	return lease.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: lease.TypeVXLAN, BackendData: []byte(`{"VNI":1,"VtepMAC":"02:00:00:00:00:21"}`)}
}

// What a host publishes stands there in flannel's form.
func publish(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	r := s.Open(t, "n1", nil)
	l, err := r.Assigned(t.Context())
	if err != nil || l.Subnet.String() != "10.244.0.0/24" || l.Revision != 0 || !l.Own || !l.Permanent || l.Attrs.BackendType != "" {
		t.Fatalf("%+v, %v", l, err)
	}
	l.Attrs = attrs("192.168.14.21")
	if l, err = r.Create(t.Context(), l, time.Hour); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.14.21", "backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:21"}`,
	}
	got := s.Node(t, "n1").Metadata.Annotations
	for name, value := range want {
		if got[kubetest.Prefix+name] != value {
			t.Errorf("%s is %q, want %q", name, got[kubetest.Prefix+name], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the annotations are %v", got)
	}
	if again, err := r.Assigned(t.Context()); err != nil || !again.Equal(l) || again.Revision == 0 {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := r.Renew(t.Context(), l, time.Hour); err != nil {
		t.Error(err)
	}
	hostGW := l
	hostGW.Attrs = lease.Attrs{PublicIP: l.Attrs.PublicIP, BackendType: lease.TypeHostGW}
	if _, err := r.Update(t.Context(), hostGW, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := s.Node(t, "n1").Metadata.Annotations[kubetest.Prefix+"backend-data"]; got != "null" {
		t.Errorf("host-gw's data is %q, want null as flannel has it", got)
	}
	if _, err := r.Renew(t.Context(), l, time.Hour); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("renewed what isn't there: %v", err)
	}
}

func TestListAndWatch(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	w := follow(t, r)
	if w.at(2) != "192.168.14.22" || w.at(3) != "192.168.14.23" || w.at(1) != "" {
		t.Fatalf("listed %v", w.table)
	}
	s.Annotate(t, "n2", map[string]any{"public-ip": "192.168.14.99"})
	eventually(t, "a changed address", func() bool { return w.at(2) == "192.168.14.99" })
	s.DeleteNode(t, "n3")
	eventually(t, "a deleted node", func() bool { return w.at(3) == "" })
	s.CreateNode(t, "n4", subnet(4))
	s.Join(t, "n4", "192.168.14.24", "02:00:00:00:00:24")
	eventually(t, "a new node", func() bool { return w.at(4) == "192.168.14.24" })
	s.CreateNode(t, "n5")
	s.Assign(t, "n5", subnet(5))
	s.Join(t, "n5", "192.168.14.25", "02:00:00:00:00:25")
	eventually(t, "a node whose podCIDR came later", func() bool { return w.at(5) == "192.168.14.25" })
	s.Annotate(t, "n4", map[string]any{"kube-subnet-manager": nil})
	eventually(t, "a node that has left", func() bool { return w.at(4) == "" })
	if lists, watches := s.Count("list"), s.Count("watch"); lists != 1 || watches != 1 {
		t.Errorf("%d lists and %d watches, want one of each", lists, watches)
	}
}

// Kubelets change their Nodes all the time. No host hears of that.
func TestHeartbeatsAreNotReported(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := follow(t, s.Open(t, "n1", nil))
	for range 50 {
		for i := range 3 {
			s.Heartbeat(node(i + 1))
		}
	}
	s.Annotate(t, "n2", map[string]any{"public-ip": "192.168.14.99"})
	eventually(t, "what comes after", func() bool { return w.at(2) == "192.168.14.99" })
	if n := w.reports(); n != 1 {
		t.Errorf("%d reports, want the last alone", n)
	}
}

// A watch that ends goes on where it was. All is read again only if that is forgotten.
func TestWatchesEnd(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	w := follow(t, r)
	s.EndWatches(500 * time.Millisecond)
	for i := range 4 {
		seen := s.Count("watch")
		eventually(t, "another watch", func() bool { return s.Count("watch") > seen })
		s.Annotate(t, "n2", map[string]any{"public-ip": fmt.Sprintf("192.168.14.%d", 100+i)})
		eventually(t, "a change between watches", func() bool { return w.at(2) == fmt.Sprintf("192.168.14.%d", 100+i) })
	}
	if n := s.Count("list"); n != 1 {
		t.Errorf("%d lists, want one", n)
	}
	s.EndWatches(0)
	s.Bookmark()
	s.Compact(false)
	s.Heartbeat("n2")
	<-w.done
	if !errors.Is(w.err, lease.ErrCompacted) {
		t.Errorf("the watch ended with %v", w.err)
	}
	if again := follow(t, r); again.at(2) != "192.168.14.103" || s.Count("list") != 2 {
		t.Errorf("%s after %d lists", again.at(2), s.Count("list"))
	}
}

// An API server that goes and comes back costs no list.
func TestOutage(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	w := follow(t, r)
	s.Down()
	<-w.done
	if !errors.Is(w.err, lease.ErrUnavailable) || !strings.Contains(w.err.Error(), s.URL) {
		t.Errorf("the watch ended with %v", w.err)
	}
	if _, _, err := r.List(t.Context()); !errors.Is(err, lease.ErrUnavailable) {
		t.Error(err)
	}
	s.Up(t)
	s.Annotate(t, "n2", map[string]any{"public-ip": "192.168.14.99"})
	again := follow(t, r)
	eventually(t, "what has changed meanwhile", func() bool { return again.at(2) == "192.168.14.99" })
	if n := s.Count("list"); n != 1 {
		t.Errorf("%d lists, want one", n)
	}
}

// A revision that is forgotten is told by a status as well.
func TestGoneByStatus(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	_, at, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Compact(true)
	if err := r.Watch(t.Context(), at+1, func(lease.Update) {}); !errors.Is(err, lease.ErrCompacted) {
		t.Error(err)
	}
}

// What the API server refuses is told in words, and passes.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	for status, want := range map[int]string{
		http.StatusForbidden: "patch nodes/status", http.StatusTooManyRequests: "too many requests",
		http.StatusInternalServerError: "status 500", http.StatusUnauthorized: "credentials",
	} {
		s.Fail(func(*http.Request) int { return status })
		if _, _, err := r.List(t.Context()); !errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", status, err)
		}
	}
	s.Fail(func(r *http.Request) int {
		if r.Method == http.MethodPatch {
			return http.StatusForbidden
		}
		return 0
	})
	l, err := r.Assigned(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Attrs = attrs("192.168.14.21")
	if _, err := r.Create(t.Context(), l, time.Hour); !errors.Is(err, lease.ErrReadOnly) || !strings.Contains(err.Error(), "patch nodes/status") || !strings.Contains(err.Error(), "the test refuses it") {
		t.Error(err)
	}
	s.Fail(nil)
	if _, err := r.Create(t.Context(), l, time.Hour); err != nil {
		t.Error(err)
	}
}

// A token that the kubelet has renewed is read as soon as the old one is refused.
func TestTokenRotates(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", nil)
	follow(t, r)
	s.WriteToken(t, "new")
	s.Accept("new")
	eventually(t, "the new token", func() bool {
		_, err := r.Assigned(t.Context())
		return err == nil
	})
}

func ownNode(t *testing.T, s *kubetest.Cluster) {
	s.WriteConfig(t, network)
	r := s.Open(t, "n1", nil)
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "there is no node n1"},
		{func() { s.CreateNode(t, "n1") }, "no podCIDR yet"},
		{func() { s.DeleteNode(t, "n1"); s.CreateNode(t, "n1", "fd00:244::/64") }, "IPv6 alone is not supported"},
		{func() { s.WriteConfig(t, dual); s.DeleteNode(t, "n1"); s.CreateNode(t, "n1", "10.244.0.0/24") }, "no IPv6 podCIDR beside"},
	} {
		step.do()
		if _, err := r.Assigned(t.Context()); !errors.Is(err, lease.ErrUnassigned) || !strings.Contains(err.Error(), step.want) {
			t.Errorf("%v, want %q", err, step.want)
		}
	}
	s.DeleteNode(t, "n1")
	s.CreateNode(t, "n1", "10.244.7.0/25", "fd00:244:0:7::/64")
	if l, err := r.Assigned(t.Context()); err != nil || l.Key() != "10.244.7.0-25&fd00:244:0:7::-64" {
		t.Errorf("%+v, %v", l, err)
	}
	l := lease.Lease{Subnet: netip.MustParsePrefix("10.244.0.0/24"), Own: true, Attrs: attrs("192.168.14.21")}
	if _, err := r.Update(t.Context(), l, time.Hour); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("wrote for a podCIDR that is gone: %v", err)
	}
}

// A host that doesn't know its node finds it by its pod.
func TestNodeByPod(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "", func(o *kube.Options) { o.PodNamespace, o.Pod = "kube-system", "uvxlan-x" })
	if _, err := r.Assigned(t.Context()); !errors.Is(err, lease.ErrUnassigned) || !strings.Contains(err.Error(), "kube-system/uvxlan-x") {
		t.Error(err)
	}
	s.CreatePod("kube-system", "uvxlan-x", "n1")
	if l, err := r.Assigned(t.Context()); err != nil || l.Subnet.String() != subnet(1) {
		t.Errorf("%+v, %v", l, err)
	}
}

// Of two nodes with one podCIDR the older has it, for every host alike.
func duplicate(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	w := follow(t, s.Open(t, "n1", nil))
	s.CreateNode(t, "n8", subnet(2))
	s.Join(t, "n8", "192.168.14.20", "02:00:00:00:00:20")
	s.Annotate(t, "n3", map[string]any{"public-ip": "192.168.14.99"})
	eventually(t, "what comes after", func() bool { return w.at(3) == "192.168.14.99" })
	if got := w.at(2); got != "192.168.14.22" {
		t.Errorf("%s is at %s, want the older node's", subnet(2), got)
	}
	if fresh := follow(t, s.Open(t, "n3", nil)); fresh.at(2) != "192.168.14.22" {
		t.Errorf("a host that starts has it at %s", fresh.at(2))
	}
	s.DeleteNode(t, "n2")
	eventually(t, "the younger takes its place", func() bool { return w.at(2) == "192.168.14.20" })
}

// A host whose podCIDR another node has as well keeps it, and is told.
func duplicateOfOwn(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	younger := s.Open(t, "n2", nil)
	w := follow(t, younger)
	s.CreateNode(t, "n9", subnet(2))
	s.Join(t, "n9", "192.168.14.29", "02:00:00:00:00:29")
	eventually(t, "words about it", func() bool {
		return strings.Contains(younger.Conflict(), "node n9 has this node's podCIDR 10.244.1.0/24")
	})
	if w.at(2) != "192.168.14.22" {
		t.Errorf("own subnet is at %s", w.at(2))
	}
	older := s.Open(t, "n9", nil)
	follow(t, older)
	if got := older.Conflict(); !strings.Contains(got, "node n2 has this node's podCIDR") || !strings.Contains(got, "is older") {
		t.Errorf("it says %q", got)
	}
}

// A node that was registered anew may have another podCIDR.
func nodeRegistersAnew(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	w := follow(t, s.Open(t, "n1", nil))
	s.DeleteNode(t, "n2")
	s.CreateNode(t, "n2", subnet(7))
	s.Join(t, "n2", "192.168.14.22", "02:00:00:00:00:22")
	eventually(t, "the new podCIDR", func() bool { return w.at(7) == "192.168.14.22" && w.at(2) == "" })
}

// A lease that can't be read is told as such: nobody may take a host for gone whose
// annotations somebody has spoilt.
func unreadable(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	r := s.Open(t, "n1", nil)
	s.Annotate(t, "n3", map[string]any{"public-ip": "here"})
	w := follow(t, r)
	if w.at(3) != "damaged" || w.at(2) == "" || r.Skipped() != 1 {
		t.Errorf("listed %v, skipped %d", w.table, r.Skipped())
	}
	s.SetCondition(t, "n3", "Ready", "True")
	for i, change := range []map[string]any{{"backend-data": "{"}, {"backend-data": nil}, {"public-ip": nil}} {
		s.Annotate(t, "n2", change)
		eventually(t, "another that can't be read", func() bool { return w.at(2) == "damaged" && r.Skipped() == uint64(i)+2 })
		s.Join(t, "n2", "192.168.14.22", "02:00:00:00:00:22")
		eventually(t, "its return", func() bool { return w.at(2) == "192.168.14.22" })
	}
	s.Annotate(t, "n3", map[string]any{"public-ip": "192.168.14.23"})
	eventually(t, "the first one's return", func() bool { return w.at(3) == "192.168.14.23" })
	if r.Skipped() != 4 {
		t.Errorf("skipped %d", r.Skipped())
	}
}

// What the operator wants published instead of a host's own address is.
func overwrite(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	s.Annotate(t, "n1", map[string]any{"public-ip-overwrite": "203.0.113.1", "node-public-ip": "192.168.14.121", "node-public-ipv6": "fd00::21"})
	r := s.Open(t, "n1", nil)
	if v4, v6, err := r.PublicIPs(t.Context()); err != nil || v4.String() != "192.168.14.121" || v6.String() != "fd00::21" {
		t.Errorf("%s, %s, %v", v4, v6, err)
	}
	l, err := r.Assigned(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Attrs = attrs("192.168.14.21")
	if _, err := r.Create(t.Context(), l, time.Hour); err != nil {
		t.Fatal(err)
	}
	w := follow(t, s.Open(t, "n2", nil))
	if w.at(1) != "203.0.113.1" {
		t.Errorf("the other hosts are told %s", w.at(1))
	}
	// To the host itself, its lease says what it wants it to.
	if now, err := r.Assigned(t.Context()); err != nil || !now.Equal(l) {
		t.Errorf("%+v, %v", now, err)
	}
	// So it does to a process that goes on with the lease of another.
	next := s.Open(t, "n1", nil)
	next.Hold(l)
	if now, err := next.Assigned(t.Context()); err != nil || !now.Equal(l) {
		t.Errorf("to the next process it is %+v, %v", now, err)
	}
	s.Annotate(t, "n1", map[string]any{"public-ip-overwrite": "203.0.113.2"})
	if now, err := r.Assigned(t.Context()); err != nil || now.Equal(l) {
		t.Errorf("another overwrite changes nothing: %+v, %v", now, err)
	}
	if _, err := r.Update(t.Context(), l, time.Hour); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other overwrite", func() bool { return w.at(1) == "203.0.113.2" })
	s.Annotate(t, "n1", map[string]any{"public-ip-overwrite": nil})
	if now, err := r.Assigned(t.Context()); err != nil || now.Equal(l) {
		t.Errorf("no overwrite changes nothing: %+v, %v", now, err)
	}
}

// The condition by which Kubernetes keeps pods away is put right as often as it takes.
func networkUnavailable(t *testing.T, s *kubetest.Cluster) {
	fill(t, s)
	follow(t, s.Open(t, "n1", nil))
	for range 2 {
		eventually(t, "the condition", func() bool { n := s.Node(t, "n1"); return n.Unavailable() == "False" })
		s.SetCondition(t, "n1", "NetworkUnavailable", "True")
	}
	eventually(t, "the condition", func() bool { n := s.Node(t, "n1"); return n.Unavailable() == "False" })
	w := follow(t, s.Open(t, "n2", func(o *kube.Options) { o.LeaveCondition = true }))
	s.SetCondition(t, "n2", "NetworkUnavailable", "True")
	s.Annotate(t, "n3", map[string]any{"public-ip": "192.168.14.99"})
	eventually(t, "what comes after", func() bool { return w.at(3) == "192.168.14.99" })
	if n := s.Node(t, "n2"); n.Unavailable() != "True" {
		t.Error("it was told to leave the condition alone")
	}
}

func TestConfigChanges(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.Open(t, "n1", func(o *kube.Options) { o.ConfigFile += ".missing" })
	if _, err := r.Config(t.Context()); !errors.Is(err, lease.ErrNoConfig) {
		t.Error(err)
	}
	w := follow(t, s.Open(t, "n1", nil))
	eventually(t, "the watch", func() bool { return s.Watches() == 1 })
	s.WriteConfig(t, dual)
	eventually(t, "the changed configuration", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.ContainsFunc(w.updates, func(u lease.Update) bool { return string(u.Config) == dual })
	})
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]kube.Options{
		"no node name":          {},
		"no pod's name":         {Pod: "p"},
		"annotation prefix":     {Node: "n", AnnotationPrefix: "a.b/c/d"},
		`annotation prefix "x"`: {Node: "n", AnnotationPrefix: "x"},
		"must be a URL":         {Node: "n", URL: "192.0.2.1:6443"},
	} {
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, prefix := range []string{"", "a.b", "a.b/", "a.b/c", "a.b/c-"} {
		if err := (kube.Options{Node: "n", AnnotationPrefix: prefix}).Check(); err != nil {
			t.Error(err)
		}
	}
}

// Without a way in there is a wait, in words.
func TestNoWayIn(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	r, err := kube.Open(kube.Options{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Assigned(t.Context()); !errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), "no kubeconfig") {
		t.Error(err)
	}
	r, err = kube.Open(kube.Options{Node: "n1", Kubeconfig: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Assigned(t.Context()); !errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), "/nonexistent") {
		t.Error(err)
	}
}
