package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// ErrAccess means that etcd is there but doesn't let us in, or isn't what the
// endpoints say: change the [Options]. While one endpoint may still get well by
// itself, the error is lease.ErrUnavailable instead.
var ErrAccess = errors.New("no access to etcd")

// probeTimeout bounds the look at an endpoint that a call has failed at, and
// alertTimeout how long a refusal is waited for after the handshake, where TLS
// 1.3 has that of a client certificate.
const (
	probeTimeout = 2 * time.Second
	alertTimeout = 300 * time.Millisecond
)

// unanswered says why nobody answers, given gRPC's words. When there was a
// connection and it broke, it looks for a cause that won't pass.
func (r *Registry) unanswered(ctx context.Context, text string) error {
	why := reason(text)
	if !strings.Contains(text, "Error while dialing") {
		refusals := r.probeAll(ctx)
		if len(refusals) == len(r.opts.Endpoints) {
			return fmt.Errorf("%w: %s", ErrAccess, strings.Join(refusals, "; "))
		}
		if len(refusals) > 0 {
			why = refusals[0]
		}
	}
	return r.unavailable(why)
}

// probeAll returns, for each endpoint that keeps us out for good, how.
func (r *Registry) probeAll(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	found := make([]string, len(r.opts.Endpoints))
	var wg sync.WaitGroup
	for i, e := range r.opts.Endpoints {
		wg.Go(func() { found[i] = r.probe(ctx, e) })
	}
	wg.Wait()
	var refusals []string
	for i, why := range found {
		if why != "" {
			refusals = append(refusals, r.opts.Endpoints[i]+": "+why)
		}
	}
	return refusals
}

// probe connects as the client does and returns what won't pass, "" if nothing.
func (r *Registry) probe(ctx context.Context, endpoint string) string {
	scheme, address, ok := strings.Cut(endpoint, "://")
	if !ok {
		return ""
	}
	try := func(do func(context.Context, net.Conn) error) error {
		conn, err := r.dial(ctx, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		return do(ctx, conn)
	}
	if scheme != "https" {
		if try(greetTLS) == nil {
			return "it speaks TLS: write https:// in the endpoint, and give the CA file"
		}
		return ""
	}
	err := try(func(ctx context.Context, conn net.Conn) error { return handshake(ctx, conn, address, r.files.config()) })
	if why := r.refusal(err); why != "" || err == nil {
		return why
	}
	if try(greetPlain) == nil {
		return "it doesn't speak TLS: write http:// in the endpoint, or give etcd a certificate"
	}
	return ""
}

func (r *Registry) dial(ctx context.Context, address string) (net.Conn, error) {
	return r.dialAny(ctx, "tcp", address)
}

func (r *Registry) dialAny(ctx context.Context, network, address string) (net.Conn, error) {
	if r.opts.Dial != nil {
		return r.opts.Dial(ctx, address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func handshake(ctx context.Context, conn net.Conn, address string, config *tls.Config) error {
	config.NextProtos = []string{"h2"}
	if host, _, err := net.SplitHostPort(address); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(alertTimeout)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// greetTLS returns nil if a server speaks TLS, whatever it thinks of us.
func greetTLS(ctx context.Context, conn net.Conn) error {
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) // nothing is sent
	err := c.HandshakeContext(ctx)
	if alert(err) != "" {
		return nil
	}
	return err
}

// greetPlain returns nil if a server speaks HTTP/2 without TLS.
func greetPlain(ctx context.Context, conn net.Conn) error {
	// The preface and an empty SETTINGS frame, RFC 9113 sections 3.4 and 6.5.
	const hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	const settings = 4 // the type of the frame that it answers with
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, hello); err != nil {
		return err
	}
	var frame [9]byte
	if _, err := io.ReadFull(conn, frame[:]); err != nil {
		return err
	}
	if frame[3] != settings {
		return fmt.Errorf("not HTTP/2: % x", frame)
	}
	return nil
}

// refusal says what to do about an error of TLS, "" if it may pass: a
// certificate that is out of date is renewed some day, or the clock is set.
func (r *Registry) refusal(err error) string {
	if text := alert(err); strings.Contains(text, "certificate") {
		if r.opts.CertFile == "" {
			return fmt.Sprintf("it asks for a client certificate (%s): give one and its key", text)
		}
		return fmt.Sprintf("it doesn't take the client certificate (%s): give one of an authority that etcd trusts", text)
	}
	bad, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err); !ok || isInvalid && invalid.Reason == x509.Expired {
		return ""
	}
	text := strings.TrimPrefix(bad.Err.Error(), "x509: ")
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("wrong certificate (%s): write a name in the endpoint that is in the certificate", text)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		return fmt.Sprintf("wrong certificate (%s): give etcd another", text)
	}
	if r.opts.CAFile == "" {
		return "this host doesn't know the authority that signed its certificate: give the CA file"
	}
	return fmt.Sprintf("its certificate isn't signed by CA file %s: give the one of the authority that signed it", r.opts.CAFile)
}

// alert is what the other end of TLS said before it hung up, "" if nothing.
func alert(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}
