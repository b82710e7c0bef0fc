package handover

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/version"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
)

// stateFormat is the format of the text in which state is handed over. A change
// that an older or newer program would misread takes another number.
const stateFormat = 1

// None is a descriptor that isn't there.
const None = -1

// State is what a daemon hands over to the one that takes its place. The
// descriptors are inherited under their own numbers.
type State struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the program that wrote it

	Started   time.Time          `json:"started"`
	Interface extiface.Interface `json:"interface"`
	Config    *lease.Config      `json:"config"`
	Own       lease.Lease        `json:"own"`
	Peers     []tunnel.Peer      `json:"peers"`
	// Record is the manifest of the state directory if it couldn't be written.
	Record *hoststate.State `json:"record,omitempty"`
	// Tunnel are the device and the sockets, nil with host-gw.
	Tunnel *tunnel.Descriptors `json:"tunnel"`
	// FastPath are the descriptors by which a fast path stays attached, nil if there is
	// none. The standby doesn't get them.
	FastPath *fastpath.Descriptors `json:"fast_path,omitempty"`
	// Lock, Health and Control are the descriptors of the state directory's lock
	// and of the listening sockets, or None.
	Lock    int `json:"lock"`
	Health  int `json:"health"`
	Control int `json:"control"`

	// What else a process must know that isn't the daemon's own: the daemon's network
	// namespace, the settings that a process must share to go on with the same device
	// and sockets, the control socket, which file of the machine that is, and the names by
	// which networks are claimed.
	Netns         string   `json:"netns,omitempty"`
	Settings      string   `json:"settings,omitempty"`
	ControlSocket string   `json:"control_socket,omitempty"`
	ControlFile   string   `json:"control_file,omitempty"`
	Claims        []string `json:"claims,omitempty"`

	lock     *hoststate.Lock // of Lock, as long as the process is the same
	standby  *Standby
	donor    *donor // in the place of a standby, if the daemon before works until then
	taker    bool   // another process takes over that isn't a standby
	stored   bool   // systemd has kept it
	stopping sync.Once
	stopped  chan struct{} // closed once nobody else works any longer
}

// NewState returns a State without descriptors.
func NewState() *State {
	return &State{
		Format: stateFormat, Version: version.String(), Netns: netns(),
		Lock: None, Health: None, Control: None, stopped: make(chan struct{}),
	}
}

// Encode returns the state as text, for [ReadState] in another program.
func (e *State) Encode() ([]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("write the state to hand over: %w", err)
	}
	return text, nil
}

// ReadState reads the text of a state. It refuses what this program doesn't
// understand.
func ReadState(text []byte) (*State, error) {
	e := &State{stopped: make(chan struct{})}
	var head struct {
		Format  int    `json:"format"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("read the handed-over state: %w", err)
	}
	if head.Format != stateFormat {
		return nil, fmt.Errorf("read the handed-over state: it is of format %d (version %s), this program (version %s) takes %d: restart the daemon instead",
			head.Format, head.Version, version.String(), stateFormat)
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

// TunnelDescriptors returns all descriptors that the standby works with.
func (e *State) TunnelDescriptors() []int {
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

// Descriptors returns all descriptors of the state; nil has none.
func (e *State) Descriptors() []int {
	if e == nil {
		return nil
	}
	fds := e.TunnelDescriptors()
	for _, fd := range []int{e.Lock, e.Health, e.Control} {
		if fd != None {
			fds = append(fds, fd)
		}
	}
	return append(fds, e.FastPath.All()...)
}

// TakesFastPath tells whether the program that takes over goes on with a fast path.
func (e *State) TakesFastPath() bool {
	return e.taker || e.standby != nil && e.standby.TakesFastPath()
}

// GiveAway says that no process works beside this one that takes over: the next one
// finds the state elsewhere.
func (e *State) GiveAway() { e.taker = true }

// Given tells whether another process has taken over that doesn't need this one any
// longer.
func (e *State) Given() bool { return e != nil && e.taker }

// IsOther tells whether the daemon before was another process, which was started in its
// own way.
func (e *State) IsOther() bool { return e.donor != nil || e.stored }

// Borrowed tells whether the daemon before still works, in its own process. Then all
// that is on the host is its own.
func (e *State) Borrowed() bool {
	if e == nil || e.donor == nil {
		return false
	}
	select {
	case <-e.stopped:
		return false
	default:
		return true
	}
}

// TakeLock takes over the lock of the state directory, or takes it anew.
func (e *State) TakeLock(dir string) (*hoststate.Lock, error) {
	switch {
	case e == nil || e.lock == nil && e.Lock == None:
		return hoststate.Acquire(dir)
	case e.lock != nil:
		return e.lock, nil
	}
	return hoststate.Adopt(e.Lock, dir)
}

// AwaitEnd waits until the standby's process, if there is one, or ctx has
// ended.
func (e *State) AwaitEnd(ctx context.Context) error {
	if e == nil {
		return nil
	}
	select {
	case <-e.stopped:
		e.Reap()
	case <-ctx.Done():
	}
	return nil
}

// AwaitStopped waits until nobody else works any longer or ctx ends.
func (e *State) AwaitStopped(ctx context.Context) {
	if e == nil {
		return
	}
	select {
	case <-e.stopped:
	case <-ctx.Done():
	}
}

// StartStandby starts the program as a standby that can work with this state.
func (e *State) StartStandby(ctx context.Context, program string) error {
	text, err := e.Encode()
	if err == nil {
		e.standby, err = Start(ctx, program, text, e.TunnelDescriptors())
	}
	return err
}

// Go has the standby work from now on.
func (e *State) Go() error { return e.standby.Go() }

// Reap waits until a stopped standby's process has ended.
func (e *State) Reap() {
	if e.standby != nil {
		e.standby.Reap()
	}
}

// Keep makes lock the one to be handed over.
func (e *State) Keep(lock *hoststate.Lock) { e.lock = lock }

// Exec makes this process the successor. The successor takes over the state
// and, if there is one, the manifest that couldn't be written. Exec returns
// only if that fails or t has ended.
func (e *State) Exec(t *Termination, program string, record *hoststate.State) error {
	if e.lock != nil {
		e.Lock = e.lock.Descriptor()
	}
	e.Record = record
	text, err := e.Encode()
	if err != nil {
		return err
	}
	return Exec(t, program, text, e.Descriptors(), e.standby)
}

// ReceiveState reads what another program handed over to this one. It returns
// nothing if this program is the first. What was handed over by way of systemd may be
// of no use: then the error is an [ErrStored]. Main is nil for a successor.
func ReceiveState() (*State, *Main, error) {
	r, err := Receive()
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		e, err := receiveStored()
		return e, nil, err
	}
	e, err := ReadState(r.State)
	if err != nil {
		return nil, nil, err
	}
	e.standby = r.Standby
	return e, r.Main, nil
}

// StopStandby ends the work of the standby, or of the daemon before, which gives its
// fast path then. Further calls do nothing. After an error the daemon before goes on.
func (e *State) StopStandby() (err error) {
	e.stopping.Do(func() {
		if e.stored {
			return // nobody works
		}
		if e.donor == nil {
			err = e.standby.Stop()
		} else if e.FastPath, err = e.donor.stop(); err != nil {
			return
		}
		close(e.stopped)
	})
	return err
}
