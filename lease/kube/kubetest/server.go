package kubetest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// operatorHeader marks the test's own requests, which no fault meets.
const operatorHeader = "X-Kubetest-Operator"

// certificateName is in the certificate that package httptest has.
const certificateName = "example.com"

// defaultToken is what hosts get in with.
const defaultToken = "token"

// Server is an API server in this process. It knows Nodes and Pods alone, and can be
// made to fail.
type Server struct {
	*Cluster

	do func(func() error) error // has things done where the API server is

	mu      sync.Mutex // guards the rest
	address string
	http    *httptest.Server
	tokens  []string
	fault   func(*http.Request) int
	counts  map[string]int

	nodes     map[string]object
	pods      map[string]string // the Node of each, by namespace/name
	revision  int64
	compacted int64 // what was before it is forgotten
	history   []event
	changed   chan struct{}
	pages     map[string]page
	nextPage  int
	nextUID   int
	watchTime time.Duration // that each watch lasts, 0 for as long as its client wants
	gone      bool          // compacted history is refused by status, not by an event
	padding   string
	created   time.Time
}

type event struct {
	revision int64
	kind     string
	node     object
}

// page is what follows a list's page.
type page struct {
	revision int64
	rest     []object
}

// Start runs an API server on a free port until the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	return StartAt(tb, "127.0.0.1:0", func(f func() error) error { return f() })
}

// StartAt runs an API server at an address until the test ends. do has things done where
// that address is, which may be another network namespace.
func StartAt(tb testing.TB, address string, do func(func() error) error) *Server {
	tb.Helper()
	s, err := New(tb.TempDir(), address, do)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Down)
	return s
}

// New runs an API server at an address until Down, with its files in a directory. do has
// things done where that address is.
func New(dir, address string, do func(func() error) error) (*Server, error) {
	s := &Server{
		address: address, do: do, tokens: []string{defaultToken}, counts: map[string]int{}, nodes: map[string]object{}, pods: map[string]string{},
		revision: 1000, changed: make(chan struct{}), pages: map[string]page{},
		created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	var err error
	s.Cluster, err = newCluster(dir, s.http.URL, pemOf(s.http.Certificate()), certificateName, defaultToken, defaultToken, do)
	return s, err
}

// Up has the API server answer again, at its address.
func (s *Server) Up(tb testing.TB) {
	tb.Helper()
	if err := s.listen(); err != nil {
		tb.Fatal(err)
	}
}

func (s *Server) listen() error {
	var l net.Listener
	err := s.do(func() (err error) {
		var c net.ListenConfig
		l, err = c.Listen(context.Background(), "tcp", s.address)
		return err
	})
	if err != nil {
		return err
	}
	h := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	_ = h.Listener.Close()
	h.Listener, h.EnableHTTP2 = l, true
	h.StartTLS()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.http, s.address = h, l.Addr().String()
	return nil
}

// Down ends the API server, and with it every connection. What it has stored stays. It
// is idempotent.
func (s *Server) Down() {
	s.mu.Lock()
	h := s.http
	s.http = nil
	s.mu.Unlock()
	if h != nil {
		h.CloseClientConnections()
		h.Close()
	}
}

// Fail has each request of a host that f returns a status for be answered by that. A
// nil f ends it.
func (s *Server) Fail(f func(*http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// EndWatches ends each watch after some time, as a proxy does that is in between; 0 ends
// that.
func (s *Server) EndWatches(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchTime = after
	s.wakeLocked()
}

// Compact forgets what has happened so far: who watches from there is told so, by a
// status or by an event.
func (s *Server) Compact(byStatus bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	s.compacted, s.gone, s.history = s.revision, byStatus, nil
	clear(s.pages)
	s.wakeLocked()
}

// Accept sets the tokens that hosts get in with. The watches that there are end.
func (s *Server) Accept(tokens ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = tokens
	s.wakeLocked()
}

// Pad has each Node be larger by so many bytes, as images and managed fields make them.
func (s *Server) Pad(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.padding = strings.Repeat("x", bytes)
}

// CreatePod makes a pod that runs on a node.
func (s *Server) CreatePod(namespace, name, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[namespace+"/"+name] = node
}

// Count returns how often hosts have asked: "list" (each page), "watch", "get" or
// "patch".
func (s *Server) Count(verb string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[verb]
}

// Watches returns how many watches there are at the moment.
func (s *Server) Watches() int { return s.Count("watching") }

func (s *Server) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// serve answers a request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	operator := r.Header.Get(operatorHeader) != ""
	if status := s.refusal(r); status != 0 && !operator {
		if status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1")
		}
		refuse(w, status, "the test refuses it")
		return
	}
	count := func(verb string) {
		if !operator {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.counts[verb]++
		}
	}
	name, status := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, nodesPath), "/status")
	name = strings.TrimPrefix(name, "/")
	switch {
	case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/"):
		s.pod(w, r)
	case !strings.HasPrefix(r.URL.Path, nodesPath):
		refuse(w, http.StatusNotFound, "no such resource")
	case r.Method == http.MethodGet && name != "":
		count("get")
		s.get(w, name)
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		count("watch")
		s.watch(w, r)
	case r.Method == http.MethodGet:
		count("list")
		s.list(w, r)
	case r.Method == http.MethodPost:
		s.create(w, r)
	case r.Method == http.MethodDelete:
		s.remove(w, name)
	case r.Method == http.MethodPatch:
		count("patch")
		s.patch(w, r, name, status)
	default:
		refuse(w, http.StatusMethodNotAllowed, "no such method")
	}
}

