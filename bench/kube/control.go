package kube

import (
	"context"
	"fmt"
	"os/exec"
)

const (
	etcdURL     = "http://127.0.0.1:2379"
	etcdPeerURL = "http://127.0.0.1:2380"
	apiPort     = "6443"
)

// apiURL is where the API server is for everybody.
func (c *Cluster) apiURL() string { return "https://" + c.apiAddress() + ":" + apiPort }

// apiAddress is that of the lab's router in the nodes' network.
func (c *Cluster) apiAddress() string { return c.Lab.Hosts()[0].Gateway.String() }

// startControlPlane starts etcd and Kubernetes' own daemons, and waits until the API
// server is ready.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.issueCertificates(); err != nil {
		return err
	}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		return err
	}
	router := c.Lab.Router()
	_, err = c.launch(ctx, router, "etcd", etcd, "--name=lab", "--data-dir="+c.path("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL, "--initial-cluster=lab="+etcdPeerURL)
	if err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	a := c.authority
	_, err = c.launch(ctx, router, "controller-manager", c.program("kube-controller-manager"),
		"--kubeconfig="+a.file("controller-manager.kubeconfig"), "--leader-elect=false", "--use-service-account-credentials",
		"--allocate-node-cidrs", "--cluster-cidr="+PodNetwork, "--service-cluster-ip-range="+serviceNetwork,
		"--service-account-private-key-file="+a.file("accounts.key"), "--root-ca-file="+a.file("ca.crt"),
		"--bind-address=127.0.0.1", "--cert-dir="+c.path("controller-manager"))
	if err != nil {
		return err
	}
	_, err = c.launch(ctx, router, "scheduler", c.program("kube-scheduler"), "--kubeconfig="+a.file("scheduler.kubeconfig"),
		"--leader-elect=false", "--bind-address=127.0.0.1", "--cert-dir="+c.path("scheduler"))
	return err
}

func (c *Cluster) issueCertificates() error {
	a := c.authority
	if err := a.signingKey("accounts"); err != nil {
		return err
	}
	server := []string{"kubernetes", "kubernetes.default.svc", "localhost", "127.0.0.1", serviceAddress, c.apiAddress()}
	for _, k := range []struct {
		name, user, group string
		hosts             []string
	}{
		{"apiserver", "kube-apiserver", "servers", server},
		{"kubelet-client", "kube-apiserver-kubelet-client", "system:masters", nil},
		{"admin", "admin", "system:masters", nil},
		{"controller-manager", "system:kube-controller-manager", "", nil},
		{"scheduler", "system:kube-scheduler", "", nil},
		{"proxy", "system:kube-proxy", "", nil},
	} {
		if err := a.issue(k.name, k.user, k.group, k.hosts...); err != nil {
			return err
		}
		path, err := a.kubeconfig(k.name, c.apiURL())
		if err != nil {
			return err
		}
		if k.name == "admin" {
			c.kubeconfig = path
		}
	}
	return nil
}

// StartAPIServer starts the API server and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) (err error) {
	a := c.authority
	c.apiserver, err = c.launch(ctx, c.Lab.Router(), "apiserver", c.program("kube-apiserver"),
		"--etcd-servers="+etcdURL, "--bind-address=0.0.0.0", "--secure-port="+apiPort, "--advertise-address="+c.apiAddress(),
		"--tls-cert-file="+a.file("apiserver.crt"), "--tls-private-key-file="+a.file("apiserver.key"), "--client-ca-file="+a.file("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+a.file("accounts.pub"),
		"--service-account-signing-key-file="+a.file("accounts.key"),
		"--kubelet-client-certificate="+a.file("kubelet-client.crt"), "--kubelet-client-key="+a.file("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range="+serviceNetwork, "--allow-privileged", "--profiling=false")
	if err != nil {
		return err
	}
	err = Await(ctx, func() error {
		select {
		case <-c.apiserver.Done():
			return nil
		default:
		}
		_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
	select {
	case <-c.apiserver.Done():
		return fmt.Errorf("the API server has ended: %s", c.Tail("apiserver", 3))
	default:
		return err
	}
}

// KillAPIServer kills the API server and waits until it has ended.
func (c *Cluster) KillAPIServer() error {
	err := c.apiserver.Process.Kill()
	<-c.apiserver.Done()
	return err
}
