package batch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/mmsg"
)

// What a full socket doesn't take waits, and goes first once there is room.
func TestBacklogKeepsOrder(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets[:1], Segment: true})
	k := newKernel(b)
	to, d := host(1), numbered(0, 40, 100)
	var of Counters
	var sum Result
	next, now := 0, int64(1)
	send := func(n int) {
		for ; n > 0; n-- {
			if !b.Begin(to, &of, 0, 0, 1, 100) {
				t.Fatal("not accepted")
			}
			b.Append(d[next], nil)
			next++
		}
		now++
		addUp(&sum, b.Flush(now))
	}
	send(5)
	k.fill(sockets[0])
	send(10)
	calls := k.calls
	send(5)
	if !b.Blocked() || k.calls != calls {
		t.Errorf("blocked: %t; %d calls for a socket that is full", b.Blocked(), k.calls-calls)
	}
	addUp(&sum, b.Retry(now))
	if sum.Datagrams != 5 || of.Packets.Load() != 5 {
		t.Errorf("counted %+v, of the peer %d packets", sum, of.Packets.Load())
	}
	k.drain(100, sockets[0]) // takes a run, and is full
	addUp(&sum, b.Retry(now))
	send(1)
	k.drain(1<<20, sockets[0])
	addUp(&sum, b.Retry(now))
	if b.Blocked() {
		t.Error("blocked although there is room")
	}
	send(19)
	same(t, "sent", k.of(sockets[0], nil), d)
	if sum.Datagrams != 40 || sum.Packets != 40 || sum.Bytes != 4000 || sum.Dropped() != 0 || of.Packets.Load() != 40 || of.Bytes.Load() != 4000 {
		t.Errorf("counted %+v, of the peer %d packets", sum, of.Packets.Load())
	}
}

// A full backlog refuses packets before they are cut, and counts them.
func TestBacklogFull(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets[:1], Segment: true})
	k := newKernel(b)
	k.fill(sockets[0])
	to := host(1)
	var of Counters
	accepted, refused := 0, 0
	var sum Result
	for i := range 10 {
		if b.Begin(to, &of, 0, 0, 40, 40000) {
			accepted += 40
			for _, d := range numbered(i*40, 40, 1000) {
				b.Append(d, nil)
			}
		} else {
			refused += 40
		}
		addUp(&sum, b.Flush(1))
	}
	if accepted*1000 > BacklogPerSocket || (accepted+80)*1000 < BacklogPerSocket {
		t.Errorf("accepted %d bytes for %d", accepted*1000, BacklogPerSocket)
	}
	k.drain(1<<20, sockets[0])
	addUp(&sum, b.Retry(2))
	if sum.Full != uint64(refused) || sum.Datagrams != uint64(accepted) || of.Dropped.Load() != sum.Full || of.Packets.Load() != sum.Datagrams {
		t.Errorf("%d accepted, %d refused, counted %+v", accepted, refused, sum)
	}
	same(t, "sent", k.take(), numbered(0, accepted, 1000))
}

// A packet that was begun when there was room, and for which there is none when
// the batch is flushed, is dropped and counted.
func TestBacklogFullAtFlush(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets[:1]})
	k := newKernel(b)
	k.fill(sockets[0])
	to := host(1)
	for i, d := range numbered(0, 200, 1000) {
		if !put(b, to, 0, d) {
			t.Fatalf("datagram %d not accepted before the socket was known to be full", i)
		}
	}
	got := b.Flush(1)
	if want := uint64(200 - BacklogPerSocket/1000); got.Full != want || got.Datagrams != 0 {
		t.Errorf("counted %+v, want %d dropped", got, want)
	}
	k.drain(1<<20, sockets[0])
	got = b.Retry(2)
	same(t, "sent", k.take(), numbered(0, int(got.Datagrams), 1000))
}

