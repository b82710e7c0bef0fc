package scale

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/bench/lab"
)

// perTxn is etcd's limit of operations in one request.
const perTxn = 128

// store is the leases in etcd, written as other hosts would write them.
type store struct {
	client *clientv3.Client
	prefix string
	grant  clientv3.LeaseID
	n      int // leases 0 to n-1 are there
}

// openStore connects from inside a host.
func openStore(endpoint string, from *lab.Host, prefix string) (*store, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (conn net.Conn, err error) {
			err = from.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				return err
			})
			return conn, err
		}),
	}})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return &store{client: c, prefix: prefix}, nil
}

func (s *store) close() { _ = s.client.Close() }

// lease is the etcd lease that all keys hang on.
func (s *store) lease(ctx context.Context) (clientv3.LeaseID, error) {
	if s.grant == 0 {
		g, err := s.client.Grant(ctx, int64(24*time.Hour/time.Second))
		if err != nil {
			return 0, fmt.Errorf("grant: %w", err)
		}
		s.grant = g.ID
	}
	return s.grant, nil
}

// resize makes leases 0 to n-1 all there are, but for those of running hosts.
func (s *store) resize(ctx context.Context, n int) error {
	id, err := s.lease(ctx)
	if err != nil {
		return err
	}
	for s.n != n {
		var ops []clientv3.Op
		for len(ops) < perTxn && s.n != n {
			if s.n < n {
				ops = append(ops, s.put(s.n, 0, id))
				s.n++
			} else {
				s.n--
				ops = append(ops, clientv3.OpDelete(s.key(s.n)))
			}
		}
		if _, err := s.client.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("write leases: %w", err)
		}
	}
	return nil
}

// forget removes the lease that a stopped host has left.
func (s *store) forget(ctx context.Context, h *lab.Host) error {
	if _, err := s.client.Delete(ctx, keyOf(s.prefix, h.Subnet)); err != nil {
		return fmt.Errorf("remove lease of %s: %w", h.Name, err)
	}
	return nil
}

// put writes the i-th lease; each version has another MAC.
func (s *store) put(i, version int, id clientv3.LeaseID) clientv3.Op {
	value := fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:%02x:%02x:%02x:%02x:%02x"}}`,
		add([4]byte{172, 16, 0, 1}, i), byte(version>>8), byte(version), byte(i>>16), byte(i>>8), byte(i))
	return clientv3.OpPut(s.key(i), value, clientv3.WithLease(id))
}

func (s *store) key(i int) string { return keyOf(s.prefix, subnet(i)) }

func keyOf(prefix string, subnet netip.Prefix) string {
	return fmt.Sprintf("%s/subnets/%s-%d", prefix, subnet.Addr(), subnet.Bits())
}

// subnet is the i-th lease's.
func subnet(i int) netip.Prefix { return netip.PrefixFrom(add([4]byte{10, 0, 0, 64}, 64*i), 26) }

func add(base [4]byte, n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+uint32(n))
	return netip.AddrFrom4(b)
}
