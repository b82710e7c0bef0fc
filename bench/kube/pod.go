package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"uvxlan/bench/lab"
)

// requestTimeout bounds one HTTP request.
const requestTimeout = 2 * time.Second

// Pod is a running pod.
type Pod struct {
	Name    string
	Node    *Node
	Address netip.Addr

	pid int // of its container
}

// Pod is created on a node: a web server that tells its own name, on port 80 and, if
// hostPort isn't 0, on that port of the node.
func (n *Node) Pod(ctx context.Context, name string, hostPort int) (*Pod, error) {
	port := map[string]int{"containerPort": 80}
	if hostPort > 0 {
		port["hostPort"] = hostPort
	}
	type object = map[string]any
	text, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": name, "labels": map[string]string{"app": name}},
		"spec": object{
			"nodeSelector": map[string]string{"kubernetes.io/hostname": n.Name}, "terminationGracePeriodSeconds": 0,
			"automountServiceAccountToken": false, "enableServiceLinks": false,
			"containers": []object{{
				// The kubelet gives each pod a file with its name.
				"name": "web", "image": BusyboxImage, "command": []string{"busybox", "httpd", "-f", "-p", "80", "-h", "/etc"},
				"ports": []any{port},
			}},
		},
	})
	if err != nil {
		return nil, err
	}
	c := n.cluster
	if err := c.Apply(ctx, string(text)); err != nil {
		return nil, err
	}
	p := &Pod{Name: name, Node: n}
	return p, Await(ctx, func() error { return p.find(ctx) })
}

// find reads where the pod is, once it runs.
func (p *Pod) find(ctx context.Context) error {
	said, err := p.Node.cluster.Kubectl(ctx, "get", "pod", p.Name, "-o",
		"jsonpath={.status.phase} {.status.podIP} {.status.containerStatuses[0].containerID}")
	if err != nil {
		return err
	}
	words := strings.Fields(said)
	if len(words) != 3 || words[0] != "Running" {
		return fmt.Errorf("pod %s is %q", p.Name, said)
	}
	if p.Address, err = netip.ParseAddr(words[1]); err != nil {
		return err
	}
	p.pid, err = p.Node.processOf(ctx, strings.TrimPrefix(words[2], "containerd://"))
	return err
}

// processOf is the first process of a container.
func (n *Node) processOf(ctx context.Context, container string) (int, error) {
	tasks, err := n.Ctr(ctx, "tasks", "list")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(tasks) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == container {
			return strconv.Atoi(words[1])
		}
	}
	return 0, fmt.Errorf("container %s doesn't run on %s", container, n.Name)
}

// Namespace is the path of the pod's network namespace.
func (p *Pod) Namespace() string { return fmt.Sprintf("/proc/%d/ns/net", p.pid) }

// Delete ends the pod.
func (p *Pod) Delete(ctx context.Context) error {
	_, err := p.Node.cluster.Kubectl(ctx, "delete", "pod", p.Name, "--now", "--ignore-not-found")
	return err
}

// Ask asks the web server at an address from inside a network namespace, such as
// [Pod.Namespace] or that of a node, and returns the name of the pod that answered.
func Ask(ctx context.Context, namespace string, at netip.AddrPort) (pod string, err error) {
	client := http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = lab.Inside(namespace, func() (err error) {
				var d net.Dialer
				c, err = d.DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/hostname", nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return strings.TrimSpace(string(text)), err
}

// Expose makes a service of a pod's port and returns its address.
func (p *Pod) Expose(ctx context.Context) (netip.AddrPort, error) {
	c := p.Node.cluster
	if _, err := c.Kubectl(ctx, "expose", "pod", p.Name, "--port=80"); err != nil {
		return netip.AddrPort{}, err
	}
	said, err := c.Kubectl(ctx, "get", "service", p.Name, "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return netip.AddrPort{}, err
	}
	address, err := netip.ParseAddr(said)
	return netip.AddrPortFrom(address, 80), err
}
