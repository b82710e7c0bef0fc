// Package kubetest gives tests a cluster whose Nodes are leases: an API server in the
// test's own process that can be made to fail, or with [ServerVariable] in the
// environment the kube-apiserver that it names.
package kubetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"uvxlan/lease/kube"
)

// Prefix is what the annotations' names begin with.
const Prefix = kube.DefaultAnnotationPrefix + "/"

// Cluster is an API server and how its operator gets in. Its methods end the test if
// the API server refuses.
type Cluster struct {
	// URL is the API server's, and CA the PEM text of who vouches for it.
	URL string
	CA  []byte

	operator, token string // the tokens by which the test gets in and by which hosts do

	name string // in the API server's certificate, "" for the URL's
	dir  string
	http *http.Client
}

// newCluster returns a cluster whose API server is reached from where do has things
// done.
func newCluster(dir, url string, ca []byte, name, operator, token string, do func(func() error) error) (*Cluster, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the API server's certificate can't be read")
	}
	t := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = do(func() error {
				var d net.Dialer
				conn, err = d.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}
	return &Cluster{URL: url, CA: ca, operator: operator, token: token, name: name, dir: dir, http: &http.Client{Transport: t}}, nil
}

// pemOf is a certificate as PEM text.
func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// TokenFile has the token by which hosts get in.
func (c *Cluster) TokenFile() string { return filepath.Join(c.dir, "token") }

// WriteToken changes the token by which hosts try to get in.
func (c *Cluster) WriteToken(tb testing.TB, token string) {
	tb.Helper()
	write(tb, c.TokenFile(), []byte(token))
}

// Kubeconfig is the path of the file that says how hosts get in.
func (c *Cluster) Kubeconfig(tb testing.TB) string {
	tb.Helper()
	path, err := c.WriteKubeconfig()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// WriteKubeconfig writes the file that says how hosts get in, and returns its path.
func (c *Cluster) WriteKubeconfig() (path string, err error) {
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": c.URL, "certificate-authority-data": c.CA, "tls-server-name": c.name}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{"tokenFile": c.TokenFile()}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
	})
	path = filepath.Join(c.dir, "kubeconfig")
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(c.TokenFile(), []byte(c.token), 0o600)
	}
	return path, err
}

func write(tb testing.TB, path string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// WriteConfig writes a network configuration and returns the file's path.
func (c *Cluster) WriteConfig(tb testing.TB, text string) string {
	tb.Helper()
	path := filepath.Join(c.dir, "net-conf.json")
	write(tb, path, []byte(text))
	return path
}

// Open returns a registry as the node has it, closed when the test ends. The network
// configuration is at WriteConfig's place. change, which may be nil, changes the
// options.
func (c *Cluster) Open(tb testing.TB, node string, change func(*kube.Options)) *kube.Registry {
	tb.Helper()
	o := kube.Options{Kubeconfig: c.Kubeconfig(tb), Node: node, ConfigFile: filepath.Join(c.dir, "net-conf.json")}
	if change != nil {
		change(&o)
	}
	r, err := kube.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r
}

// Node is what tests look at of a Node.
type Node struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDR  string   `json:"podCIDR"`
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
			Reason string `json:"reason"`
		} `json:"conditions"`
	} `json:"status"`
}

// Unavailable is the status of the Node's condition NetworkUnavailable, "" without one.
func (n *Node) Unavailable() string {
	for _, c := range n.Status.Conditions {
		if c.Type == "NetworkUnavailable" {
			return c.Status
		}
	}
	return ""
}

const (
	nodesPath   = "/api/v1/nodes"
	mergePatch  = "application/merge-patch+json"
	statusPatch = "application/strategic-merge-patch+json"
)

// CreateNode makes a Node with podCIDRs, or without any.
func (c *Cluster) CreateNode(tb testing.TB, name string, podCIDRs ...string) {
	tb.Helper()
	spec := map[string]any{}
	if len(podCIDRs) > 0 {
		spec["podCIDR"], spec["podCIDRs"] = podCIDRs[0], podCIDRs
	}
	c.do(tb, http.MethodPost, nodesPath, "application/json", map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": name}, "spec": spec,
	}, nil)
}

// Clear deletes all Nodes and the network configuration.
func (c *Cluster) Clear(tb testing.TB) {
	tb.Helper()
	c.do(tb, http.MethodDelete, nodesPath, "", nil, nil)
	if err := os.Remove(filepath.Join(c.dir, "net-conf.json")); err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
}

// DeleteNode deletes a Node.
func (c *Cluster) DeleteNode(tb testing.TB, name string) {
	tb.Helper()
	c.do(tb, http.MethodDelete, nodesPath+"/"+name, "", nil, nil)
}

// Assign gives a Node that has none its podCIDRs.
func (c *Cluster) Assign(tb testing.TB, name string, podCIDRs ...string) {
	tb.Helper()
	c.do(tb, http.MethodPatch, nodesPath+"/"+name, mergePatch, map[string]any{"spec": map[string]any{"podCIDR": podCIDRs[0], "podCIDRs": podCIDRs}}, nil)
}

// Annotate sets annotations, without [Prefix]; a nil one is removed.
func (c *Cluster) Annotate(tb testing.TB, name string, annotations map[string]any) {
	tb.Helper()
	named := map[string]any{}
	for k, v := range annotations {
		named[Prefix+k] = v
	}
	c.do(tb, http.MethodPatch, nodesPath+"/"+name, mergePatch, map[string]any{"metadata": map[string]any{"annotations": named}}, nil)
}

// Join annotates a Node as a daemon on it does.
func (c *Cluster) Join(tb testing.TB, name, publicIP, mac string) {
	tb.Helper()
	c.Annotate(tb, name, map[string]any{
		"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": publicIP, "backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"%s"}`, mac),
	})
}

// SetCondition sets a condition of a Node, as its kubelet does with each heartbeat.
func (c *Cluster) SetCondition(tb testing.TB, name, kind, status string) {
	tb.Helper()
	now := time.Now().UTC().Format(time.RFC3339)
	c.do(tb, http.MethodPatch, nodesPath+"/"+name+"/status", statusPatch, map[string]any{"status": map[string]any{"conditions": []any{
		map[string]any{"type": kind, "status": status, "reason": "Test", "message": time.Now().String(), "lastHeartbeatTime": now, "lastTransitionTime": now},
	}}}, nil)
}

// Node reads a Node.
func (c *Cluster) Node(tb testing.TB, name string) (n Node) {
	tb.Helper()
	c.do(tb, http.MethodGet, nodesPath+"/"+name, "", nil, &n)
	return n
}

// do ends the test unless the API server does what is asked.
func (c *Cluster) do(tb testing.TB, method, path, kind string, body, into any) {
	tb.Helper()
	if err := c.ask(tb.Context(), method, path, kind, body, into); err != nil {
		tb.Fatal(err)
	}
}

func (c *Cluster) ask(ctx context.Context, method, path, kind string, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Authorization", "Bearer "+c.operator)
	r.Header.Set(operatorHeader, "true")
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err
	case answer.StatusCode >= 300:
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, text)
	case into == nil:
		return nil
	}
	return json.Unmarshal(text, into)
}
