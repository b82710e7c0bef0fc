package etcd_test

import (
	"context"
	"errors"
	"fmt"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
)

func ExampleOpen() {
	r, err := etcd.Open(etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		panic(err)
	}
	defer r.Close()
	_, err = r.Config(context.Background())
	fmt.Println(errors.Is(err, lease.ErrUnavailable))
	fmt.Println(err)
	// Output:
	// true
	// etcd at http://127.0.0.1:1 does not answer: dial tcp 127.0.0.1:1: connect: connection refused
}
