package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc/credentials"
)

// certificates are the files of TLS. They are read at each handshake, since a
// certificate that doesn't last long is replaced while we run, and so may its
// authority be.
type certificates struct {
	caFile, certFile, keyFile string // immutable; empty if there is none
	log                       *slog.Logger

	mu     sync.Mutex // guards the rest, what was good last
	roots  *x509.CertPool
	pair   []tls.Certificate
	warned string
}

// newCertificates reads the files; they must be good.
func newCertificates(o Options) (*certificates, error) {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("etcd: a client certificate needs both its certificate file and its key file")
	}
	c := &certificates{caFile: o.CAFile, certFile: o.CertFile, keyFile: o.KeyFile, log: o.Logger}
	if err := c.read(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return c, nil
}

// config is that of the next handshake. Files that can't be read, because somebody
// is just writing them, leave what was good before.
func (c *certificates) config() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := ""
	if err := c.read(); err != nil {
		text = err.Error()
	}
	if text != "" && text != c.warned {
		c.log.Warn("etcd's TLS files can't be used; what was read before is", "error", text)
	}
	c.warned = text
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots, Certificates: c.pair}
}

// read replaces what is good, and returns the first fault; mu is locked, or nobody
// else has c.
func (c *certificates) read() error {
	var caErr error
	if c.caFile != "" {
		caErr = c.readCA()
	}
	if c.certFile == "" {
		return caErr
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile) // the key must be the certificate's
	if err == nil {
		c.pair = []tls.Certificate{cert}
	} else {
		err = fmt.Errorf("load client certificate: %w", err)
	}
	return cmp.Or(caErr, err)
}

func (c *certificates) readCA() error {
	pem, err := os.ReadFile(c.caFile)
	if err != nil {
		return fmt.Errorf("read CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("CA file %s: no certificate in PEM form", c.caFile)
	}
	c.roots = roots
	return nil
}

// rereading are TLS credentials that read their files at each handshake.
type rereading struct {
	credentials.TransportCredentials // of the files as they were at first
	files                            *certificates
}

func newRereading(files *certificates) rereading {
	return rereading{credentials.NewTLS(files.config()), files}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (r rereading) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.files.config()).ClientHandshake(ctx, authority, conn)
}

// Clone implements [credentials.TransportCredentials].
func (r rereading) Clone() credentials.TransportCredentials {
	return rereading{r.TransportCredentials.Clone(), r.files}
}
