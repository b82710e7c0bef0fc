package etcdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// RootPassword is root's, once [EnableAuth] was called.
const RootPassword = "root's"

// User is one of etcd's. May is etcdctl's word, READ or READWRITE, for what the
// user may do under [Prefix]; empty means nothing.
type User struct{ Name, Password, May string }

// Admin is etcd's own client, as root if there is a password, with a
// certificate of ca if that isn't nil. It waits until the cluster takes
// requests.
func (c *Cluster) Admin(tb testing.TB, ca *Authority, password string, options ...func(*clientv3.Config)) *clientv3.Client {
	tb.Helper()
	config := clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()}
	if ca != nil {
		config.TLS = ca.config("root")
	}
	if password != "" {
		config.Username, config.Password = "root", password
	}
	for _, set := range options {
		set(&config)
	}
	client := must(clientv3.New(config))(tb)
	tb.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	for {
		once, end := context.WithTimeout(ctx, time.Second)
		_, err := client.Get(once, "x")
		end()
		if err == nil {
			return client
		}
		if ctx.Err() != nil {
			tb.Fatalf("etcd doesn't take requests: %v\n%s", err, c.Members[0].Log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// RaiseNoSpace makes etcd refuse writes, as it does when its space is exhausted.
// The result ends that.
func RaiseNoSpace(tb testing.TB, c *clientv3.Client) (end func()) {
	tb.Helper()
	alarm := func(action pb.AlarmRequest_AlarmAction) {
		tb.Helper()
		request := &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_NOSPACE}
		if _, err := pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(tb.Context(), request); err != nil {
			tb.Fatal(err)
		}
	}
	alarm(pb.AlarmRequest_ACTIVATE)
	return func() { alarm(pb.AlarmRequest_DEACTIVATE) }
}

// EnableAuth makes etcd ask for a user, of which there are root and these.
func EnableAuth(tb testing.TB, c *clientv3.Client, users ...User) {
	tb.Helper()
	ctx := tb.Context()
	_, err1 := c.UserAdd(ctx, "root", RootPassword)
	_, err2 := c.UserGrantRole(ctx, "root", "root")
	errs := []error{err1, err2}
	for _, u := range users {
		_, err1 := c.UserAdd(ctx, u.Name, u.Password)
		_, err2 := c.RoleAdd(ctx, u.Name)
		_, err3 := c.UserGrantRole(ctx, u.Name, u.Name)
		errs = append(errs, err1, err2, err3)
		if u.May != "" {
			may, err1 := clientv3.StrToPermissionType(u.May)
			_, err2 := c.RoleGrantPermission(ctx, u.Name, Prefix+"/", clientv3.GetPrefixRangeEnd(Prefix+"/"), may)
			errs = append(errs, err1, err2)
		}
	}
	_, err := c.AuthEnable(ctx)
	if err := errors.Join(append(errs, err)...); err != nil {
		tb.Fatal(err)
	}
}

// Leader is the member that leads.
func (c *Cluster) Leader(tb testing.TB, client *clientv3.Client) *Member {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		for _, m := range c.Members {
			if m.cmd == nil {
				continue
			}
			once, end := context.WithTimeout(ctx, time.Second)
			s, err := client.Status(once, m.Endpoint)
			end()
			if err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId {
				return m
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	tb.Fatal("no member leads")
	return nil
}
