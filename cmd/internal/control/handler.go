package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Handler answers what the operator's command asks: GET /v1/status, GET /v1/peers and
// GET /v1/leases, in JSON. POST /v1/leases changes a lease. Without leases, which may
// be nil, there is no /v1/leases.
func Handler(s Source, leases Leases) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Status()) })
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) {
		peers := s.Peers()
		if peers == nil {
			peers = []Peer{}
		}
		writeJSON(w, http.StatusOK, peers)
	})
	if leases != nil {
		handleLeases(mux, leases)
	}
	return mux
}

// HealthHandler answers whoever watches the host:
//
//   - GET /healthz is 200 as long as the daemon runs.
//   - GET /readyz is 200 while the host's containers are connected and 503
//     otherwise, with reasons and what is known of the lease and of etcd; in
//     JSON if the client accepts that, and [Status] is its form.
//   - GET /metrics is what the handler metrics answers.
func HealthHandler(s Source, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, http.StatusOK, "uvxland is running\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status := s.Status()
		code := http.StatusOK
		if !status.Ready {
			code = http.StatusServiceUnavailable
		}
		if acceptsJSON(r) {
			writeJSON(w, code, status)
			return
		}
		writeText(w, code, status.Words())
	})
	mux.Handle("GET /metrics", metrics)
	return mux
}

func acceptsJSON(r *http.Request) bool {
	return slices.ContainsFunc(r.Header.Values("Accept"), func(v string) bool {
		return strings.Contains(v, "application/json")
	})
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprint(w, text)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintf(w, "%s\n", text)
}
