package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/version"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// handoverFormat is that of the handed-over state's text. A change that an older or newer program
// would misread takes another number.
const handoverFormat = 1

// none is a descriptor that isn't there.
const none = -1

// handoverState is what a daemon hands over to the one that takes its place. The
// descriptors are inherited under their own numbers.
type handoverState struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the program that wrote it

	Started   time.Time          `json:"started"`
	Interface extiface.Interface `json:"interface"`
	Config    *lease.Config      `json:"config"`
	Own       lease.Lease        `json:"own"`
	Peers     []tunnel.Peer      `json:"peers"`
	// Tunnel are the device and the sockets, nil with host-gw.
	Tunnel *tunnel.Descriptors `json:"tunnel"`
	// Lock, Health and Control are those of the state directory's lock and of the
	// listening sockets, or none.
	Lock    int `json:"lock"`
	Health  int `json:"health"`
	Control int `json:"control"`

	lock     *hoststate.Lock // of Lock, as long as the process is the same
	standby  *handover.Standby
	stopping sync.Once
	stopped  chan struct{} // closed once the standby doesn't work any longer
}

// newHandover has what is common to all backends.
func newHandover(p parts, started time.Time) *handoverState {
	return &handoverState{
		Format: handoverFormat, Version: version.String(), Started: started,
		Interface: p.ext, Config: p.config, Own: p.health.Lease,
		Lock: none, Health: none, Control: none, stopped: make(chan struct{}),
	}
}

func (e *handoverState) encode() ([]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("write the state to hand over: %w", err)
	}
	return text, nil
}

// readHandover refuses what this program doesn't understand.
func readHandover(text []byte) (*handoverState, error) {
	e := &handoverState{stopped: make(chan struct{})}
	var head struct {
		Format  int    `json:"format"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("read the handed-over state: %w", err)
	}
	if head.Format != handoverFormat {
		return nil, fmt.Errorf("read the handed-over state: it is of format %d (version %s), this program (version %s) takes %d: restart the daemon instead",
			head.Format, head.Version, version.String(), handoverFormat)
	}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("read the handed-over state: %w", err)
	}
	if e.Config == nil || !e.Own.Subnet.IsValid() || !e.Interface.Address.IsValid() ||
		(e.Tunnel == nil) != (e.Config.Backend.Type == lease.TypeHostGW) {
		return nil, fmt.Errorf("read the handed-over state: something is missing: %s", text)
	}
	return e, nil
}

// tunnelDescriptors are all that the standby works with.
func (e *handoverState) tunnelDescriptors() []int {
	if e.Tunnel == nil {
		return nil
	}
	fds := slices.Concat(e.Tunnel.Queues, e.Tunnel.Sockets.Packet)
	for _, s := range e.Tunnel.Sockets.UDP {
		fds = append(append(fds, s.Receive...), slices.Concat(s.Send...)...)
	}
	slices.Sort(fds) // a socket may do for both ways
	return slices.Compact(fds)
}

// descriptors are all that there are.
func (e *handoverState) descriptors() []int {
	fds := e.tunnelDescriptors()
	for _, fd := range []int{e.Lock, e.Health, e.Control} {
		if fd != none {
			fds = append(fds, fd)
		}
	}
	return fds
}

// takeLock takes the state directory's lock over, or takes it anew.
func (e *handoverState) takeLock(dir string) (*hoststate.Lock, error) {
	switch {
	case e == nil || e.lock == nil && e.Lock == none:
		return hoststate.Acquire(dir)
	case e.lock != nil:
		return e.lock, nil
	}
	return hoststate.Adopt(e.Lock, dir)
}

// settleAfter is how long after a reload the backend is told that it is over.
const settleAfter = time.Second

// follow waits for the end of the standby's process, if there is one, and of the
// reload.
func (e *handoverState) follow(ctx context.Context, network backend) error {
	if e == nil {
		return nil
	}
	select {
	case <-e.stopped:
		e.standby.Reap()
	case <-ctx.Done():
		return nil
	}
	select {
	case <-time.After(settleAfter):
		network.settle()
	case <-ctx.Done():
	}
	return nil
}

// stopStandby ends the standby's work. Further calls do nothing.
func (e *handoverState) stopStandby() (err error) {
	e.stopping.Do(func() {
		err = e.standby.Stop()
		close(e.stopped)
	})
	return err
}
