package etcdtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Options say what a cluster is like.
type Options struct {
	// Members is how many there are; 0 means one.
	Members int
	// Build is required.
	Build Build
	// TLS is the servers' certificate, nil for plain HTTP. With ClientCA, a
	// client must have a certificate that it signed.
	TLS      *Pair
	ClientCA string
	// AuthToken is etcd's option of that name, and AuthTokenTTL, in seconds, is
	// that of simple tokens.
	AuthToken    string
	AuthTokenTTL int
	// EnableV2 serves etcd's old API too, which Debian's still has.
	EnableV2 bool
}

// Cluster is one etcd or several that run in processes of their own until the
// test ends.
type Cluster struct {
	Members []*Member
	// Host is the loopback address of all.
	Host string
}

// Member is one of them. Its data outlives its process.
type Member struct {
	Endpoint string
	tb       testing.TB
	build    Build
	dir      string
	cmd      *exec.Cmd // nil while it isn't running
}

// file is etcd's configuration file, of any version.
type file struct {
	Name          string    `json:"name"`
	Dir           string    `json:"data-dir"`
	ListenClient  string    `json:"listen-client-urls"`
	Advertise     string    `json:"advertise-client-urls"`
	ListenPeer    string    `json:"listen-peer-urls"`
	AdvertisePeer string    `json:"initial-advertise-peer-urls"`
	Members       string    `json:"initial-cluster"`
	AuthToken     string    `json:"auth-token,omitempty"`
	AuthTokenTTL  int       `json:"auth-token-ttl,omitempty"`
	BcryptCost    int       `json:"bcrypt-cost"`
	EnableV2      bool      `json:"enable-v2,omitempty"`
	Logger        string    `json:"logger"`
	Security      *security `json:"client-transport-security,omitempty"`
}

type security struct {
	CertFile string `json:"cert-file"`
	KeyFile  string `json:"key-file"`
	CertAuth bool   `json:"client-cert-auth"`
	CAFile   string `json:"trusted-ca-file,omitempty"`
}

// RandomHost is a loopback address that hardly anybody else uses.
func RandomHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// StartCluster starts a cluster at host, an address of [RandomHost]. It doesn't
// wait until it takes requests.
func StartCluster(tb testing.TB, host string, o Options) *Cluster {
	tb.Helper()
	c := NewCluster(tb, host, o)
	for _, m := range c.Members {
		m.Start()
	}
	tb.Cleanup(func() {
		for _, m := range c.Members {
			m.end(unix.SIGKILL)
		}
	})
	return c
}

// NewCluster writes the configuration of a cluster and starts nothing.
func NewCluster(tb testing.TB, host string, o Options) *Cluster {
	tb.Helper()
	c := &Cluster{Host: host}
	n := max(o.Members, 1)
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf("m%d=%s", i, peerURL(host, i)))
	}
	for i := range n {
		m := &Member{Endpoint: o.scheme() + fmt.Sprintf("://%s:%d", host, 2379+10*i), tb: tb, build: o.Build, dir: tb.TempDir()}
		m.write(o, file{
			Name: fmt.Sprintf("m%d", i), ListenPeer: peerURL(host, i), AdvertisePeer: peerURL(host, i), Members: strings.Join(members, ","),
		})
		c.Members = append(c.Members, m)
	}
	return c
}

func peerURL(host string, i int) string { return fmt.Sprintf("http://%s:%d", host, 2380+10*i) }

func (o Options) scheme() string {
	if o.TLS != nil {
		return "https"
	}
	return "http"
}

func (m *Member) write(o Options, f file) {
	m.tb.Helper()
	f.Dir, f.ListenClient, f.Advertise = filepath.Join(m.dir, "data"), m.Endpoint, m.Endpoint
	f.AuthToken, f.AuthTokenTTL, f.EnableV2, f.Logger = o.AuthToken, o.AuthTokenTTL, o.EnableV2, "zap"
	f.BcryptCost = 4 // the least: what it protects is the tests' own
	if o.TLS != nil {
		f.Security = &security{o.TLS.CertFile, o.TLS.KeyFile, o.ClientCA != "", o.ClientCA}
	}
	text := must(json.Marshal(f))(m.tb)
	if err := os.WriteFile(m.ConfigFile(), text, 0o600); err != nil {
		m.tb.Fatal(err)
	}
}

// ConfigFile is the member's configuration, for [Build.Command].
func (m *Member) ConfigFile() string { return filepath.Join(m.dir, "etcd.json") }

// Command is the program and its arguments, and what its environment has beside
// this process's, for who starts it elsewhere.
func (b Build) Command(configFile string) (args, env []string) {
	if b.command == nil {
		return []string{os.Args[0]}, []string{configFileEnv(configFile)}
	}
	return append(append([]string{}, b.command...), configFile), nil
}

func configFileEnv(path string) string { return configFile + "=" + path }

// Endpoints are those of all members.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, m := range c.Members {
		all = append(all, m.Endpoint)
	}
	return all
}

// Start starts the member, with the data that it has.
func (m *Member) Start() {
	m.tb.Helper()
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		m.tb.Fatal(err)
	}
	defer log.Close()
	args, env := m.build.Command(m.ConfigFile())
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Env = append(os.Environ(), env...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.tb.Fatal(err)
	}
}

// Kill kills the member at once, as a power cut would.
func (m *Member) Kill() {
	m.tb.Helper()
	m.end(unix.SIGKILL)
}

// Stop stops it in order.
func (m *Member) Stop() {
	m.tb.Helper()
	m.end(unix.SIGTERM)
}

// Freeze makes it silent, with its connections open; Thaw ends that.
func (m *Member) Freeze() { m.signal(unix.SIGSTOP) }

// Thaw lets it go on.
func (m *Member) Thaw() { m.signal(unix.SIGCONT) }

func (m *Member) signal(s unix.Signal) {
	m.tb.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.tb.Fatal(err)
	}
}

func (m *Member) end(s unix.Signal) {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(s) // it may have ended by itself
	_ = m.cmd.Wait()
	m.cmd = nil
}

// Log is what the member has written.
func (m *Member) Log() string {
	text, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
