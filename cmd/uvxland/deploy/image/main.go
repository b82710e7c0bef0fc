// Image packs static programs into a container image from scratch, without a
// registry and without a container runtime.
//
// The archive is an OCI image layout (OCI Image Format, image-layout.md) in a tar
// file, as `ctr images import`, `podman load` and `skopeo copy oci-archive:` read it.
// An archive of one architecture has a manifest.json as well, by which `docker load`
// finds its way. The same programs, tag and date make the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// bin is where the programs are in the image.
const bin = "/usr/bin"

// options are what the command line says.
type options struct {
	out        string    // the archive
	name       string    // of the image, with its tag
	created    time.Time // how old the image and all its files say they are
	entrypoint []string  // the program that runs, and its arguments
	license    string    // a file
	platforms  []platform
}

// platform is an architecture and the folder of its programs.
type platform struct{ arch, dir string }

func main() {
	o, err := parse(os.Args[1:])
	if err == nil {
		err = o.write()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.StringVar(&o.out, "o", "", "`file` to write")
	f.StringVar(&o.name, "name", "localhost/uvxlan:latest", "`name` of the image, with its tag")
	entrypoint := f.String("entrypoint", "uvxland", "`program` that the image runs, and its arguments")
	f.StringVar(&o.license, "license", "", "`file` of the license")
	seconds := f.Int64("time", 0, "`seconds` since 1970 of all times in the image")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.entrypoint = strings.Fields(*entrypoint)
	o.created = time.Unix(*seconds, 0).UTC()
	for _, word := range f.Args() {
		arch, dir, ok := strings.Cut(word, "=")
		if !ok {
			return o, fmt.Errorf("%q is not ARCH=FOLDER", word)
		}
		o.platforms = append(o.platforms, platform{arch, dir})
	}
	if o.out == "" || len(o.platforms) == 0 || len(o.entrypoint) == 0 || !strings.Contains(path.Base(o.name), ":") {
		return o, errors.New("usage: image -o FILE -name NAME:TAG [flags] ARCH=FOLDER...")
	}
	return o, nil
}

func (o options) tag() string {
	_, tag, _ := strings.Cut(path.Base(o.name), ":")
	return tag
}

// write writes the archive, all or nothing.
func (o options) write() (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(o.out), ".image")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root := filepath.Join(dir, "layout")
	if err := o.layout(root); err != nil {
		return err
	}
	archive := filepath.Join(dir, "archive")
	if err := o.pack(archive, root); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	return os.Rename(archive, o.out)
}

// layout writes the image as files below root.
func (o options) layout(root string) error {
	var images []mutate.IndexAddendum
	var docker []dockerImage
	for _, p := range o.platforms {
		image, err := o.image(p)
		if err != nil {
			return fmt.Errorf("image for %s: %w", p.arch, err)
		}
		images = append(images, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: p.arch},
		}})
		manifest, err := image.Manifest()
		if err != nil {
			return err
		}
		d := dockerImage{Config: blob(manifest.Config.Digest), RepoTags: []string{o.name}}
		for _, l := range manifest.Layers {
			d.Layers = append(d.Layers, blob(l.Digest))
		}
		docker = append(docker, d)
	}
	// containerd takes the name from its own annotation, others the tag from OCI's.
	names := map[string]string{"io.containerd.image.name": o.name, "org.opencontainers.image.ref.name": o.tag()}
	top := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	if len(images) > 1 {
		all := mutate.AppendManifests(top, images...)
		images, docker = []mutate.IndexAddendum{{Add: all}}, nil
	}
	images[0].Annotations = names
	if _, err := layout.Write(root, mutate.AppendManifests(top, images...)); err != nil {
		return err
	}
	if docker == nil {
		return nil
	}
	text, err := json.Marshal(docker)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "manifest.json"), text, 0o644)
}

// dockerImage is an entry of the manifest.json of docker save.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// blob is where a layout has a blob.
func blob(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// image is that of one platform.
func (o options) image(p platform) (v1.Image, error) {
	content, err := o.layer(p.dir)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: p.arch, Created: v1.Time{Time: o.created},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: append([]string{path.Join(bin, o.entrypoint[0])}, o.entrypoint[1:]...),
			Env:        []string{"PATH=" + bin},
			Labels: map[string]string{
				"org.opencontainers.image.title":    o.entrypoint[0],
				"org.opencontainers.image.version":  o.tag(),
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "make image"},
	})
}

// layer is the root filesystem: the programs of a folder, and the license.
func (o options) layer(dir string) ([]byte, error) {
	programs, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := writer{tar.NewWriter(&out), o.created}
	found := false
	for _, d := range []string{"usr/", "usr/bin/"} {
		err = errors.Join(err, w.add(d, 0o755, nil))
	}
	for _, p := range programs {
		text, readErr := os.ReadFile(filepath.Join(dir, p.Name()))
		err = errors.Join(err, readErr, w.add(path.Join(bin, p.Name())[1:], 0o755, text))
		found = found || p.Name() == o.entrypoint[0]
	}
	if !found {
		err = errors.Join(err, fmt.Errorf("%s has no %s", dir, o.entrypoint[0]))
	}
	if o.license != "" {
		text, readErr := os.ReadFile(o.license)
		err = errors.Join(err, readErr, w.add("LICENSE", 0o644, text))
	}
	return out.Bytes(), errors.Join(err, w.Close())
}

// pack puts the files below root into a tar file.
func (o options) pack(archive, root string) error {
	f, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	w := writer{tar.NewWriter(f), o.created}
	// In the order of their names.
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		inside := strings.TrimPrefix(name, root+"/")
		if d.IsDir() {
			return w.add(inside+"/", 0o755, nil)
		}
		text, err := os.ReadFile(name)
		return errors.Join(err, w.add(inside, 0o644, text))
	})
	return errors.Join(err, w.Close(), f.Close())
}

// writer writes a tar file whose content all has one age.
type writer struct {
	*tar.Writer
	time time.Time
}

// add adds a file, or a folder whose name ends in a slash.
func (w writer) add(name string, mode int64, content []byte) error {
	h := &tar.Header{Name: name, Mode: mode, Size: int64(len(content)), ModTime: w.time, Typeflag: tar.TypeReg}
	if strings.HasSuffix(name, "/") {
		h.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
