package lease

import (
	"net/netip"
	"time"
)

// Lease is one host's claim on a subnet.
type Lease struct {
	// Subnet is the host's IPv4 subnet.
	Subnet netip.Prefix
	// IPv6Subnet is its IPv6 subnet, the zero Prefix if it has none.
	IPv6Subnet netip.Prefix
	// Attrs says who the owner is and how it is reached.
	Attrs Attrs

	// Revision is the registry's revision of the entry when it was read. Created
	// is the revision at which the entry came to be: renewals don't change it.
	Revision, Created int64
	// ID is the registry's handle of the time to live that the entry hangs on,
	// zero if it has none.
	ID int64
	// Permanent marks a reservation: an entry without a time to live.
	Permanent bool
	// Own marks this host's lease where the registry is an [Assigner].
	Own bool
	// Damaged marks an entry whose value can't be read, by somebody's mistake.
	// Attrs is zero then, but the subnet is taken.
	Damaged bool
	// Expires is when the entry goes unless it is renewed. Zero means never or
	// unknown; it is known only for a lease that this process took or renewed.
	Expires time.Time
	// Renewed is when the lease was last taken, renewed or restored. Like Expires
	// it may be unknown.
	Renewed time.Time
}

// Equal reports whether both leases have the same subnets and attributes.
// Revision and expiry don't count.
func (l Lease) Equal(o Lease) bool {
	return l.Subnet == o.Subnet && l.IPv6Subnet == o.IPv6Subnet && l.Attrs.Equal(o.Attrs)
}

// Overlaps reports whether the leases claim a common address.
func (l Lease) Overlaps(o Lease) bool {
	return l.Subnet.Overlaps(o.Subnet) || l.IPv6Subnet.Overlaps(o.IPv6Subnet)
}

// Update is what a watch reports at one time.
type Update struct {
	// Reset says that Leases is the whole set: whatever isn't in it is gone.
	Reset bool
	// Leases are the leases that are new or changed. No subnet is in both Leases
	// and Deleted.
	Leases []Lease
	// Deleted are the leases that are gone; only their subnets are set.
	Deleted []Lease
	// Config is the network's configuration after a change, empty if it was
	// removed. It is nil in an update that isn't about it. [Manager.Run] reports
	// none.
	Config []byte
	// Revision is the registry's revision after the update.
	Revision int64
}
