package hoststate

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pending are the manifests that this process couldn't write, by state
// directory. What they name is on the host all the same. Whoever changes a
// manifest, in whatever part of the program, must see it. So the whole process
// has one such map.
var pending struct {
	sync.Mutex
	of map[string]unwritten
}

type unwritten struct {
	state State
	err   error
}

// Update changes the manifest. Call it before what the manifest tells of is put
// on the host. If the manifest can't be written, as on a full disk, there is no
// error: it is kept in memory and written with the next change or by [Retry].
// [Unwritten] tells of it.
func Update(dir string, change func(*State)) error {
	pending.Lock()
	defer pending.Unlock()
	defer exclude(dir)()
	s, err := load(dir)
	if err != nil {
		return err
	}
	change(&s)
	keep(dir, s)
	return nil
}

// A process that takes a daemon's place changes the manifest beside it. How long one
// waits for the other, and how often it looks.
const (
	excludeTime     = time.Second
	excludeInterval = time.Millisecond
)

// exclude keeps other processes from changing the manifest meanwhile. It gives up on
// one that stands still.
func exclude(dir string) (end func()) {
	f, err := os.Open(dir)
	if err != nil {
		return func() {} // the change finds out
	}
	for late := time.Now().Add(excludeTime); time.Now().Before(late); time.Sleep(excludeInterval) {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
	}
	return func() { f.Close() }
}

// keep writes a manifest. If that fails, it keeps the manifest in memory. The
// lock is held.
func keep(dir string, s State) {
	if err := s.Save(dir); err != nil {
		if pending.of == nil {
			pending.of = map[string]unwritten{}
		}
		pending.of[dir] = unwritten{s.clone(), err}
		return
	}
	delete(pending.of, dir)
}

func (s State) clone() State {
	s.Sysctls = append([]Sysctl(nil), s.Sysctls...)
	s.Networks = append([]Network(nil), s.Networks...)
	s.unknown = maps.Clone(s.unknown)
	return s
}

// Load returns the manifest of the state directory as this process has it, the
// zero State if there is none. If the manifest makes no sense, it returns
// [ErrDamaged].
func Load(dir string) (State, error) {
	pending.Lock()
	defer pending.Unlock()
	return load(dir)
}

func load(dir string) (State, error) {
	if u, ok := pending.of[dir]; ok {
		return u.state.clone(), nil
	}
	return read(dir)
}

// Unwritten returns why the manifest that this process has in memory couldn't
// be written, nil if there is none.
func Unwritten(dir string) error {
	pending.Lock()
	defer pending.Unlock()
	return pending.of[dir].err
}

// Retry writes the manifest that couldn't be written before.
func Retry(dir string) error {
	pending.Lock()
	defer pending.Unlock()
	if u, ok := pending.of[dir]; ok {
		keep(dir, u.state)
	}
	return pending.of[dir].err
}

// Pending returns the manifest that couldn't be written, for [Resume] in
// another program. It returns nil if there is none.
func Pending(dir string) *State {
	pending.Lock()
	defer pending.Unlock()
	u, ok := pending.of[dir]
	if !ok {
		return nil
	}
	s := u.state.clone()
	return &s
}

// Resume takes over the manifest that another program couldn't write.
func Resume(dir string, s *State) {
	if s == nil {
		return
	}
	pending.Lock()
	defer pending.Unlock()
	keep(dir, *s)
}

// Damaged returns the path to which [SetAside] moves a manifest.
func Damaged(dir string) string { return Path(dir) + ".damaged" }

// SetAside makes way for a new manifest if the one in the state directory makes
// no sense. It returns what was wrong with that one, nil if nothing was. An
// error that isn't [ErrDamaged] comes from reading it.
func SetAside(dir string) error {
	pending.Lock()
	defer pending.Unlock()
	_, err := load(dir)
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	if moveErr := os.Rename(Path(dir), Damaged(dir)); moveErr != nil {
		keep(dir, State{}) // in its place, as soon as that can be
		return fmt.Errorf("%w: %w", err, moveErr)
	}
	return err
}
