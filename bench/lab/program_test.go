package lab

import (
	"os"
	"os/exec"
	"testing"
)

// Both programs are linked with the same libraries; the root has nothing else.
func TestCopiedProgramsRun(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("chroot needs root")
	}
	root := t.TempDir()
	must(t, CopyPrograms(t.Context(), root, "true", "ls"))
	for _, name := range []string{"true", "ls"} {
		if out, err := exec.CommandContext(t.Context(), "chroot", root, "/bin/"+name).CombinedOutput(); err != nil {
			t.Errorf("%s doesn't run: %v: %s", name, err, out)
		}
	}
}
