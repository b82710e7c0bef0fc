package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"uvxlan/bench/lab"
)

// image is the name of the one image that an engine has.
const image = "uvxlan-lab"

const (
	// www is what a container serves.
	www = "/www"
	// whoAmI answers with the address that a request came from.
	whoAmI       = "cgi-bin/whoami"
	whoAmIScript = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' \"$REMOTE_ADDR\"\n"
)

// applets are the commands that busybox is asked for.
var applets = []string{"sh", "dd", "httpd", "ip", "ping", "sha256sum", "wget"}

// load makes the image out of the machine's busybox and iperf3.
func (e *Engine) load(ctx context.Context) error {
	root, err := rootFilesystem(ctx)
	if err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	cmd := e.prepare(exec.CommandContext(ctx, "docker", "import", "-", image))
	cmd.Stdin = bytes.NewReader(root)
	_, err = output(cmd)
	return err
}

// rootFilesystem is the image's, as tar.
func rootFilesystem(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	a := archive{tar.NewWriter(&out)}
	err := errors.Join(a.programs(ctx, "busybox", "iperf3"),
		a.add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil),
		a.add(tar.Header{Name: www[1:] + "/" + whoAmI, Mode: 0o755}, []byte(whoAmIScript)))
	for _, name := range applets {
		err = errors.Join(err, a.add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil))
	}
	return out.Bytes(), errors.Join(err, a.Close())
}

// archive is a filesystem that is being written.
type archive struct{ *tar.Writer }

// programs adds programs of the machine's with the libraries that they need.
func (a archive) programs(ctx context.Context, names ...string) (err error) {
	dir, err := os.MkdirTemp("", "uvxlan-image")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := lab.CopyPrograms(ctx, dir, names...); err != nil {
		return err
	}
	return a.AddFS(os.DirFS(dir))
}

func (a archive) add(h tar.Header, content []byte) error {
	h.Size = int64(len(content))
	if err := a.WriteHeader(&h); err != nil {
		return err
	}
	_, err := a.Write(content)
	return err
}