// refusal is the status to answer by, 0 for none.
func (s *Server) refusal(r *http.Request) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.knownLocked(r) {
		return http.StatusUnauthorized
	}
	if s.fault == nil {
		return 0
	}
	return s.fault(r)
}

func (s *Server) knownLocked(r *http.Request) bool {
	return slices.Contains(s.tokens, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
}

var reasons = map[int]string{
	http.StatusUnauthorized: "Unauthorized", http.StatusForbidden: "Forbidden", http.StatusNotFound: "NotFound",
	http.StatusConflict: "Conflict", http.StatusGone: "Expired", http.StatusUnprocessableEntity: "Invalid",
	http.StatusTooManyRequests: "TooManyRequests", http.StatusInternalServerError: "InternalError",
	http.StatusServiceUnavailable: "ServiceUnavailable", http.StatusBadRequest: "BadRequest", http.StatusMethodNotAllowed: "MethodNotAllowed",
}

func statusOf(code int, message string) object {
	return object{"kind": "Status", "apiVersion": "v1", "metadata": object{}, "status": "Failure", "message": message, "reason": reasons[code], "code": code}
}

func refuse(w http.ResponseWriter, code int, message string) {
	answer(w, code, statusOf(code, message))
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // who has gone needs no answer
}

func (s *Server) pod(w http.ResponseWriter, r *http.Request) {
	namespace, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/"), "/pods/")
	s.mu.Lock()
	node, ok := s.pods[namespace+"/"+name]
	s.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "no such pod")
		return
	}
	answer(w, http.StatusOK, object{"kind": "Pod", "apiVersion": "v1", "metadata": object{"name": name}, "spec": object{"nodeName": node}})
}

func (s *Server) get(w http.ResponseWriter, name string) {
	s.mu.Lock()
	n, ok := s.nodes[name]
	n = s.paddedLocked(n)
	s.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, fmt.Sprintf("nodes %q not found", name))
		return
	}
	answer(w, http.StatusOK, n)
}

func (s *Server) paddedLocked(n object) object {
	if s.padding == "" || n == nil {
		return n
	}
	n = n.clone()
	n.at("status")["images"] = []object{{"names": []string{s.padding}}}
	return n
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	s.mu.Lock()
	p, ok := s.pageLocked(r.URL.Query().Get("continue"))
	if !ok {
		s.mu.Unlock()
		refuse(w, http.StatusGone, "the provided continue parameter is too old")
		return
	}
	items, meta := p.rest, object{"resourceVersion": strconv.FormatInt(p.revision, 10)}
	if limit > 0 && len(items) > limit {
		s.nextPage++
		token := strconv.Itoa(s.nextPage)
		s.pages[token] = page{p.revision, items[limit:]}
		items, meta["continue"] = items[:limit], token
	}
	out := make([]object, len(items))
	for i, n := range items {
		out[i] = s.paddedLocked(n)
	}
	s.mu.Unlock()
	answer(w, http.StatusOK, struct {
		Kind       string   `json:"kind"`
		APIVersion string   `json:"apiVersion"`
		Metadata   object   `json:"metadata"`
		Items      []object `json:"items"`
	}{"NodeList", "v1", meta, out})
}

// pageLocked is the page of a token, or all.
func (s *Server) pageLocked(token string) (page, bool) {
	if token != "" {
		p, ok := s.pages[token]
		return p, ok
	}
	all := make([]object, 0, len(s.nodes))
	for _, n := range s.nodes {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b object) int { return cmp.Compare(a.name(), b.name()) })
	return page{s.revision, all}, true
}

// watch sends what happens after the revision that is asked for.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	if err != nil {
		refuse(w, http.StatusBadRequest, "no resourceVersion to watch from")
		return
	}
	s.mu.Lock()
	gone := from < s.compacted && s.gone
	s.counts["watching"]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.counts["watching"]--
	}()
	if gone {
		refuse(w, http.StatusGone, "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	s.stream(w, r, from)
}

// stream ends when the client goes, its token isn't good any longer, or the watch's time
// is over.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, from int64) {
	encoder, flusher, start := json.NewEncoder(w), w.(http.Flusher), time.Now()
	for {
		flusher.Flush()
		s.mu.Lock()
		events, changed, lasts := s.sinceLocked(from), s.changed, s.watchTime
		tooOld, known := from < s.compacted, s.knownLocked(r)
		s.mu.Unlock()
		if tooOld {
			_ = encoder.Encode(object{"type": "ERROR", "object": statusOf(http.StatusGone, "too old resource version")})
			return
		}
		if !known {
			return
		}
		for _, e := range events {
			if encoder.Encode(object{"type": e.kind, "object": metadataOf(e.node)}) != nil {
				return
			}
			from = e.revision
		}
		if len(events) > 0 {
			continue
		}
		ctx, cancel := r.Context(), context.CancelFunc(func() {})
		if lasts > 0 {
			ctx, cancel = context.WithDeadline(ctx, start.Add(lasts))
		}
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
			cancel()
			return
		}
	}
}

func (s *Server) sinceLocked(from int64) []event {
	i, _ := slices.BinarySearchFunc(s.history, from+1, func(e event, at int64) int { return cmp.Compare(e.revision, at) })
	return s.history[i:len(s.history):len(s.history)]
}

// Bookmark tells who watches of the revision alone.
func (s *Server) Bookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	n := object{"metadata": object{"resourceVersion": strconv.FormatInt(s.revision, 10)}}
	s.history = append(s.history, event{s.revision, "BOOKMARK", n})
	s.wakeLocked()
}
