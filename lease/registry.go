package lease

import (
	"context"
	"errors"
	"time"
)

// Errors of a [Registry].
var (
	// ErrUnavailable means that the registry doesn't answer: try again.
	ErrUnavailable = errors.New("lease registry unavailable")
	// ErrReadOnly means that the registry answers but takes no writes at the moment:
	// try again.
	ErrReadOnly = errors.New("lease registry takes no writes")
	// ErrNoConfig means that nobody has written the configuration yet.
	ErrNoConfig = errors.New("no network configuration")
	// ErrUnassigned means that the registry, an [Assigner], answers but has given
	// this host no subnet that it can use: try again.
	ErrUnassigned = errors.New("no subnet is assigned to this host")
	// ErrExists means that the subnet was taken first: read and choose again.
	ErrExists = errors.New("lease exists")
	// ErrConflict means that the entry changed since it was read: read again.
	ErrConflict = errors.New("lease changed")
	// ErrCompacted means that the history since the revision is gone: read
	// everything and watch from there.
	ErrCompacted = errors.New("lease history compacted")
)

// Registry stores the configuration and the leases of one cluster. Its methods
// may be called at the same time.
type Registry interface {
	// Config returns the configuration as it was written, or ErrNoConfig.
	Config(ctx context.Context) ([]byte, error)

	// List returns all leases as they were at a revision, from which Watch tells the
	// rest. It fails if the registry doesn't answer. Entries
	// whose key isn't a lease's are left out. Entries whose value isn't a lease's
	// are Damaged.
	List(ctx context.Context) (all []Lease, revision int64, err error)

	// Create stores a lease if its subnet isn't stored yet, else it returns
	// ErrExists. The result has the lease's revision, ID and expiry. A permanent
	// lease gets no time to live.
	Create(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)

	// Renew extends the time to live of a lease that is still at l.Revision,
	// without changing the entry if that can be done. Else it returns
	// ErrConflict.
	Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)

	// Update writes the lease's attributes and extends its time to live if the
	// entry is still at l.Revision. Else it returns ErrConflict.
	Update(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)

	// Delete removes the lease if it is still at l.Revision. Else it returns
	// ErrConflict.
	Delete(ctx context.Context, l Lease) error

	// Watch calls report, one call at a time, with every change of the leases and
	// of the configuration from the given revision on. It goes on until ctx ends
	// or the connection is lost, and returns why: ErrUnavailable, ErrCompacted or
	// the context's error. Reports have Reset unset, and their slices are
	// report's own.
	Watch(ctx context.Context, from int64, report func(Update)) error
}
