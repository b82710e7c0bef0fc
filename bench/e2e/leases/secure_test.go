package leases_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"uvxlan/bench/e2e"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"uvxlan/bench/lab"
	"uvxlan/lease/etcd/etcdtest"
)

// secureEtcd is Debian's etcd on kb21, which asks for a client certificate and a
// password, and gives tokens that don't last.
type secureEtcd struct {
	*e2e.World
	member *etcdtest.Member
	build  etcdtest.Build
	flags  []string // how to get in
}

func newSecureEtcd(t *testing.T) *secureEtcd {
	t.Helper()
	s := &secureEtcd{build: etcdtest.Installed(t), World: e2e.NewWorld(t, "kb21", "kb22")}
	s.StopEtcd()
	kb21 := s.Host("kb21")
	ca := etcdtest.NewAuthority(t)
	server := ca.Issue("etcd", kb21.Address.String())
	c := etcdtest.NewCluster(t, kb21.Address.String(), etcdtest.Options{
		Build: s.build, TLS: &server, ClientCA: ca.CAFile, AuthTokenTTL: 1,
	})
	s.member, s.Cluster.Endpoint = c.Members[0], c.Members[0].Endpoint
	s.run()
	admin := c.Admin(t, ca, "", func(c *clientv3.Config) {
		c.DialOptions = append(c.DialOptions, grpc.WithContextDialer(dialFrom(kb21.Node)))
	})
	etcdtest.EnableAuth(t, admin, etcdtest.User{Name: "flannel", Password: "secret", May: "READWRITE"})
	client := ca.Issue("host")
	s.flags = []string{
		"-etcd-cafile", ca.CAFile, "-etcd-certfile", client.CertFile, "-etcd-keyfile", client.KeyFile,
		"-etcd-username", "flannel", "-etcd-password", "secret",
	}
	return s
}

func dialFrom(n *lab.Node) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = n.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
}

// run starts the etcd, with the data that it has.
func (s *secureEtcd) run() {
	s.T.Helper()
	args, _ := s.build.Command(s.member.ConfigFile())
	s.Etcd = s.Host("kb21").Command(s.T.Context(), args[0], args[1:]...)
	if err := s.Etcd.Start(); err != nil {
		s.T.Fatal(err)
	}
}

// variables are the flags as flanneld's environment has them.
func (s *secureEtcd) variables() (env []string) {
	for pair := range slices.Chunk(s.flags, 2) {
		env = append(env, "FLANNELD_"+strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(pair[0], "-"), "-", "_"))+"="+pair[1])
	}
	return env
}

// A cluster whose etcd asks for a client certificate and a password: daemons and
// the operator's command get in by flags and by variables, also once their
// tokens are out of date and etcd was killed.
func TestIntegrationSecureEtcd(t *testing.T) {
	s := newSecureEtcd(t)
	kb21 := s.Host("kb21")
	flags := strings.Join(s.flags, " ") + " -etcd-endpoints " + s.Cluster.Endpoint
	e2e.Command(t, kb21.Node, e2e.CommandBinary+" config set "+e2e.VXLANConfig+" "+flags)
	if got := e2e.Command(t, kb21.Node, e2e.CommandBinary+" config get "+flags); strings.TrimSpace(got) != e2e.VXLANConfig {
		t.Errorf("config get printed %s", got)
	}
	s.Cluster.Args = s.flags
	first := s.Start("kb21")[0]
	if err := s.Etcd.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.killed()
	s.run()

	s.Cluster.Args, s.Cluster.Env = nil, s.variables()
	s.Start("kb22")
	s.Mesh("kb21", "kb22") // the first has heard of the second
	env := append([]string{"env"}, append(s.variables(), "FLANNELD_ETCD_ENDPOINTS="+s.Cluster.Endpoint)...)
	leases := e2e.Command(t, kb21.Node, strings.Join(append(env, e2e.CommandBinary, "leases"), " "))
	for _, h := range s.Hosts() {
		if !strings.Contains(leases, h.Subnet.String()) || !strings.Contains(leases, h.Address.String()) {
			t.Errorf("%s isn't among the leases:\n%s", h.Name, leases)
		}
	}
	if st := e2e.AskStatus(t, first); !st.Etcd.Up {
		t.Errorf("the first daemon says %+v", st.Etcd)
	}
}

// killed is closed once the etcd has ended.
func (s *secureEtcd) killed() <-chan struct{} {
	go func() { _ = s.Etcd.Wait() }() // closes Done
	return s.Etcd.Done()
}

// What keeps the daemon out of etcd for good ends it with one line that says
// what to do; the operator's command says the same.
func TestIntegrationSecureEtcdErrors(t *testing.T) {
	s := newSecureEtcd(t)
	other := etcdtest.NewAuthority(t)
	with := func(name, value string) []string { return append(slices.Clone(s.flags), name, value) } // the last one counts
	plain := strings.Replace(s.Cluster.Endpoint, "https", "http", 1)
	for _, c := range []struct {
		name     string
		endpoint string
		flags    []string
		want     []string
	}{
		{"wrong CA", "", with("-etcd-cafile", other.CAFile), []string{s.Cluster.Endpoint, "isn't signed by CA file " + other.CAFile}},
		{"no client certificate", "", slices.Concat(s.flags[:2], s.flags[6:]), []string{"asks for a client certificate", "give one and its key"}},
		{"wrong password", "", with("-etcd-password", "wrong"), []string{"authentication failed", "check the user name and the password"}},
		{"no user", "", s.flags[:6], []string{"user name"}},
		{"http", plain, s.flags, []string{plain, "speaks TLS", "https://"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.endpoint == "" {
				c.endpoint = s.Cluster.Endpoint
			}
			access := append(slices.Clone(c.flags), "-etcd-endpoints", c.endpoint)
			dir := t.TempDir()
			own := []string{"-subnet-file", dir + "/subnet.env", "-state-dir", dir + "/state", "-control-socket", dir + "/uvxlan.sock"}
			for _, args := range [][]string{
				slices.Concat([]string{e2e.DaemonBinary}, own, access),
				slices.Concat([]string{e2e.CommandBinary, "leases"}, access),
			} {
				cmd, out := e2e.NewCommand(t, s.World, args...)
				err := cmd.Run()
				lines := strings.Split(strings.TrimSpace(out.String()), "\n")
				last := lines[len(lines)-1]
				if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(last, "uvxlan") {
					t.Errorf("%s ended with %v: %s", args[0], err, out)
				}
				for _, want := range c.want {
					if !strings.Contains(last, want) {
						t.Errorf("the line doesn't say %q: %s", want, last)
					}
				}
			}
		})
	}
}