// Many sockets at once: no more memory than there is, and all of it comes back.
func TestBacklogIsBounded(t *testing.T) {
	fds := slices.Concat(sockets, []int{200, 201, 202, 203})
	b := newBatch(t, UDPConfig{IPv4: fds, Segment: true})
	k := newKernel(b)
	k.fill(fds...)
	var sum Result
	for now := range int64(20) {
		for i := range 64 {
			put(b, host(i), i, numbered(i, 1, 1000+int(now))[0])
		}
		addUp(&sum, b.Flush(1+now))
	}
	waiting := 20*64 - sum.Dropped()
	if sum.Datagrams != 0 || sum.Full == 0 || waiting == 0 || waiting > Backlog/1000 {
		t.Errorf("%d wait, counted %+v", waiting, sum)
	}
	k.drain(1<<20, fds...)
	addUp(&sum, b.Retry(30))
	if b.Blocked() || sum.Datagrams != waiting || b.backlog.blocks != blocks {
		t.Errorf("%d of %d blocks free, counted %+v", b.backlog.blocks, blocks, sum)
	}
	b.Flush(30 + int64(ConfinedFor))
	if b.avoided != 0 || b.backlog.dirty {
		t.Errorf("%d sockets avoided, memory in use: %t", b.avoided, b.backlog.dirty)
	}
}

// Whatever room sockets have from time to time, what each of them sends of a flow
// is in order, and every datagram is sent or counted as dropped.
func TestBacklogAtRandom(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b := newBatch(t, UDPConfig{IPv4: sockets[:1+seed%16], Segment: seed%3 > 0})
			k := newKernel(b)
			k.refuse = func(_ int, m wire) unix.Errno {
				if m.segment > 0 && m.data[8] == 'x' {
					return unix.EMSGSIZE
				}
				return 0
			}
			var hosts []*Destination
			for i := range 5 {
				hosts = append(hosts, host(i))
			}
			var sum Result
			var added uint64
			now := int64(1)
			for round := range 400 {
				for _, fd := range sockets[:1+seed%16] {
					switch r.IntN(4) {
					case 0:
						k.fill(fd)
					case 1:
						k.drain(r.IntN(20000), fd)
					}
				}
				addUp(&sum, b.Retry(now))
				for range r.IntN(60) {
					to, flow := r.IntN(5), r.IntN(40)
					n := 1 + r.IntN(3)*r.IntN(30)
					size := 20 + r.IntN(3)*700
					added += uint64(n)
					if !b.Begin(hosts[to], nil, uint32(flow), 0, n, n*size) {
						continue
					}
					for range n {
						d := bytes.Repeat([]byte{'.'}, size)
						copy(d, fmt.Sprintf("%04d%02d%02d", round, to, flow))
						if r.IntN(50) == 0 {
							d[8] = 'x'
						}
						if !b.Fits(2) {
							addUp(&sum, b.Flush(now))
						}
						b.Append(d[:10], d[10:])
					}
				}
				now += int64(r.IntN(100)) * int64(time.Millisecond)
				addUp(&sum, b.Flush(now))
			}
			for b.Blocked() {
				k.drain(1<<30, sockets...)
				addUp(&sum, b.Retry(now))
			}
			if sum.Datagrams+sum.Dropped() != added {
				t.Errorf("%d added, counted %+v", added, sum)
			}
			if b.backlog.blocks != blocks {
				t.Errorf("%d of %d blocks free", b.backlog.blocks, blocks)
			}
			last := map[string]string{}
			for _, m := range k.sent {
				for _, d := range m.datagrams() {
					flow := fmt.Sprint(m.fd, m.to, string(d[6:8]))
					if at := string(d[:4]); at < last[flow] {
						t.Fatalf("socket %d sent round %s after %s of a flow", m.fd, at, last[flow])
					} else {
						last[flow] = at
					}
				}
			}
		})
	}
}

// slowLink is a kernel behind which one destination's link is slow: what the
// others send is gone at once.
type slowLink struct {
	*kernel
	to   *Destination
	room int         // of each socket
	held map[int]int // of them, by what the slow link hasn't taken yet
}

