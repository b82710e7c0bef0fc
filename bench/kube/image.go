package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// The images that each node has.
const (
	// BusyboxImage has busybox alone, at /usr/bin/busybox.
	BusyboxImage = "localhost/busybox:1"
	pauseImage   = "localhost/pause:1"
)

// packer is the folder of the program that packs images, from this one.
const packer = "../../cmd/uvxland/deploy/image"

// packImages writes the images into a folder and returns their archives.
func packImages(ctx context.Context, dir string) (archives []string, err error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(dir, "programs")
	err = errors.Join(os.MkdirAll(programs, 0o755), os.Symlink(busybox, filepath.Join(programs, "busybox")))
	for _, i := range []struct{ name, file, entrypoint string }{
		{BusyboxImage, "busybox.tar", "busybox"},
		{pauseImage, "pause.tar", "busybox sleep 2147483647"},
	} {
		archive := filepath.Join(dir, i.file)
		err = errors.Join(err, Pack(ctx, archive, i.name, i.entrypoint, programs))
		archives = append(archives, archive)
	}
	return archives, err
}

// Pack writes an archive of an image that has the programs of a folder, for this
// machine's architecture. The entrypoint is one of them, with its arguments. It works
// from the folder of a package of the bench.
func Pack(ctx context.Context, archive, name, entrypoint, programs string) error {
	cmd := exec.CommandContext(ctx, "go", "run", "-C", packer, ".", "-o", archive, "-name", name, "-entrypoint", entrypoint,
		runtime.GOARCH+"="+programs)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pack %s: %w: %s", name, err, out)
	}
	return nil
}
