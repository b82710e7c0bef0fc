package firewall

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lockFile is the file that iptables-legacy locks.
func lockFile() string { return cmp.Or(os.Getenv("XTABLES_LOCKFILE"), "/run/xtables.lock") }

// errLocked says who has the lock of iptables.
func errLocked(path string) error {
	var holder string
	if pid := holderOf(path); pid != "" {
		holder = " by process " + pid
		if name, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil {
			holder = fmt.Sprintf(" by %s, process %s", strings.TrimSpace(string(name)), pid)
		}
	}
	return fmt.Errorf("the lock of iptables, %s, is held%s", path, holder)
}

// holderOf returns the process that has locked a file, "" if it isn't known. A
// process of another PID namespace has no number here.
func holderOf(path string) string {
	var of unix.Stat_t
	if unix.Stat(path, &of) != nil {
		return ""
	}
	locks, err := os.Open("/proc/locks") // proc_locks(5)
	if err != nil {
		return ""
	}
	defer locks.Close()
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(of.Dev), unix.Minor(of.Dev), of.Ino)
	for s := bufio.NewScanner(locks); s.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 2381 fe:00:9977937 0 EOF
		words := strings.Fields(s.Text())
		if len(words) >= 6 && words[1] == "FLOCK" && words[5] == file && words[4] != "-1" && words[4] != "0" {
			return words[4]
		}
	}
	return ""
}