func newSlowLink(k *kernel, to *Destination, room int) *slowLink {
	l := &slowLink{k, to, room, map[int]int{}}
	k.refuse = func(fd int, m wire) unix.Errno {
		if l.held[fd] >= room {
			return unix.EAGAIN
		}
		if m.to == string(to.name[:to.len]) {
			l.held[fd] += len(m.data)
		}
		k.ready[fd] = l.held[fd] < room/2
		return 0
	}
	return l
}

// pass takes so many bytes of each socket.
func (l *slowLink) pass(bytes int) {
	for fd := range l.held {
		l.held[fd] = max(l.held[fd]-bytes, 0)
		l.ready[fd] = l.held[fd] < l.room/2
	}
}

// While a link is slow for one destination, the flows of all others find room,
// and its own don't leave by more than a quarter of the sockets.
func TestSlowDestinationIsConfined(t *testing.T) {
	for _, slow := range []int{0, 15, 29} { // 15 and 29 meet one of the others on their sockets
		t.Run(fmt.Sprint(slow), func(t *testing.T) {
			b, k := pooled(t)
			var others []*Destination
			for i := range 20 {
				others = append(others, host(100+i))
			}
			slow, now := host(slow), int64(1)
			link := newSlowLink(k, slow, 20000)
			var of, rest Counters
			var unlucky uint64
			begin := func(to *Destination, of *Counters, flow int) {
				if b.Begin(to, of, uint32(flow), 0, 1, 1000) {
					b.Append(make([]byte, 1000), nil)
				}
			}
			const rounds = 45000
			for round := range rounds {
				now += int64(time.Millisecond)
				link.pass(200)
				b.Retry(now)
				for flow := range 8 {
					begin(slow, &of, flow+round*8%64)
					begin(others[flow+round%13], &rest, flow+round*7%64)
				}
				b.Flush(now)
				if round == rounds-2000 {
					k.sent = nil
					unlucky = rest.Dropped.Load()
				} else if round < rounds-2000 {
					k.sent = k.sent[:0]
				}
			}
			used := map[int]bool{}
			for _, m := range k.sent {
				if m.to == string(slow.name[:slow.len]) {
					used[m.fd] = true
				}
			}
			if len(used) == 0 || len(used) > 4 {
				t.Errorf("the slow destination uses %d sockets of 16", len(used))
			}
			if rest.Dropped.Load() != unlucky || rest.Packets.Load()+unlucky != rounds*8 {
				t.Errorf("the others: %d sent, %d dropped", rest.Packets.Load(), rest.Dropped.Load())
			}
			if of.Dropped.Load() == 0 || of.Packets.Load() == 0 {
				t.Errorf("the slow one: %d sent, %d dropped", of.Packets.Load(), of.Dropped.Load())
			}
			for i := range b.sockets {
				if s := &b.sockets[i]; s.blocked && !used[s.fd] {
					t.Errorf("socket %d is full", s.fd)
				}
			}
			if part := float64(unlucky) / float64(rest.Packets.Load()); part > 0.05 {
				t.Errorf("%.1f %% of the others' packets were lost until they were told apart", 100*part)
			}
		})
	}
}

