package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

const room = 2 * etcd.PaceBytes

// pipe is a paced connection and its other end, within a test that takes no time.
func pipe(t *testing.T) (paced, other net.Conn) {
	a, b := net.Pipe()
	paced = etcd.NewPacedConn(a)
	t.Cleanup(func() {
		paced.Close()
		other.Close()
	})
	return paced, b
}

// send writes so many messages of a size, each as soon as the one before is read.
func send(t *testing.T, conn net.Conn, n, size int) {
	go func() {
		for range n {
			if _, err := conn.Write(make([]byte, size)); err != nil {
				t.Error(err)
			}
		}
	}()
}

// read is how long so many reads of at most size bytes take.
func read(t *testing.T, conn net.Conn, n, size int) time.Duration {
	t.Helper()
	begin := time.Now()
	for range n {
		if _, err := conn.Read(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(begin)
}

// use reads until reads are put off.
func use(t *testing.T, conn, other net.Conn) {
	t.Helper()
	send(t, other, etcd.PaceCredit+1, 1)
	if d := read(t, conn, etcd.PaceCredit+1, room); d != 0 {
		t.Fatalf("the first reads took %s", d)
	}
}

func TestReadsArePutOffAndQuietEndsThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, other := pipe(t)
		for range 2 {
			use(t, conn, other)
			const many = 100
			send(t, other, many, 1)
			if d := read(t, conn, many, room); d != many*etcd.PaceInterval {
				t.Errorf("%d reads took %s", many, d)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestSlowReadsAreNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, other := pipe(t)
		for range 100 {
			send(t, other, 1, 1)
			if d := read(t, conn, 1, room); d != 0 {
				t.Fatalf("a read took %s", d)
			}
			time.Sleep(etcd.PaceInterval)
		}
	})
}

func TestLargeReadsAreNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, other := pipe(t)
		send(t, other, 100, etcd.PaceBytes)
		if d := read(t, conn, 100, room); d != 0 {
			t.Errorf("reads that bring much took %s", d)
		}
		send(t, other, 1, 100)
		if d := read(t, conn, 100, 1); d != 0 {
			t.Errorf("reads that leave something took %s", d)
		}
	})
}

// What ends a read ends its wait as well.
func TestReadThatIsPutOffEnds(t *testing.T) {
	past, soon := -time.Second, etcd.PaceInterval/2
	for name, c := range map[string]struct {
		end  func(net.Conn) error
		want error
		took time.Duration
	}{
		"closed":        {net.Conn.Close, io.ErrClosedPipe, 0},
		"read deadline": {func(c net.Conn) error { return c.SetReadDeadline(time.Now().Add(past)) }, os.ErrDeadlineExceeded, 0},
		"deadline":      {func(c net.Conn) error { return c.SetDeadline(time.Now().Add(soon)) }, os.ErrDeadlineExceeded, soon},
	} {
		for _, when := range []string{"before", "meanwhile"} {
			t.Run(name+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					conn, other := pipe(t)
					use(t, conn, other)
					if when == "before" {
						if err := c.end(conn); err != nil {
							t.Fatal(err)
						}
					}
					done := make(chan error, 1)
					begin := time.Now()
					go func() {
						_, err := conn.Read(make([]byte, 1))
						done <- err
					}()
					synctest.Wait()
					if when == "meanwhile" {
						if err := c.end(conn); err != nil {
							t.Fatal(err)
						}
					}
					if err := <-done; !errors.Is(err, c.want) || time.Since(begin) != c.took {
						t.Errorf("after %s: %v", time.Since(begin), err)
					}
				})
			})
		}
	}
}

// Without a deadline any more, reads are put off again.
func TestDeadlineIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, other := pipe(t)
		use(t, conn, other)
		for _, end := range []time.Time{time.Now().Add(time.Hour), {}} {
			if err := conn.SetReadDeadline(end); err != nil {
				t.Fatal(err)
			}
		}
		send(t, other, 10, 1)
		if d := read(t, conn, 10, room); d < 9*etcd.PaceInterval {
			t.Errorf("10 reads took %s", d)
		}
	})
}

// countedConn counts the reads that bring little.
type countedConn struct {
	net.Conn
	reads *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n < etcd.PaceBytes {
		c.reads.Add(1)
	}
	return n, err
}

// When leases change all the time, the watch reads seldom and misses nothing.
func TestManyChangesTakeFewReads(t *testing.T) {
	const many, writers = 2000, 8
	s := etcdtest.Start(t)
	c, ctx := etcdtest.Client(t, s.Endpoint()), t.Context()
	var reads atomic.Int64
	r := open(t, etcd.Options{Endpoints: []string{s.Endpoint()}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return countedConn{conn, &reads}, err
	}})
	_, rev, err := r.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watching, cancel := context.WithCancel(ctx)
	last := map[string]int64{}
	done := make(chan error, 1)
	begin := time.Now()
	go func() {
		done <- r.Watch(watching, rev+1, func(u lease.Update) {
			for _, l := range u.Leases {
				last[l.Key()] = l.Revision
			}
			if u.Revision == rev+many {
				cancel()
			}
		})
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range many / writers {
				if _, err := c.Put(ctx, fmt.Sprintf("%s10.5.%d.0-24", subnets, w*10+i%10), value); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
	took := time.Since(begin)
	all, _, err := r.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if last[l.Key()] != l.Revision {
			t.Errorf("%s is at %d, the watch says %d", l.Key(), l.Revision, last[l.Key()])
		}
	}
	// The handshake has reads of its own, as has the end of the watch.
	if most := took/etcd.PaceInterval + 2*etcd.PaceCredit; reads.Load() > int64(most) {
		t.Errorf("%d reads in %s, which is time for %d", reads.Load(), took, most)
	}
	t.Logf("%d changes in %s: %d reads", many, took, reads.Load())
}
