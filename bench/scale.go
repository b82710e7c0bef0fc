package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"uvxlan/bench/lab"
	"uvxlan/bench/scale"
)

// runScale measures what many leases cost, instead of all else.
func (o *options) runScale(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errRoot
	}
	dir, err := os.MkdirTemp("", "uvxlan-scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	daemons, err := findDaemons(ctx, o.daemons, dir)
	if err != nil {
		return err
	}
	hosts := scale.Hosts()
	l, err := lab.New(ctx, lab.Options{Hosts: hosts, Logger: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := startEtcd(ctx, l, dir); err != nil {
		return err
	}
	table, err := scale.Run(ctx, scale.Options{
		Lab: l, Endpoint: etcdAt(hosts[0].Gateway), Binary: daemons[0].Path, Dir: dir,
		Parts: o.scale, Churn: o.churn, Puts: o.puts, Log: os.Stderr,
	})
	if table != nil {
		err = errors.Join(err, table.Write(os.Stdout))
	}
	if err == nil && table.Missed() {
		err = errMissed
	}
	return err
}