// In the very flush in which a socket is found full, what it didn't take leaves
// by others.
func TestFullSocketIsPassedAtOnce(t *testing.T) {
	b, k := pooled(t)
	k.fill(sockets[3])
	var to []*Destination
	for i := range 30 {
		to = append(to, host(i))
		put(b, to[i], 3, numbered(i, 1, 100)[0])
	}
	if got := b.Flush(1); got.Datagrams != 30 {
		t.Errorf("counted %+v", got)
	}
	for i := range 30 {
		same(t, "a destination", k.of(-1, to[i]), numbered(i, 1, 100))
	}
	if b.Retry(2); !b.Blocked() {
		t.Error("no longer blocked")
	}
	if fds := b.AppendBlocked(nil); len(fds) != 1 || fds[0] != sockets[3] {
		t.Errorf("to be polled: %v", fds)
	}
	k.sent = nil
	k.drain(1000, sockets[3])
	b.Retry(2)
	put(b, host(50), 3, numbered(0, 1, 100)[0])
	b.Flush(3)
	if len(k.of(sockets[3], nil)) != 0 {
		t.Error("a socket that was full just now is used")
	}
	b.Flush(2 + int64(ConfinedFor))
	put(b, host(50), 3, numbered(0, 1, 100)[0])
	b.Flush(3 + int64(ConfinedFor))
	if len(k.of(sockets[3], nil)) != 1 {
		t.Error("a socket that was full a while ago isn't used")
	}
}

// Confined destinations differ in their sockets, and each keeps to its own,
// however many there are.
func TestMembers(t *testing.T) {
	for n := 1; n <= 40; n++ {
		var fds []int
		for i := range n {
			fds = append(fds, i)
		}
		b := newBatch(t, UDPConfig{IPv4: fds})
		p, all := &b.pools[0], map[string]bool{}
		for i := range 200 {
			var members []int
			for j := range p.shard {
				members = append(members, b.member(p, host(i), j).fd)
			}
			if len(slices.Compact(slices.Sorted(slices.Values(members)))) != (n+3)/4 {
				t.Errorf("%d sockets: a destination has %v", n, members)
			}
			all[fmt.Sprint(members)] = true
		}
		if n == 16 && len(all) < 100 || n > 1 && len(all) < 2 {
			t.Errorf("%d sockets: 200 destinations have %d different sets", n, len(all))
		}
	}
}

// The kernel's poll finds real sockets writable.
func TestRetryPolls(t *testing.T) {
	b, to, conn := loopback(t, 2, true, false)
	b.sendmmsg = func(int, []mmsg.Header) (int, unix.Errno) { return 0, unix.EAGAIN }
	d := datagrams(t, 100, 100, 100)
	for _, d := range d {
		put(b, to, 0, d)
	}
	if got := b.Flush(1); got.Datagrams != 0 || !b.Blocked() || !b.Holds(to) {
		t.Errorf("blocked: %t, counted %+v", b.Blocked(), got)
	}
	b.sendmmsg = mmsg.Send
	if got := b.Retry(2); got.Datagrams != 3 || b.Blocked() {
		t.Errorf("blocked: %t, counted %+v", b.Blocked(), got)
	}
	b.Flush(3)
	if b.Holds(to) {
		t.Error("an empty batch holds something")
	}
	expect(t, conn, d)
}

// A socket's buffer follows the time that half of it takes to go.
func TestSendBufferFollowsRate(t *testing.T) {
	b := newBatch(t, UDPConfig{IPv4: sockets[:1]})
	k := newKernel(b)
	now := int64(1)
	fill := func(took time.Duration) int {
		k.fill(sockets[0])
		put(b, host(1), 0, numbered(0, 1, 100)[0])
		b.Flush(now)
		now += int64(took)
		k.drain(1<<20, sockets[0])
		b.Retry(now)
		return k.sizes[sockets[0]]
	}
	for i, c := range []struct {
		took time.Duration
		want int
	}{
		{5 * time.Millisecond, 0}, // not touched
		{time.Second, 128 << 10},
		{time.Second, 64 << 10},
		{time.Second, 64 << 10},
		{10 * time.Millisecond, 64 << 10},
		{time.Millisecond, 128 << 10},
		{time.Millisecond, 256 << 10},
		{time.Millisecond, 512 << 10},
		{time.Millisecond, 1 << 20},
		{time.Millisecond, 1 << 20},
		{21 * time.Millisecond, 512 << 10},
	} {
		if got := fill(c.took); got != c.want {
			t.Errorf("%d: after %s: %d bytes, want %d", i, c.took, got, c.want)
		}
	}
}
