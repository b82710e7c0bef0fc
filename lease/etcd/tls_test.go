package etcd_test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// tlsProxy is an etcd's port with TLS.
type tlsProxy struct{ endpoint, caFile string }

// newTLSProxy serves the plain endpoint with the certificate that httptest has
// for 127.0.0.1, until the test ends.
func newTLSProxy(t *testing.T, plain string) tlsProxy {
	t.Helper()
	known := httptest.NewTLSServer(nil)
	known.Close()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: known.Certificate().Raw}
	if err := os.WriteFile(caFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: known.TLS.Certificates, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			outside, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { relay(outside, strings.TrimPrefix(plain, "http://")) })
		}
	})
	return tlsProxy{"https://" + l.Addr().String(), caFile}
}

// relay copies both ways until either side ends.
func relay(outside net.Conn, to string) {
	defer outside.Close()
	inside, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer inside.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(inside, outside)
		inside.Close()
	})
	_, _ = io.Copy(outside, inside)
	outside.Close()
	wg.Wait()
}
