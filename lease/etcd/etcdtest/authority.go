package etcdtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates.
type Authority struct {
	// CAFile holds its own certificate.
	CAFile string

	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Pair are the files of a certificate and its key.
type Pair struct{ CertFile, KeyFile string }

// NewAuthority makes one whose files are gone when the test ends.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb, key: newKey(tb)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key))(tb)
	a.cert = must(x509.ParseCertificate(der))(tb)
	a.CAFile = writePEM(tb, "ca.pem", "CERTIFICATE", der)
	return a
}

// Issue signs a certificate for a server of these names and addresses, which is
// also that of a client called name, since etcd's own gateway uses it so.
func (a *Authority) Issue(name string, hosts ...string) Pair {
	a.tb.Helper()
	return a.issue(name, time.Now().Add(time.Hour), hosts...)
}

// IssueExpired signs one that was good until a minute ago.
func (a *Authority) IssueExpired(name string, hosts ...string) Pair {
	a.tb.Helper()
	return a.issue(name, time.Now().Add(-time.Minute), hosts...)
}

func (a *Authority) issue(name string, end time.Time, hosts ...string) Pair {
	a.tb.Helper()
	key := newKey(a.tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(a.tb)
	return Pair{writePEM(a.tb, "cert.pem", "CERTIFICATE", der), writeKey(a.tb, key)}
}

// config is a client's that trusts the authority and is called name.
func (a *Authority) config(name string) *tls.Config {
	p := a.Issue(name)
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	c.RootCAs.AddCert(a.cert)
	c.Certificates = []tls.Certificate{must(tls.LoadX509KeyPair(p.CertFile, p.KeyFile))(a.tb)}
	return c
}

// JWT returns etcd's auth-token option for tokens that last that long, signed
// with a key of the test's.
func JWT(tb testing.TB, ttl time.Duration) string {
	tb.Helper()
	key := must(rsa.GenerateKey(rand.Reader, 2048))(tb)
	public := must(x509.MarshalPKIXPublicKey(key.Public()))(tb)
	return "jwt,sign-method=RS256,ttl=" + ttl.String() + ",pub-key=" + writePEM(tb, "jwt.pub", "PUBLIC KEY", public) +
		",priv-key=" + writePEM(tb, "jwt.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
}

func writeKey(tb testing.TB, key crypto.PrivateKey) string {
	return writePEM(tb, "key.pem", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(tb))
}

func writePEM(tb testing.TB, name, kind string, der []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// must returns the value, or fails the test.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return v
	}
}
