package etcd_test

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// behindProxy, in the environment, is for a process of the test's own: a process
// looks for its proxy once.
const behindProxy = "UVXLAN_TEST_BEHIND_PROXY"

// A proxy of the environment is named when it is in the way. Nothing is behind the
// endpoint, an address for documentation (RFC 5737), and nothing is sent there.
func TestProxyIsNamed(t *testing.T) {
	if os.Getenv(behindProxy) != "" {
		_, err := open(t, etcd.Options{Endpoints: []string{"http://192.0.2.1:2379"}}).Config(t.Context())
		t.Log(err)
		return
	}
	t.Parallel()
	for noProxy, words := range map[string]string{
		"":          "through proxy http://user:xxxxx@127.0.0.1:1 of HTTPS_PROXY: set NO_PROXY=192.0.2.1 if",
		"192.0.2.0": "through proxy",
	} {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyIsNamed$", "-test.v")
		c.Env = append(os.Environ(), behindProxy+"=1", "HTTPS_PROXY=http://user:secret@127.0.0.1:1", "NO_PROXY="+noProxy)
		out, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(out), words) || strings.Contains(string(out), "secret") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// An etcd whose space is exhausted answers, and takes no writes.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Build: b})
		admin, r := c.Admin(t, nil, ""), open(t, etcd.Options{Endpoints: c.Endpoints()})
		own, err := r.Create(t.Context(), sample("10.5.9.0/24"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		end := etcdtest.RaiseNoSpace(t, admin)
		if _, err := r.Renew(t.Context(), own, time.Hour); err != nil {
			t.Errorf("a renewal: %v", err)
		}
		if _, _, err := r.List(t.Context()); err != nil {
			t.Error(err)
		}
		_, err = r.Create(t.Context(), sample("10.5.1.0/24"), time.Hour)
		if !errors.Is(err, lease.ErrReadOnly) || errors.Is(err, lease.ErrUnavailable) || !strings.Contains(err.Error(), "space is exhausted: compact its history, defragment it, then run etcdctl alarm disarm") {
			t.Errorf("a lease: %v", err)
		}
		if err := r.SetConfig(t.Context(), nil); !errors.Is(err, lease.ErrReadOnly) {
			t.Errorf("a configuration: %v", err)
		}
		end()
		works(t, r)
	})
}

// A configuration that an old tutorial's etcdctl set wrote is found, though not by
// today's API, and it is said how to write it.
func TestConfigurationOfTheOldAPI(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Build: etcdtest.Installed(t), EnableV2: true})
	c.Admin(t, nil, "")
	get := func() error {
		t.Helper()
		_, err := open(t, etcd.Options{Endpoints: c.Endpoints()}).Config(t.Context())
		if !errors.Is(err, lease.ErrNoConfig) || !strings.Contains(err.Error(), etcdtest.Prefix+"/config") {
			t.Errorf("got %v", err)
		}
		return err
	}
	if err := get(); !strings.Contains(err.Error(), "write one, such as by uvxlan config set -etcd-endpoints "+c.Endpoints()[0]+" '{") {
		t.Errorf("without a configuration: %v", err)
	}
	const config = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}`
	form := url.Values{"value": {config + "\n"}}.Encode()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, c.Endpoints()[0]+"/v2/keys"+etcdtest.Prefix+"/config", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusCreated {
		t.Fatalf("%s: %s, %v", answer.Status, text, err)
	}
	err = get()
	t.Log(err)
	for _, words := range []string{
		"v2 API", "uvxlan config set -etcd-endpoints " + c.Endpoints()[0] + " '" + config + "'",
		"ETCDCTL_API=3 etcdctl --endpoints " + c.Endpoints()[0] + " put " + etcdtest.Prefix + "/config '" + config + "'",
	} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("no %q in %v", words, err)
		}
	}
}

// What the commands are told of the way to etcd is all that they don't take by
// themselves, but no password.
func TestFlags(t *testing.T) {
	for _, c := range []struct {
		options etcd.Options
		want    string
	}{
		{etcd.Options{Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"}, Prefix: etcd.DefaultPrefix}, ""},
		{
			etcd.Options{
				Endpoints: []string{"https://10.4.7.12:2379", "https://10.4.7.21:2379"}, Prefix: "/other",
				CAFile: "ca.pem", CertFile: "client.pem", KeyFile: "client-key.pem", Username: "flannel", Password: "secret",
			},
			" -etcd-endpoints https://10.4.7.12:2379,https://10.4.7.21:2379 -etcd-prefix /other" +
				" -etcd-cafile ca.pem -etcd-certfile client.pem -etcd-keyfile client-key.pem -etcd-username flannel",
		},
	} {
		if got := c.options.Flags(); got != c.want {
			t.Errorf("the flags are%s, want%s", got, c.want)
		}
	}
}
