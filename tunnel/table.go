package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/onlink"
)

// entry is a peer as the workers need it: what goes before every packet to it
// is made once, here. Only what to, hop and traffic hold ever changes.
type entry struct {
	Peer
	header4, header6 encap.FrameHeader
	to               *batch.Destination // shared by all peers of that address
	hop              *onlink.Hop        // nil: always by VXLAN
	traffic          *traffic
}

func newEntry(p Peer, vni encap.VNI, ours encap.MAC, to *batch.Destination) *entry {
	return &entry{
		Peer:    p,
		header4: encap.MakeFrameHeader(vni, p.MAC, ours, encap.EtherTypeIPv4),
		header6: encap.MakeFrameHeader(vni, p.MAC, ours, encap.EtherTypeIPv6),
		to:      to,
		traffic: &traffic{},
	}
}

// table is the peers at one moment. It never changes, so a worker that loaded
// it once reads it without a lock for as long as it likes.
type table struct {
	subnets *bart.Table[*entry]
	// underlay counts the subnets behind each outer address.
	underlay *bart.Table[int]
}

// lookup finds the peer whose subnet holds the inner address a, or nil.
func (t *table) lookup(a netip.Addr) *entry {
	e, _ := t.subnets.Lookup(a)
	return e
}

// knows tells whether a peer sends from the outer address a.
func (t *table) knows(a netip.Addr) bool { return t.underlay.Contains(a) }

// peerTable is the current table. Readers load it; writers take mu, make a
// table that shares all but the changed path with the old one, and swap it in.
type peerTable struct {
	current atomic.Pointer[table]
	mu      sync.Mutex
}

func newPeerTable() *peerTable {
	t := &peerTable{}
	t.current.Store(&table{subnets: &bart.Table[*entry]{}, underlay: &bart.Table[int]{}})
	return t
}

func (t *peerTable) load() *table { return t.current.Load() }

// replace makes entries the whole table.
func (t *peerTable) replace(entries []*entry) {
	next := &table{subnets: &bart.Table[*entry]{}, underlay: &bart.Table[int]{}}
	for _, e := range entries {
		next.subnets.Modify(e.Subnet, func(old *entry, replaced bool) (*entry, bool) {
			if replaced {
				next.underlay.Modify(host(old.Underlay), less)
			}
			return e, false
		})
		next.underlay.Modify(host(e.Underlay), more)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current.Store(next)
}

// update removes the peers of the subnets gone, then puts entries. Each change
// copies the nodes on its way through the tables, so none is made twice.
func (t *peerTable) update(entries []*entry, gone []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := *t.current.Load()
	for _, subnet := range gone {
		next.remove(subnet)
	}
	for _, e := range entries {
		next.put(e)
	}
	t.current.Store(&next)
}

func (t *table) remove(subnet netip.Prefix) {
	if old, ok := t.subnets.Get(subnet); ok {
		t.subnets = t.subnets.DeletePersist(subnet)
		t.underlay = t.underlay.ModifyPersist(host(old.Underlay), less)
	}
}

// put makes e the peer of its subnet.
func (t *table) put(e *entry) {
	old, replaced := t.subnets.Get(e.Subnet)
	t.subnets = t.subnets.InsertPersist(e.Subnet, e)
	if replaced && old.Underlay == e.Underlay {
		return
	}
	if replaced {
		t.underlay = t.underlay.ModifyPersist(host(old.Underlay), less)
	}
	t.underlay = t.underlay.ModifyPersist(host(e.Underlay), more)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func more(n int, _ bool) (int, bool) { return n + 1, false }
func less(n int, _ bool) (int, bool) { return n - 1, n <= 1 }
