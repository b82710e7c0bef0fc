package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// The test binary plays four parts: the test, an unprivileged container runtime,
// the sandbox that the runtime makes, and an embedder that keeps what it donates.
// All but the first are told by the environment.
const (
	roleVariable = "UVXLAN_TEST_ROLE"
	planVariable = "UVXLAN_TEST_PLAN"
)

// partPlan is what the parts must know of each other.
type partPlan struct {
	TUN    string // the device node
	Target string // where an echo is
	Bytes  int
}

// planOf is a plan as the environment carries it.
func planOf(t *testing.T, plan partPlan) string {
	t.Helper()
	b, err := json.Marshal(plan)
	testhost.Must(t, err)
	return string(b)
}

// part is this test's program in a role, and what it prints.
func part(ctx context.Context, role, plan string) (*exec.Cmd, *bytes.Buffer) {
	var out bytes.Buffer
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Env = append(os.Environ(), roleVariable+"="+role, planVariable+"="+plan)
	c.Stdout, c.Stderr = &out, &out
	return c, &out
}

// sandboxSocket is the sandbox's end of the socket to its runtime.
const sandboxSocket = 3

func play(role string) int {
	var plan partPlan
	err := json.Unmarshal([]byte(os.Getenv(planVariable)), &plan)
	switch {
	case err != nil:
	case role == "runtime":
		err = playRuntime()
	case role == "sandbox":
		err = playSandbox(plan)
	case role == "donor":
		err = playDonor(plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}

// playRuntime is a rootless runtime: it opens the sockets outside and carries the
// packets of the device inside.
func playRuntime() error {
	if os.Geteuid() == 0 {
		return errors.New("it is root")
	}
	var sockets underlay.Sockets
	local := netip.AddrPortFrom(vtepPeer(1).Underlay, testhost.Port)
	for _, port := range []uint16{testhost.Port, 0, 0} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: local.Addr().As4()}); err != nil {
			return err
		}
		if port != 0 {
			sockets.Receive = []int{fd}
			continue
		}
		sockets.Send = [][]int{append(first(sockets.Send), fd)}
	}
	sandbox, ours, err := startSandbox()
	if err != nil {
		return err
	}
	defer ours.Close()
	tun, err := receiveDescriptor(ours)
	if err != nil {
		return errors.Join(err, sandbox.Wait())
	}
	device, err := device.Adopt([]int{tun}, offload.All)
	if err != nil {
		return err
	}
	underlay, err := underlay.Adopt([]underlay.Sockets{sockets}, offload.All)
	if err != nil {
		return err
	}
	r, err := New(device, underlay, vtepConfig(1))
	if err != nil {
		return err
	}
	if err := r.ReplacePeers([]Peer{vtepPeer(2)}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	if _, err := ours.Write([]byte("go")); err != nil {
		return err
	}
	err = sandbox.Wait()
	s := r.Stats()
	fmt.Printf("device %s with %s, carried %d and %d packets\n", device.Name(), r.Offloads(), s.TxPackets, s.RxPackets)
	return errors.Join(err, r.Close(), <-ended)
}

// startSandbox makes a user namespace with the caller as its root, and a network
// namespace in it.
func startSandbox() (*exec.Cmd, *net.UnixConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "sandbox"), os.NewFile(uintptr(pair[1]), "runtime")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, nil, err
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleVariable+"=sandbox")
	c.ExtraFiles = []*os.File{theirs}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := c.Start(); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return c, conn.(*net.UnixConn), nil
}

// receiveDescriptor is the receiving end of SCM_RIGHTS (unix(7)).
func receiveDescriptor(c *net.UnixConn) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return -1, errors.Join(err, io.ErrUnexpectedEOF)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// playSandbox makes the device, gives its queue away and talks to the peer.
func playSandbox(plan partPlan) error {
	fd, err := testhost.AttachTUN(plan.TUN, "overlay0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if err != nil {
		return err
	}
	if err := link.Configure("overlay0", vtepLink(1)); err != nil {
		return err
	}
	if err := unix.Sendmsg(sandboxSocket, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if _, err := unix.Read(sandboxSocket, make([]byte, 8)); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp4", plan.Target, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("a sandbox's own words; "), plan.Bytes/23)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("the echo differs")
	}
	return <-wrote
}

// tunNode is a TUN device node that everybody may open, as udev makes it.
func tunNode(t *testing.T) string {
	t.Helper()
	if info, err := os.Stat(testhost.TUNPath); err == nil && info.Mode().Perm()&0o006 == 0o006 {
		return testhost.TUNPath
	}
	// Not t.TempDir, which lies where nobody else gets in.
	dir, err := os.MkdirTemp("", "uvxlan-tun-") //nolint:usetesting // see above
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, os.RemoveAll(dir)) })
	testhost.Must(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "tun")
	testhost.Must(t, unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
	testhost.Must(t, os.Chmod(path, 0o666))
	return path
}

// The device is in a sandbox that an unprivileged user has made, the sockets are
// that user's, outside of it, and the peer is a privileged router on another host.
func TestIntegrationRootlessSandbox(t *testing.T) {
	host, peer := testhost.New(t), &vtep{Host: testhost.New(t), n: 2}
	testhost.Join(host, peer.Host, "eth0", "10.66.0")
	peer.start(1, onlink.Off, vtepPeer(1))
	l := testhost.Inside(peer.Host, func() (net.Listener, error) { return net.Listen("tcp4", "10.99.2.1:0") })
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	plan := planOf(t, partPlan{TUN: tunNode(t), Target: l.Addr().String(), Bytes: 16 << 20})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c, out := part(ctx, "runtime", plan)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	testhost.Inside(host, func() (struct{}, error) { return struct{}{}, c.Start() })
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	t.Log(strings.TrimSpace(out.String()))
	if s := peer.router.Stats(); s.RxPackets == 0 || s.Dropped() > 0 {
		t.Errorf("the peer's counters: %+v", s)
	}
}
