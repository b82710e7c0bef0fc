package lab

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Programs returns the files that programs of this machine need in another root
// directory, sorted: those of the given names, found in PATH, and the shared
// libraries that they are linked with, each once. A program is to be at
// /bin/NAME there, a library where it is here.
func Programs(ctx context.Context, names ...string) ([]File, error) {
	files := map[string]File{}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("find a program: %w", err)
		}
		files["bin/"+name] = File{Path: path, Name: filepath.Join("bin", name)}
		// What it prints of a static program has no paths.
		out, _ := exec.CommandContext(ctx, "ldd", path).Output()
		for word := range strings.FieldsSeq(string(out)) {
			if library, ok := strings.CutPrefix(word, "/"); ok {
				files[library] = File{Path: word, Name: library}
			}
		}
	}
	return slices.SortedFunc(maps.Values(files), func(a, b File) int { return strings.Compare(a.Name, b.Name) }), nil
}

// File is a file to copy: where it is, and its name below the other root.
type File struct{ Path, Name string }
