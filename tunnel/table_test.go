package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
)

func numbered(n int) *entry {
	return newEntry(Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24),
		Underlay: netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}),
		MAC:      testMAC(byte(n)),
	}, testVNI, testMAC(0), nil)
}

func TestTableKnowsAddressUntilItsLastSubnetGoes(t *testing.T) {
	table := newPeerTable()
	one, two := numbered(1), numbered(2)
	two.Underlay = one.Underlay
	table.update([]*entry{one, two}, nil)
	table.update(nil, []netip.Prefix{one.Subnet})
	if now := table.load(); !now.knows(one.Underlay) || now.lookup(one.Subnet.Addr()) != nil || now.lookup(two.Subnet.Addr()) != two {
		t.Fatal("removing one of two subnets of an address")
	}
	table.update(nil, []netip.Prefix{two.Subnet, two.Subnet, one.Subnet})
	if now := table.load(); now.knows(one.Underlay) || now.subnets.Size() != 0 || now.underlay.Size() != 0 {
		t.Fatal("removing the last subnet of an address, and what isn't there")
	}
	table.replace([]*entry{one, two, numbered(1)})
	if now := table.load(); now.subnets.Size() != 2 || now.underlay.Size() != 1 {
		t.Fatalf("%d subnets, %d addresses", now.subnets.Size(), now.underlay.Size())
	}
}

// A subnet that changes its owner, or the owner its MAC, leaves no address behind.
func TestTableFollowsChangedPeers(t *testing.T) {
	table := newPeerTable()
	first := numbered(1)
	table.update([]*entry{first}, nil)
	other := numbered(1)
	other.MAC = testMAC(99)
	table.update([]*entry{other, other}, nil)
	if now := table.load(); now.lookup(first.Subnet.Addr()) != other || now.subnets.Size() != 1 || !now.knows(first.Underlay) {
		t.Fatal("another MAC")
	}
	moved := numbered(1)
	moved.Underlay = numbered(2).Underlay
	before := table.load()
	table.update([]*entry{moved}, nil)
	if now := table.load(); now.lookup(first.Subnet.Addr()) != moved || now.knows(first.Underlay) || !now.knows(moved.Underlay) || now.underlay.Size() != 1 {
		t.Fatal("another address")
	}
	if before.lookup(first.Subnet.Addr()) != other || !before.knows(first.Underlay) || before.knows(moved.Underlay) {
		t.Fatal("the table that a reader holds has changed")
	}
	table.update(nil, []netip.Prefix{moved.Subnet})
	if now := table.load(); now.subnets.Size() != 0 || now.underlay.Size() != 0 {
		t.Fatal("an address is left")
	}
}

// A reader's table is whole at any moment: of a pair that is always changed
// together it never sees one half, and a peer that stays is always there.
func TestTableReadsWithoutLockUnderWriter(t *testing.T) {
	table := newPeerTable()
	stays := numbered(1000)
	table.replace([]*entry{stays})
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	writers.Go(func() {
		for i := 0; !stop.Load(); i++ {
			a, b := numbered(i%500), numbered(i%500)
			b.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i % 500 >> 8), byte(i % 500), 0}), 24)
			table.update([]*entry{a, b}, nil)
			if i%7 == 0 {
				table.update(nil, []netip.Prefix{a.Subnet, b.Subnet})
			}
			if i%501 == 0 {
				table.replace([]*entry{stays})
			}
		}
	})
	for range 4 {
		readers.Go(func() {
			for i := range 20000 {
				now := table.load()
				if now.lookup(stays.Subnet.Addr().Next()) != stays {
					t.Error("a peer that stays was missing")
					return
				}
				n := i % 500
				a := now.lookup(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 5}))
				b := now.lookup(netip.AddrFrom4([4]byte{11, byte(n >> 8), byte(n), 5}))
				if (a == nil) != (b == nil) || a != nil && (a.Underlay != b.Underlay || !now.knows(a.Underlay)) {
					t.Error("half of a change was seen")
					return
				}
			}
		})
	}
	readers.Wait()
	stop.Store(true)
	writers.Wait()
}

// fullTable has 10,000 peers.
func fullTable() (*peerTable, []*entry) {
	table := newPeerTable()
	var entries []*entry
	for n := range 10000 {
		entries = append(entries, numbered(n))
	}
	table.replace(entries)
	return table, entries
}

func BenchmarkTableLookup(b *testing.B) {
	table, _ := fullTable()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n = (n + 7919) % 10000
		if table.load().lookup(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 9})) == nil {
			b.Fatal("missing")
		}
	}
}

// A changed lease, such as one with another MAC, in a table of many.
func BenchmarkTableUpdate(b *testing.B) {
	table, entries := fullTable()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n = (n + 7919) % 10000
		table.update(entries[n:n+1], nil)
	}
}
