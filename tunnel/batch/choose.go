package batch

import "math/bits"

// shards is how many times as many sockets a pool has as a confined destination.
const shards = 4

// choose returns the socket for a flow that would leave by s: another one if s
// is full, or the destination is kept off it. It is a blocked one only when all
// are that the destination may have.
func (b *Batch) choose(to *Destination, s *socket) *socket {
	p := &b.pools[to.pool]
	home := int(s.index) - p.first
	if !to.isConfined(b.now) {
		if !s.avoid {
			return s
		}
		if other := b.spare(p, home); other != nil {
			return other
		}
	}
	first := b.member(p, to, home%p.shard)
	for i := range p.shard {
		if other := b.member(p, to, (home+i)%p.shard); !other.blocked {
			if first.kept.holds(to) {
				return first // behind what waits there
			}
			return other
		}
	}
	to.confine(b.now)
	to.move(b.now)
	return first
}

// spare returns the next socket that nobody has to avoid, or else that isn't
// blocked, nil if there is none.
func (b *Batch) spare(p *pool, home int) *socket {
	var free *socket
	for i := range p.n {
		s := &b.sockets[p.first+(home+i)%p.n]
		if !s.avoid {
			return s
		}
		if !s.blocked && free == nil {
			free = s
		}
	}
	return free
}

// member returns one of the sockets that a confined destination has, by its
// number. It is one of those whose own number leaves that remainder when divided
// by how many the destination has, so that flows which are spread over the pool
// are spread over them.
func (b *Batch) member(p *pool, to *Destination, i int) *socket {
	choices := (p.n - i + p.shard - 1) / p.shard
	choice := int(bits.RotateLeft32(to.shard.Load(), 2*i)&0xff) % choices
	return &b.sockets[p.first+i+p.shard*choice]
}

// block notes that a socket's buffer is full.
func (b *Batch) block(s *socket) {
	s.blocked, s.since = true, b.now
	b.blocked++
	if !s.avoid {
		s.avoid = true
		b.avoided++
	}
}

func (b *Batch) unblock(s *socket) {
	s.blocked = false
	b.blocked--
	s.avoidUntil = b.now + int64(ConfinedFor)
	b.tune(s)
}

// stopAvoiding gives sockets back to all that haven't been full for a while.
func (b *Batch) stopAvoiding() {
	for i := range b.sockets {
		s := &b.sockets[i]
		if s.avoid && !s.blocked && b.now >= s.avoidUntil {
			s.avoid = false
			b.avoided--
		}
	}
	if b.avoided == 0 {
		b.backlog.release()
	}
}
