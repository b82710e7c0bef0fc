package lab_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"uvxlan/bench/lab"
)

// A host reaches another across the router. It needs root.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		log.Print(err)
		return
	}
	defer func() {
		if err := l.Close(); err != nil {
			log.Print(err)
		}
	}()
	rtt, err := l.Host("kb21").Ping(ctx, l.Host("kb31").Address, 1500)
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println("kb31 answered after", rtt)
}
