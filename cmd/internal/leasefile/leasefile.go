// Package leasefile keeps what a daemon knows of the network in a file, so that
// it can start again while etcd is away.
package leasefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"uvxlan/cmd/internal/atomicfile"
	"uvxlan/lease"
)

// version is that of the file's form. A file of another one isn't read.
const version = 1

// peerSize is what a usual peer takes of the file.
const peerSize = 160

// Path is the file in a state directory.
func Path(dir string) string { return filepath.Join(dir, "leases.json") }

// Store is a [lease.Store] in a state directory.
type Store struct {
	// Dir is the state directory.
	Dir string
	// Prefix is the etcd key prefix of the network, or what stands for it where the
	// leases aren't in etcd. What was stored of another network isn't used.
	Prefix string
	// Machine identifies the machine, see [MachineID]; empty if nothing does. What
	// another machine has stored, of which this one is a clone, isn't used.
	Machine string
}

// String is the file's path.
func (s Store) String() string { return Path(s.Dir) }

// MachineID is this machine's, as systemd has it (machine-id(5)); empty if it has
// none.
func MachineID() string {
	text, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(text))
	if err != nil || len(id) != 32 { // it may say uninitialized
		return ""
	}
	// It is confidential: only a hash of it leaves its file.
	sum := sha256.Sum256([]byte("uvxlan leases " + id))
	return hex.EncodeToString(sum[:16])
}

var _ lease.Store = Store{}

// file has leases as etcd has them: key and value.
type file struct {
	Version int             `json:"version"`
	Prefix  string          `json:"prefix"`
	Machine string          `json:"machine,omitempty"`
	AsOf    time.Time       `json:"as_of"`
	Config  json.RawMessage `json:"config"`
	// Own is left away when the lease is lost.
	Own   *own                   `json:"own,omitempty"`
	Peers map[string]lease.Attrs `json:"peers"`
}

type own struct {
	Key      string      `json:"key"`
	Value    lease.Attrs `json:"value"`
	Renewed  time.Time   `json:"renewed"`
	Expires  time.Time   `json:"expires,omitzero"`
	Reserved bool        `json:"reserved,omitempty"`
}

// Save implements [lease.Store].
func (s Store) Save(state lease.State) error {
	f := file{Version: version, Prefix: s.Prefix, Machine: s.Machine, AsOf: state.AsOf, Config: state.Config, Peers: map[string]lease.Attrs{}}
	if l := state.Own; l.Subnet.IsValid() {
		f.Own = &own{Key: l.Key(), Value: l.Attrs, Renewed: state.Renewed, Expires: l.Expires, Reserved: l.Permanent}
	}
	text, err := json.Marshal(f)
	if err == nil {
		text, err = appendPeers(bytes.TrimSuffix(text, []byte("}}")), state.Peers)
	}
	if err == nil {
		err = atomicfile.Write(Path(s.Dir), append(text, "}}\n"...))
	}
	if err != nil {
		return fmt.Errorf("write leases: %w", err)
	}
	return nil
}

// appendPeers appends the members of an object. With many peers package json
// would spend most of its time on sorting and on reading what it has written.
func appendPeers(text []byte, peers []lease.Lease) ([]byte, error) {
	text = slices.Grow(text, len(peers)*peerSize)
	for i, l := range peers {
		value, err := l.Attrs.MarshalJSON()
		if err != nil {
			return nil, err
		}
		if i > 0 {
			text = append(text, ',')
		}
		text = append(append(append(append(text, '"'), l.Key()...), `":`...), value...)
	}
	return text, nil
}

// Load implements [lease.Store].
func (s Store) Load() (*lease.State, error) {
	text, err := os.ReadFile(Path(s.Dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f file
	if err == nil {
		err = f.read(text, s)
	}
	var state *lease.State
	if err == nil {
		state, err = f.state()
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", Path(s.Dir), err)
	}
	return state, nil
}

// read looks at the version first: what follows may have another form.
func (f *file) read(text []byte, s Store) error {
	var form struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &form); err != nil {
		return err
	}
	if form.Version != version {
		return fmt.Errorf("its form is of version %d, not %d", form.Version, version)
	}
	if err := json.Unmarshal(text, f); err != nil {
		return err
	}
	if f.Prefix != s.Prefix {
		return fmt.Errorf("it is of the network at %s, not %s", f.Prefix, s.Prefix)
	}
	if f.Machine != "" && s.Machine != "" && f.Machine != s.Machine {
		return errors.New("another machine has written it, of which this one is a clone")
	}
	return nil
}

func (f *file) state() (*lease.State, error) {
	s := &lease.State{Config: f.Config, AsOf: f.AsOf, Peers: make([]lease.Lease, 0, len(f.Peers))}
	for key, value := range f.Peers {
		l, err := newLease(key, value)
		if err != nil {
			return nil, err
		}
		s.Peers = append(s.Peers, l)
	}
	if f.Own == nil {
		return s, nil
	}
	var err error
	s.Own, err = newLease(f.Own.Key, f.Own.Value)
	s.Own.Expires, s.Own.Permanent, s.Renewed = f.Own.Expires, f.Own.Reserved, f.Own.Renewed
	return s, err
}

func newLease(key string, value lease.Attrs) (l lease.Lease, err error) {
	l.Subnet, l.IPv6Subnet, err = lease.ParseKey(key)
	l.Attrs = value
	return l, err
}
