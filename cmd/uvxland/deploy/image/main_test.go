package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const (
	imageName = "localhost:5000/uvxlan:v1"
	created   = 1700000000
)

// pack makes an archive of programs that say which architecture they are for.
func pack(t *testing.T, arches ...string) (archive string) {
	t.Helper()
	dir := t.TempDir()
	archive = filepath.Join(dir, "image.tar")
	license := filepath.Join(dir, "LICENSE")
	err := os.WriteFile(license, []byte("do what you like"), 0o600)
	args := []string{"-o", archive, "-name", imageName, "-license", license, "-entrypoint", "uvxland -v=1", "-time", strconv.Itoa(created)}
	for _, arch := range arches {
		programs := filepath.Join(dir, arch)
		err = errors.Join(err, os.Mkdir(programs, 0o700))
		for _, p := range []string{"uvxlan", "uvxland"} {
			err = errors.Join(err, os.WriteFile(filepath.Join(programs, p), []byte(p+" for "+arch), 0o700))
		}
		args = append(args, arch+"="+programs)
	}
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse(args)
	if err == nil {
		err = o.write()
	}
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// unpack writes an archive's files and returns the folder.
func unpack(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var text []byte
			text, err = io.ReadAll(r)
			err = errors.Join(err, os.WriteFile(path, text, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// expectImage checks an image of one architecture.
func expectImage(t *testing.T, image v1.Image, arch string) {
	t.Helper()
	if err := validate.Image(image); err != nil {
		t.Errorf("%s: %v", arch, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != arch || !config.Created.Equal(time.Unix(created, 0)) {
		t.Errorf("the image is for %s/%s, of %s", config.OS, config.Architecture, config.Created)
	}
	if c := config.Config; !slices.Equal(c.Entrypoint, []string{"/usr/bin/uvxland", "-v=1"}) || c.Labels["org.opencontainers.image.version"] != "v1" {
		t.Errorf("the image runs %q and is %q", c.Entrypoint, c.Labels)
	}
	root := tar.NewReader(mutate.Extract(image))
	want := map[string]string{
		"usr": "", "usr/bin": "", "LICENSE": "do what you like",
		"usr/bin/uvxlan": "uvxlan for " + arch, "usr/bin/uvxland": "uvxland for " + arch,
	}
	for {
		h, err := root.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(root)
		mode := int64(0o755)
		if h.Name == "LICENSE" {
			mode = 0o644
		}
		if wanted, ok := want[h.Name]; err != nil || !ok || string(text) != wanted || h.Mode != mode || h.Uid != 0 || !h.ModTime.Equal(time.Unix(created, 0)) {
			t.Errorf("%s is %q, %+v, %v", h.Name, text, h, err)
		}
		delete(want, h.Name)
	}
	if len(want) > 0 {
		t.Errorf("the image has no %v", want)
	}
}

// An archive of one architecture is read as an OCI layout and as Docker's.
func TestOneArchitecture(t *testing.T) {
	archive := pack(t, "arm64")
	index, err := layout.ImageIndexFromPath(unpack(t, archive))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("the index is %+v, %v", manifest, err)
	}
	d := manifest.Manifests[0]
	if d.Annotations["io.containerd.image.name"] != imageName || d.Annotations["org.opencontainers.image.ref.name"] != "v1" || d.Platform.Architecture != "arm64" {
		t.Errorf("the image is named %v, for %v", d.Annotations, d.Platform)
	}
	image, err := index.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	expectImage(t, image, "arm64")
	tag, err := name.NewTag(imageName)
	if err != nil {
		t.Fatal(err)
	}
	if image, err = tarball.ImageFromPath(archive, &tag); err != nil {
		t.Fatal(err)
	}
	expectImage(t, image, "arm64")
}

// One of several has an index of its own, which a registry takes as a whole.
func TestManyArchitectures(t *testing.T) {
	index, err := layout.ImageIndexFromPath(unpack(t, pack(t, "amd64", "arm64")))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 || manifest.Manifests[0].Annotations["io.containerd.image.name"] != imageName {
		t.Fatalf("the index is %+v, %v", manifest, err)
	}
	all, err := index.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = all.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	var arches []string
	for _, d := range manifest.Manifests {
		arches = append(arches, d.Platform.Architecture)
		image, err := all.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		expectImage(t, image, d.Platform.Architecture)
	}
	if !slices.Equal(arches, []string{"amd64", "arm64"}) {
		t.Errorf("the image is for %q", arches)
	}
}

// The same programs make the same archive, whenever and wherever.
func TestReproducible(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		text, err := os.ReadFile(pack(t, "amd64", "arm64"))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = text
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of the same programs differ")
	}
}

// What can't be an image is refused, and leaves nothing.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "image.tar")
	for _, args := range [][]string{
		{"-name", imageName, "amd64=" + dir},            // no file
		{"-o", out, "-name", imageName},                 // no programs
		{"-o", out, "-name", "uvxlan", "amd64=" + dir},  // no tag
		{"-o", out, "-name", imageName, dir},            // no architecture
		{"-o", out, "-name", imageName, "amd64=" + dir}, // no uvxland in it
	} {
		o, err := parse(args)
		if err == nil {
			err = o.write()
		}
		if err == nil {
			t.Errorf("%s is taken", strings.Join(args, " "))
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}
