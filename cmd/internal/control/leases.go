package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"
)

// LeaseRow is a lease in etcd.
type LeaseRow struct {
	Subnet     netip.Prefix `json:"subnet"`
	IPv6Subnet netip.Prefix `json:"ipv6_subnet,omitzero"`
	PublicIP   netip.Addr   `json:"public_ip,omitzero"`
	PublicIPv6 netip.Addr   `json:"public_ipv6,omitzero"`
	Backend    string       `json:"backend,omitempty"`
	MAC        string       `json:"mac,omitempty"`
	// VNI is the VXLAN network identifier, 0 where the backend has none.
	VNI uint32 `json:"vni,omitempty"`
	// MACv6 is that of IPv6 frames.
	MACv6 string `json:"ipv6_mac,omitempty"`
	// Reserved marks one that never expires.
	Reserved bool `json:"reserved"`
	// Assigned marks one that lasts as long as its Node, in Kubernetes.
	Assigned bool `json:"assigned,omitempty"`
	// Damaged marks one whose value can't be read.
	Damaged bool `json:"damaged,omitempty"`
	// Expires is when it ends unless it is renewed, zero for one that never does,
	// and where etcd hasn't said.
	Expires  time.Time `json:"expires,omitzero"`
	Revision int64     `json:"revision"`
}

// LeaseChange is what the operator does with one lease.
type LeaseChange struct {
	// Do is ReleaseLease or ReserveLease.
	Do     string       `json:"do"`
	Subnet netip.Prefix `json:"subnet"`
	// IPv6Subnet and PublicIP are those of a new reservation.
	IPv6Subnet netip.Prefix `json:"ipv6_subnet,omitzero"`
	PublicIP   netip.Addr   `json:"public_ip,omitzero"`
	// Force releases also what a host may use.
	Force bool `json:"force,omitempty"`
}

// What is done with a lease.
const (
	ReleaseLease = "release"
	ReserveLease = "reserve"
)

// Leases are the cluster's leases, as the daemon reaches them. The methods may be
// called at any time, from any goroutine.
type Leases interface {
	// ListLeases returns all leases, in order.
	ListLeases(ctx context.Context) ([]LeaseRow, error)
	// ChangeLease returns in words what was done.
	ChangeLease(ctx context.Context, c LeaseChange) (words string, err error)
}

// done is the answer to a change.
type done struct {
	Done string `json:"done"`
}

// leasesTimeout leaves time to say that etcd was too slow.
const leasesTimeout = requestTimeout - time.Second

// handleLeases answers GET and POST /v1/leases.
func handleLeases(mux *http.ServeMux, l Leases) {
	answer := func(w http.ResponseWriter, r *http.Request, do func(context.Context) (any, error)) {
		ctx, cancel := context.WithTimeout(r.Context(), leasesTimeout)
		defer cancel()
		v, err := do(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			writeText(w, http.StatusServiceUnavailable, fmt.Sprintf("etcd does not answer within %s", leasesTimeout))
		case err != nil:
			writeText(w, http.StatusServiceUnavailable, err.Error())
		default:
			writeJSON(w, http.StatusOK, v)
		}
	}
	mux.HandleFunc("GET /v1/leases", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, func(ctx context.Context) (any, error) { return l.ListLeases(ctx) })
	})
	mux.HandleFunc("POST /v1/leases", func(w http.ResponseWriter, r *http.Request) {
		var c LeaseChange
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, headerBytes)).Decode(&c); err != nil {
			writeText(w, http.StatusBadRequest, err.Error())
			return
		}
		answer(w, r, func(ctx context.Context) (any, error) {
			words, err := l.ChangeLease(ctx, c)
			return done{words}, err
		})
	})
}
