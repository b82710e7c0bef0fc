package etcd

import (
	"net"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// What a paced connection does.
const (
	PaceInterval = paceInterval
	PaceCredit   = paceCredit
	PaceBytes    = paceBytes
)

// NewPacedConn paces the reads of conn.
func NewPacedConn(conn net.Conn) net.Conn { return newPacedConn(conn) }

// Gather is a client whose streams gather; their goroutines are in wg.
func Gather(c pb.WatchClient, wg *sync.WaitGroup) pb.WatchClient { return gatherer{c, wg} }

// SetPageSize makes List read so many leases at once.
func (r *Registry) SetPageSize(n int64) { r.pageSize = n }
