package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"uvxlan/bench/lab"
)

// Transfer is a CheckedTransfer that must succeed.
func Transfer(t *testing.T, from *lab.Node, to *lab.Container, size int64) {
	t.Helper()
	if err := CheckedTransfer(from, to, size); err != nil {
		t.Fatal(err)
	}
}

// CheckedTransfer sends size pseudo-random bytes over one TCP connection and
// compares what arrives by its SHA-256.
func CheckedTransfer(from *lab.Node, to *lab.Container, size int64) error {
	return checkedTransferTo(from, to.Node, to.Address, size)
}

// checkedTransferTo is CheckedTransfer to one address of any node.
func checkedTransferTo(from, to *lab.Node, at netip.Addr, size int64) error {
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	type outcome struct {
		sum [sha256.Size]byte
		n   int64
		err error
	}
	received := make(chan outcome, 1)
	go func() {
		var o outcome
		o.sum, o.n, o.err = receive(listener)
		received <- o
	}()
	sum, err := send(from, listener.Addr().String(), size)
	if err != nil {
		return err
	}
	got := <-received
	if got.err != nil {
		return fmt.Errorf("%s -> %s: after %d of %d bytes: %w", from.Name, to.Name, got.n, size, got.err)
	}
	if got.n != size || got.sum != sum {
		return fmt.Errorf("%s -> %s: %d of %d bytes arrived, SHA-256 right: %t", from.Name, to.Name, got.n, size, got.sum == sum)
	}
	return nil
}

func receive(l net.Listener) (sum [sha256.Size]byte, n int64, err error) {
	conn, err := l.Accept()
	if err != nil {
		return sum, 0, err
	}
	defer conn.Close()
	hash := sha256.New()
	n, err = io.Copy(hash, conn)
	return [sha256.Size]byte(hash.Sum(nil)), n, err
}

func send(from *lab.Node, to string, size int64) (sum [sha256.Size]byte, err error) {
	var conn net.Conn
	err = from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to, Patience)
		return err
	})
	if err != nil {
		return sum, err
	}
	hash := sha256.New()
	data := io.LimitReader(rand.NewChaCha8([32]byte{}), size)
	_, err = io.Copy(io.MultiWriter(conn, hash), data)
	return [sha256.Size]byte(hash.Sum(nil)), errors.Join(err, conn.Close())
}

// SeenFrom sends datagrams from one node to another until one arrives and
// returns the address that it came from.
func SeenFrom(t *testing.T, from, to *lab.Node, at netip.Addr) netip.Addr {
	t.Helper()
	var receiver *net.UDPConn
	err := to.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	var sender net.Conn
	err = from.Do(func() (err error) {
		sender, err = net.Dial("udp", receiver.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	for end := time.Now().Add(Patience); time.Now().Before(end); {
		if _, err := sender.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := receiver.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, source, err := receiver.ReadFromUDPAddrPort(make([]byte, 16)); err == nil {
			return source.Addr().Unmap()
		}
	}
	t.Fatalf("nothing from %s arrives at %s", from.Name, at)
	return netip.Addr{}
}

// Gigabyte is the size of a long transfer.
const Gigabyte = 1 << 30

// AwaitUnreachable waits until a container is told that another can't be reached.
func (w *World) AwaitUnreachable(from, to *lab.Container) {
	w.T.Helper()
	for ctx := w.Context(); ; {
		once, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		_, err := from.Ping(once, to.Address, 100)
		cancel()
		switch {
		case errors.Is(err, lab.ErrUnreachable):
			return
		case ctx.Err() != nil:
			w.T.Fatalf("%s to %s: %v", from.Name, to.Name, err)
		}
	}
}
