// Package batch sends what a worker has gathered, with as few system calls as
// there are sockets and without ever waiting for one of them.
//
// # Words
//
// A datagram is what arrives at the peer. A run is the datagrams of one size to
// one destination that the kernel takes as one message and segments itself
// (UDP_SEGMENT, udp(7)), the last of them possibly shorter. A message is one
// entry of sendmmsg(2). A socket is blocked from the EAGAIN that says that its
// send buffer is full until it polls writable, which a UDP or packet socket does
// once half of the buffer is free.
//
// # Use
//
// A worker has one [Batch] for its UDP sockets and, with a packet socket, one
// more for that. It calls [Batch.Begin] for each packet and [Batch.Append] for
// each datagram that the packet makes, or [Batch.Whole] and [Batch.Part] for a
// packet that leaves as it is, and [Batch.Flush] at the end of a round. While
// [Batch.Blocked] says so it also calls [Batch.Retry] once a round, and adds
// [Batch.AppendBlocked] to what it sleeps on. A Batch belongs to one goroutine;
// [Destination] and [Counters] are shared by all.
//
// # A full send buffer
//
// What a blocked socket doesn't take goes by another socket where that is
// allowed (below), or else is copied into the socket's backlog, of at most
// [BacklogPerSocket] bytes. The backlog goes first once there is room, so what
// leaves by one socket leaves in order. While it is full, Begin refuses packets
// before any work is spent on them. Nobody waits: the worker goes on receiving,
// and with what the other sockets take.
//
// # A slow link slows no other
//
// All destinations share a pool of sockets, over which their flows are spread.
// The kernel doesn't say whose packets fill a buffer. They needn't be those of
// the destination that most is sent to: what goes by a fast link is gone at once.
// So nobody is blamed; instead, no destination can fill all the buffers:
//
//   - A destination that meets a full buffer is confined for [ConfinedFor], and
//     anew whenever it meets one: its flows share a quarter of the sockets, which
//     its address chooses. It waits, and drops, only when those are all full.
//   - A socket that was full is left alone for as long by all destinations that
//     aren't confined: their flows go by the next socket.
//
// So whoever fills buffers has 4 sockets of 16 left, and all others have the rest
// to themselves. That holds while the slow destinations' sockets are not the
// whole pool: for three of them always. With more of them, fast flows share
// buffers with slow ones, on whatever socket has room. A fast destination that
// met a buffer which a slow one had filled is confined by mistake for
// ConfinedFor. If its 4 sockets are all the slow one's too, 1 case in 256 (with
// two slow ones at most 1 in 16), it is slowed until it gets others, as whoever
// has had nothing but full ones for 20 seconds does. It doesn't hold in the kernel's
// queue: peers behind one interface share its rate, and how they do is
// up to its queueing discipline.
//
// A flow that changes its socket changes its outer source port, and so possibly
// the path it takes and the thread that receives it: some of its packets may
// overtake others, once when a buffer fills and once when the confinement ends.
//
// # Send buffers
//
// A socket's send buffer follows the rate at which its link takes what it has, so
// that a slow link's queue stays short: see [SendBuffer].
package batch
