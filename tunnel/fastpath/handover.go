package fastpath

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/tcprog"
)

// Descriptors are what another process may go on with: the descriptors of the maps, by
// name, and of the links. Among the maps is the network namespace that is the relay, if
// there is one: versions that know of none close it with the maps, which they can't use
// either.
type Descriptors struct {
	Maps  map[string]int `json:"maps"`
	Links []int          `json:"links,omitempty"`
	// Layout names the layout of the maps' entries. Programs of another version have
	// another, perhaps with entries of the same size, and make maps of their own.
	Layout string `json:"layout,omitempty"`
}

// All lists the descriptors, in an order that depends on the maps' names alone; nil has
// none.
func (d *Descriptors) All() (fds []int) {
	if d == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.Maps)) {
		fds = append(fds, d.Maps[name])
	}
	return append(fds, d.Links...)
}

// Renumber returns d with other numbers, in the order of All: those that the
// descriptors have in another process. There must be as many. Nil stays nil.
func (d *Descriptors) Renumber(fds []int) *Descriptors {
	if d == nil {
		return nil
	}
	other := &Descriptors{Maps: map[string]int{}, Layout: d.Layout}
	for i, name := range slices.Sorted(maps.Keys(d.Maps)) {
		other.Maps[name] = fds[i]
	}
	other.Links = slices.Clone(fds[len(d.Maps):])
	return other
}

// Close closes the descriptors that nobody took.
func (d *Descriptors) Close() error {
	var errs []error
	for _, fd := range d.All() {
		errs = append(errs, unix.Close(fd))
	}
	if d != nil {
		*d = Descriptors{}
	}
	return errors.Join(errs...)
}

// relayDescriptor is the relay's name among the maps, which no map has.
const relayDescriptor = "relay"

// takeMaps returns the maps that this version's programs can go on with, for the caller
// to own.
func (d *Descriptors) takeMaps() map[string]int {
	if d.Layout != tcprog.Layout() {
		return nil
	}
	m := d.Maps
	d.Maps = nil
	if fd, ok := m[relayDescriptor]; ok {
		delete(m, relayDescriptor)
		d.Maps = map[string]int{relayDescriptor: fd}
	}
	return m
}

// takeRelay returns the relay for the caller to own, if this version's programs go on
// with the maps.
func (d *Descriptors) takeRelay() (fd int, ok bool) {
	if d.Layout != tcprog.Layout() {
		return -1, false
	}
	fd, ok = d.Maps[relayDescriptor]
	delete(d.Maps, relayDescriptor)
	return fd, ok
}

// Release ends the fast path like Close, but leaves the programs attached: packets go
// on, with the peers as they are. The descriptors that it returns are copies and the
// caller's. The links end when the last of them, and of their copies in other processes, is
// closed; clsact filters don't. It returns [ErrClosed] on a fast path that was closed
// before.
func (f *FastPath) Release() (d *Descriptors, err error) {
	err = f.life.HandOver(func() error {
		d, err = f.copies()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("release fast path: %w", err)
	}
	f.waker.Wake()
	f.life.Wait()
	f.router.UseFastPath(nil)
	for _, l := range f.attached.links {
		err = errors.Join(err, l.Close())
	}
	f.mu.Lock()
	err = errors.Join(err, f.relay.giveUp())
	f.relay.relay = nil
	f.mu.Unlock()
	f.end("it was handed over")
	if err = errors.Join(err, f.release()); err != nil {
		f.log.Warn("release fast path", "error", err)
	}
	return d, nil
}

// copies duplicates the descriptors, which stay as they are from here on.
func (f *FastPath) copies() (d *Descriptors, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d = &Descriptors{Maps: map[string]int{}, Layout: tcprog.Layout()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
		f.released = err == nil
	}()
	if f.attached == nil {
		return d, errors.New("nothing is attached")
	}
	for name, fd := range f.programs.Descriptors() {
		if d.Maps[name], err = duplicate(fd); err != nil {
			delete(d.Maps, name)
			return d, err
		}
	}
	if f.relay.relay != nil {
		fd, err := duplicate(int(f.relay.ns.Fd()))
		if err != nil {
			return d, err
		}
		d.Maps[relayDescriptor] = fd
	}
	for _, l := range f.attached.links {
		raw, ok := l.(interface{ FD() int })
		if !ok {
			return d, fmt.Errorf("a link of type %T has no descriptor", l)
		}
		fd, err := duplicate(raw.FD())
		if err != nil {
			return d, err
		}
		d.Links = append(d.Links, fd)
	}
	return d, nil
}

func duplicate(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return n, nil
}
