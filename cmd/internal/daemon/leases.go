package daemon

import (
	"context"
	"errors"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/leaseadmin"
)

// errTooEarly says that the daemon has no way to etcd yet.
var errTooEarly = errors.New("uvxland is starting: ask again in a moment")

func (m *monitor) registry() (leaseadmin.Registry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leases == nil {
		return nil, errTooEarly
	}
	return m.leases, nil
}

// ListLeases implements [control.Leases].
func (m *monitor) ListLeases(ctx context.Context) ([]control.LeaseRow, error) {
	r, err := m.registry()
	if err != nil {
		return nil, err
	}
	return leaseadmin.List(ctx, r)
}

// ChangeLease implements [control.Leases].
func (m *monitor) ChangeLease(ctx context.Context, c control.LeaseChange) (words string, err error) {
	r, err := m.registry()
	if err != nil {
		return "", err
	}
	return leaseadmin.Change(ctx, r, c)
}
