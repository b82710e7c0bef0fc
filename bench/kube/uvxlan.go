package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// uvxlanImage is the image of the manifests, under a tag of its own.
	uvxlanImage, uvxlanTag = "localhost/uvxlan", "lab"
	// manifests is the folder of the project's manifests, from this one.
	manifests = "../../cmd/uvxland/deploy/kubernetes"
	// namespace is uvxlan's.
	namespace = "uvxlan"
)

// LoadUvxlan gives the nodes an image of the programs of a folder.
func (c *Cluster) LoadUvxlan(ctx context.Context, programs string) error {
	stage, archive := c.path("images", "uvxlan"), c.path("images", "uvxlan.tar")
	err := os.MkdirAll(stage, 0o755)
	for _, name := range []string{"uvxland", "uvxlan"} {
		err = errors.Join(err, os.Symlink(filepath.Join(programs, name), filepath.Join(stage, name)))
	}
	err = errors.Join(err, Pack(ctx, archive, uvxlanImage+":"+uvxlanTag, "uvxland", stage))
	for _, n := range c.Nodes {
		if err == nil {
			err = n.Import(ctx, archive)
		}
	}
	return err
}

// InstallUvxlan installs uvxlan by the project's manifests, as a kustomization of a
// user's does: with the components of those names.
func (c *Cluster) InstallUvxlan(ctx context.Context, components ...string) error {
	dir := c.path("kustomization")
	base, err := filepath.Abs(manifests)
	if err != nil {
		return err
	}
	if base, err = filepath.Rel(dir, base); err != nil {
		return err
	}
	all := []string{}
	for _, name := range components {
		all = append(all, filepath.Join(base, name))
	}
	text, err := json.Marshal(map[string]any{
		"resources": []string{base}, "components": all,
		"images": []map[string]string{{"name": uvxlanImage, "newTag": uvxlanTag}},
	})
	err = errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "kustomization.yaml"), text, 0o644))
	if err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "apply", "--validate=strict", "-k", dir)
	return err
}

// AwaitDaemon waits until a DaemonSet's pod on the node is ready, and no other of that
// set is there.
func (n *Node) AwaitDaemon(ctx context.Context, namespace, app string) error {
	return Await(ctx, func() error {
		said, err := n.cluster.Kubectl(ctx, "-n", namespace, "get", "pods", "-l", "app="+app, "--field-selector=spec.nodeName="+n.Name,
			"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}`)
		if words := strings.Fields(said); err == nil && (len(words) != 2 || words[1] != "True") {
			err = fmt.Errorf("pods of %s on %s: %q", app, n.Name, said)
		}
		return err
	})
}

// KillDaemon kills uvxland on the node, as the kernel does when memory runs out.
func (n *Node) KillDaemon(ctx context.Context) error {
	tasks, err := n.Ctr(ctx, "containers", "list")
	if err != nil {
		return err
	}
	for line := range strings.Lines(tasks) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.HasPrefix(words[1], uvxlanImage) {
			continue
		}
		pid, err := n.processOf(ctx, words[0])
		if err == nil {
			return os.NewSyscallError("kill", unix.Kill(pid, unix.SIGKILL))
		}
	}
	return fmt.Errorf("uvxland doesn't run on %s", n.Name)
}

// Uvxlan runs the operator's command in the node's newest uvxlan pod.
func (n *Node) Uvxlan(ctx context.Context, args ...string) (string, error) {
	pod, err := n.cluster.Kubectl(ctx, "-n", namespace, "get", "pods", "-l", "app=uvxlan", "--field-selector=status.phase=Running,spec.nodeName="+n.Name,
		"--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[-1:].metadata.name}")
	if err != nil {
		return "", err
	}
	return n.cluster.Kubectl(ctx, append([]string{"-n", namespace, "exec", pod, "--", "/usr/bin/uvxlan"}, args...)...)
}
