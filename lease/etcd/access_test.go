package etcd_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// open is a registry with these options, closed when the test ends.
func open(t *testing.T, o etcd.Options) *etcd.Registry {
	t.Helper()
	r, err := etcd.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// works takes a lease through all that the daemon does with it.
func works(t *testing.T, r *etcd.Registry) {
	t.Helper()
	ctx := t.Context()
	_, rev, err := r.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan lease.Update, 10)
	watch := make(chan error, 1)
	go func() { watch <- r.Watch(ctx, rev+1, func(u lease.Update) { seen <- u }) }()
	l, err := r.Create(ctx, sample("10.5.1.0/24"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case u := <-seen:
		if len(u.Leases) != 1 || !u.Leases[0].Equal(l) {
			t.Errorf("the watch reports %+v", u)
		}
	case err := <-watch:
		t.Fatalf("the watch ended with %v", err)
	}
	renewed, err := r.Renew(ctx, l, time.Hour)
	if err != nil || renewed.Revision != l.Revision || renewed.ID != l.ID {
		t.Errorf("renewed %+v as %+v, %v", l, renewed, err)
	}
	if err := r.Delete(ctx, renewed); err != nil {
		t.Error(err)
	}
}

// refused wants one line that has the words and isn't an outage, from etcd's
// first call.
func refused(t *testing.T, name string, o etcd.Options, words ...string) {
	t.Helper()
	begin := time.Now()
	_, err := open(t, o).Config(t.Context())
	if !errors.Is(err, etcd.ErrAccess) || errors.Is(err, lease.ErrUnavailable) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v", name, err)
		return
	}
	t.Logf("%s (%s): %v", name, time.Since(begin).Round(time.Millisecond), err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error doesn't say %q: %v", name, w, err)
		}
	}
}

// waits wants an outage, with the words.
func waits(t *testing.T, name string, o etcd.Options, words ...string) {
	t.Helper()
	_, err := open(t, o).Config(t.Context())
	t.Logf("%s: %v", name, err)
	if !errors.Is(err, lease.ErrUnavailable) || errors.Is(err, etcd.ErrAccess) {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error doesn't say %q: %v", name, w, err)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		ours, theirs := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
		host := etcdtest.RandomHost()
		server := ours.Issue("etcd", host)
		c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: b, TLS: &server})
		c.Admin(t, ours, "")
		secure := c.Endpoints()
		works(t, open(t, etcd.Options{Endpoints: secure, CAFile: ours.CAFile}))

		refused(t, "another CA", etcd.Options{Endpoints: secure, CAFile: theirs.CAFile}, secure[0], "CA file "+theirs.CAFile)
		refused(t, "no CA", etcd.Options{Endpoints: secure}, secure[0], "this host doesn't know the authority", "give the CA file")
		plain := strings.Replace(secure[0], "https", "http", 1)
		refused(t, "http to TLS", etcd.Options{Endpoints: []string{plain}}, plain, "speaks TLS", "https://")

		// One endpoint that may heal, or is well, is enough.
		waits(t, "another CA, and a dead one", etcd.Options{Endpoints: []string{secure[0], "https://127.0.0.1:1"}, CAFile: theirs.CAFile}, secure[0])
	})
}

func TestTLSWithClientCertificate(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		ours, theirs := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
		host := etcdtest.RandomHost()
		server := ours.Issue("etcd", host)
		c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: b, TLS: &server, ClientCA: ours.CAFile})
		c.Admin(t, ours, "")
		with := func(p etcdtest.Pair) etcd.Options {
			return etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile, CertFile: p.CertFile, KeyFile: p.KeyFile}
		}
		works(t, open(t, with(ours.Issue("host21"))))
		refused(t, "no client certificate", etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile}, "asks for a client certificate", "give one and its key")
		refused(t, "client certificate of another CA", with(theirs.Issue("host21")), "doesn't take the client certificate")
		refused(t, "expired client certificate", with(ours.IssueExpired("host21")), "doesn't take the client certificate")
	})
}

