package device

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/arena"
	"uvxlan/tunnel/offload"
)

// WrapWireGuard makes a [Device] of any of wireguard-go's, such as its netstack,
// which needs neither privilege nor kernel device. The device has one queue and
// takes part in no offloads: wireguard-go's keep superpackets to themselves.
//
// WrapWireGuard starts to read at once, and passes over events. dev keeps no buffer
// once its Read or Write has returned: the memory is unmapped by Close. Close closes
// dev and waits until its Read has returned, as every tun.Device's does then, and
// its channel of events is closed. When WrapWireGuard returns an error, dev is
// still the caller's.
//
// What nobody has yet read from the queue waits in dev, except while dev.Write
// runs, if dev has no file: it may need its reader to come to an end. Then
// packets beyond a few hundred are dropped, and counted as [tunnel.DropOverflow].
func WrapWireGuard(dev tun.Device) (Device, error) {
	name, err := dev.Name()
	if err != nil {
		return nil, fmt.Errorf("ask the device for its name: %w", err)
	}
	batch := max(dev.BatchSize(), 1)
	memory, err := arena.Map(slotsSize(intakeSlots(batch), MaxPacket)+slotsSize(batch, wireguardOffset+MaxPacket), false)
	if err != nil {
		return nil, fmt.Errorf("wrap device %s: %w", name, err)
	}
	in, err := newIntake(batch, memory)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wrap device %s: %w", name, err), memory.Close())
	}
	d := &wireguardDevice{dev: dev, name: name, in: in, memory: memory}
	d.queues[0] = newWireguardQueue(dev, in, packetSlots(memory, batch, wireguardOffset+MaxPacket))
	d.running.Go(func() { in.run(dev) })
	d.running.Go(func() { ignore(dev.Events()) })
	return d, nil
}

// ignore takes events, which a device may block on, until there are no more.
func ignore(events <-chan tun.Event) {
	if events == nil {
		return
	}
	for range events {
	}
}

// wireguardDevice is a device of wireguard-go's and what reads it.
type wireguardDevice struct {
	// immutable
	dev    tun.Device
	name   string
	queues [1]Queue
	in     *intake
	memory *arena.Arena // of all packets

	running sync.WaitGroup
	once    sync.Once // Close
}

func (d *wireguardDevice) Name() string    { return d.name }
func (d *wireguardDevice) Queues() []Queue { return d.queues[:] }
func (d *wireguardDevice) driver() Driver  { return DriverWireGuard }

func (d *wireguardDevice) Offloads() offload.Set { return 0 }

func (d *wireguardDevice) Close() (err error) {
	d.once.Do(func() {
		d.in.close()
		err = d.dev.Close()
		d.running.Wait()
		unix.Close(d.in.waker.FD)
		err = errors.Join(err, d.memory.Close())
	})
	if err != nil {
		return fmt.Errorf("close device %s: %w", d.name, err)
	}
	return nil
}

// openWireGuard opens wireguard-go's kernel device. It attaches the descriptor
// itself: wireguard-go would share an interface that is there already, and
// leaves descriptors open when it is refused.
func openWireGuard(name string, c Config) (Device, error) {
	flags := uint16(unix.IFF_TUN_EXCL)
	if c.Offloads&(offload.TSO|offload.USO|offload.TCP|offload.UDP) != 0 {
		flags |= unix.IFF_VNET_HDR
	}
	fd, err := openTUN(name, flags)
	if err != nil {
		return nil, err
	}
	if flags&unix.IFF_VNET_HDR != 0 && !setOffloads(fd, offload.TSO).Has(offload.TSO) {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: it gives no TCP superpackets", ErrDriverRefused)
	}
	dev, _, err := tun.CreateUnmonitoredTUNFromFD(fd) // owns fd from here on
	if err != nil {
		return nil, err
	}
	d, err := WrapWireGuard(dev)
	if err != nil {
		dev.Close()
		return nil, err
	}
	return d, nil
}

// wireguardOffset is the room that wireguard-go wants before a packet: it puts
// the vnet header there.
const wireguardOffset = 16

// wireguardQueue is the queue of a wireguardDevice: what is written gathers, so
// that the device may join a flow's packets.
type wireguardQueue struct {
	*intake
	dev    tun.Device
	urgent bool // the device's Write may wait for its reader
	slots  [][]byte
	full   [][]byte // the first of slots, each up to its packet's end
	lost   int
}

func newWireguardQueue(dev tun.Device, in *intake, slots [][]byte) *wireguardQueue {
	return &wireguardQueue{
		intake: in, dev: dev, urgent: dev.File() == nil, slots: slots, full: make([][]byte, 0, len(slots)),
	}
}

func (q *wireguardQueue) Write(o encap.Offload, parts [][]byte) error {
	if o != (encap.Offload{}) {
		return unix.EINVAL
	}
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	switch {
	case size == 0:
		return unix.EINVAL
	case size > MaxPacket:
		return unix.EMSGSIZE
	}
	if len(q.full) == len(q.slots) {
		q.pass()
	}
	// The slot keeps its capacity, into which the device joins what follows.
	slot := q.slots[len(q.full)][:wireguardOffset]
	for _, p := range parts {
		slot = append(slot, p...)
	}
	q.full = append(q.full, slot)
	return nil
}

// Flush passes on what was written. A call of the device that fails counts as
// the loss of all its packets: how many were taken, it doesn't say.
func (q *wireguardQueue) Flush() int {
	q.pass()
	lost := q.lost
	q.lost = 0
	return lost
}

func (q *wireguardQueue) pass() {
	if len(q.full) == 0 {
		return
	}
	if q.urgent {
		q.hurry(true)
		defer q.hurry(false)
	}
	if _, err := q.dev.Write(q.full, wireguardOffset); err != nil {
		q.lost += len(q.full)
	}
	q.full = q.full[:0]
}

// packetSlots makes n slots for packets of at most size bytes, of an arena. They lie
// at an odd distance: at a power of two their first lines would contend for the same
// few places of the cache.
func packetSlots(a *arena.Arena, n, size int) [][]byte {
	stride := slotsSize(1, size)
	memory := a.Alloc(slotsSize(n, size))
	slots := make([][]byte, n)
	for i := range slots {
		slots[i] = memory[i*stride:][:size:size]
	}
	return slots
}

// slotsSize is how many bytes n slots take.
func slotsSize(n, size int) int { return n * (size + 2048 + 64) }
