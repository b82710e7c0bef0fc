package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPath is locked while a lab exists. The file stays: removing it would let
// two processes lock two files of one name.
const lockPath = "/run/uvxlan-lab.lock"

// lockInterval is how often a busy lock is tried: flock can't wait for a
// context.
const lockInterval = 50 * time.Millisecond

// acquire waits until no other lab exists on the machine. Closing the file
// releases the lock.
func acquire(ctx context.Context, log *slog.Logger) (*os.File, error) {
	f, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lab lock: %w", err)
	}
	if err := await(ctx, f, log); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the lab lock: %w", err), f.Close())
	}
	return f, nil
}

func await(ctx context.Context, f *os.File, log *slog.Logger) error {
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for tries := 0; ; tries++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return os.NewSyscallError("flock", err)
		}
		if tries == 0 {
			log.Info("waiting for another lab on this machine", "lock", lockPath)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