// Certificates that don't last are replaced on disk while we run, and their
// authority with them: each connection is made with what is there then. Files that
// are half written leave what was there before.
func TestRotatedCertificates(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		ours, next := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
		host := etcdtest.RandomHost()
		server, client := ours.Issue("etcd", host), ours.Issue("host21")
		c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: b, TLS: &server, ClientCA: ours.CAFile})
		c.Admin(t, ours, "")
		r := open(t, etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile, CertFile: client.CertFile, KeyFile: client.KeyFile})
		works(t, r)
		again := func() {
			t.Helper()
			c.Members[0].Kill()
			c.Members[0].Start()
			var err error
			for late := time.Now().Add(time.Minute); time.Now().Before(late); {
				if _, _, err = r.List(t.Context()); err == nil {
					works(t, r)
					return
				}
			}
			t.Fatal(err)
		}
		newServer, newClient := next.Issue("etcd", host), next.Issue("host21")
		replace := func(from, to string) {
			t.Helper()
			text, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(to, text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		replace(newClient.CertFile, client.CertFile) // its key isn't there yet
		again()
		if err := os.Truncate(client.KeyFile, 10); err != nil {
			t.Fatal(err)
		}
		again()
		replace(newClient.KeyFile, client.KeyFile)
		replace(newServer.CertFile, server.CertFile)
		replace(newServer.KeyFile, server.KeyFile)
		replace(next.CAFile, ours.CAFile)
		again()
	})
}

func TestCertificateOfAnotherName(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		ours, host := etcdtest.NewAuthority(t), etcdtest.RandomHost()
		server := ours.Issue("etcd", "etcd.example.com")
		c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: b, TLS: &server})
		listening(t, host)
		refused(t, "another name", etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile}, "wrong certificate", host, "in the endpoint")
	})
}

// A certificate that is out of date may be renewed, or the clock be wrong as
// that of a board without a battery is at first.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	ours, host := etcdtest.NewAuthority(t), etcdtest.RandomHost()
	server := ours.IssueExpired("etcd", host)
	c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: etcdtest.Embedded(), TLS: &server})
	listening(t, host)
	waits(t, "expired", etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile}, "certificate has expired or is not yet valid", "current time")
}

func TestPlain(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		host := etcdtest.RandomHost()
		c := etcdtest.StartCluster(t, host, etcdtest.Options{Build: b})
		c.Admin(t, nil, "")
		works(t, open(t, etcd.Options{Endpoints: []string{" " + c.Endpoints()[0] + "/"}}))
		// flannel's users leave the files there when they turn TLS off.
		ours := etcdtest.NewAuthority(t)
		works(t, open(t, etcd.Options{Endpoints: c.Endpoints(), CAFile: ours.CAFile}))
		secure := strings.Replace(c.Endpoints()[0], "http", "https", 1)
		refused(t, "TLS to http", etcd.Options{Endpoints: []string{secure}, CAFile: ours.CAFile}, secure, "doesn't speak TLS", "http://")
		if _, err := etcd.Open(etcd.Options{Endpoints: []string{secure, c.Endpoints()[0]}}); err == nil || !strings.Contains(err.Error(), "in all or in none") {
			t.Errorf("endpoints with and without TLS: %v", err)
		}
	})
}

func TestUsers(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Build: b})
		etcdtest.EnableAuth(t, c.Admin(t, nil, ""),
			etcdtest.User{Name: "flannel", Password: "secret", May: "READWRITE"},
			etcdtest.User{Name: "reader", Password: "secret", May: "READ"},
			etcdtest.User{Name: "stranger", Password: "secret"},
		)
		as := func(name, password string) etcd.Options {
			return etcd.Options{Endpoints: c.Endpoints(), Username: name, Password: password}
		}
		works(t, open(t, as("flannel", "secret")))
		refused(t, "wrong password", as("flannel", "wrong"), "authentication failed", "check the user name and the password")
		refused(t, "wrong name", as("nobody", "secret"), "authentication failed", "check the user name and the password")
		refused(t, "no user", as("", ""), "user name is empty", "give a user name and its password")
		refused(t, "no password", as("flannel", ""), "authentication failed", "check the user name and the password")
		refused(t, "no permission", as("stranger", "secret"), "permission denied", "stranger", etcdtest.Prefix+"/", "etcdctl role grant-permission")

		reader := open(t, as("reader", "secret"))
		if _, _, err := reader.List(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := reader.Create(t.Context(), sample("10.5.1.0/24"), time.Hour); !errors.Is(err, etcd.ErrAccess) || !strings.Contains(err.Error(), "read and write") {
			t.Errorf("a lease without the permission: %v", err)
		}
		stranger := open(t, as("stranger", "secret"))
		if err := stranger.Watch(t.Context(), 1, func(lease.Update) {}); !errors.Is(err, etcd.ErrAccess) {
			t.Errorf("a watch without the permission: %v", err)
		}
	})
}
