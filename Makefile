# uvxlan: `make demo` shows it, `make test` tests it. The targets install what
# they need with apt when they may, and say what is missing when they may not.

GO       ?= go
BIN      ?= bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X uvxlan/cmd/internal/version.Version=$(VERSION)
LINT     := $(GO) tool -modfile=.ci/tools.mod golangci-lint
FUZZTIME ?= 30s

# Where the programs of Kubernetes are that tests run: see kube-tools.
KUBEBIN ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/uvxlan/kube

.PHONY: all build demo picture test vet lint unit integration integration-lab integration-others fuzz soak chaos reloads bench bench-quick scale image kube kube-tools generate install dist programs package help tools clean

all: build

## help: this list
help:
	@sed -n 's/^## \([^:]*\): \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r name text; do printf '  %-9s %s\n' "$$name" "$$text"; done

## build: static binaries for this machine, in $(BIN)
build: $(BIN)/uvxland $(BIN)/uvxlan

$(BIN)/%: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

# What make install installs: this machine's programs, or for make dist another's.
PROGRAMS ?= $(BIN)
PREFIX   ?= /usr/local
DEPLOY   := cmd/uvxland/deploy
into     := $(DESTDIR)$(PREFIX)
# Installed at the places where their links to each other lead.
MANUALS  := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md cmd/uvxland/README.md cmd/uvxlan/README.md bench/README.md bench/demo/demo.svg

## install: programs, manual, completions, systemd unit below PREFIX (/usr/local), in DESTDIR
install: build
	install -d $(into)/bin $(into)/lib/systemd/system $(into)/share/man/man8 $(into)/share/bash-completion/completions \
	  $(into)/share/zsh/site-functions $(into)/share/fish/vendor_completions.d $(into)/share/doc/uvxlan/examples $(DESTDIR)/etc/uvxlan
	install -m 755 $(PROGRAMS)/uvxland $(PROGRAMS)/uvxlan $(DEPLOY)/docker/mk-docker-opts.sh $(into)/bin
	for program in uvxland uvxlan; do \
	  $(BIN)/$$program man >$(into)/share/man/man8/$$program.8 && gzip -9nf $(into)/share/man/man8/$$program.8 || exit 1; \
	done
	for program in uvxland uvxlan; do \
	  $(BIN)/$$program completion bash >$(into)/share/bash-completion/completions/$$program && \
	  $(BIN)/$$program completion zsh >$(into)/share/zsh/site-functions/_$$program && \
	  $(BIN)/$$program completion fish >$(into)/share/fish/vendor_completions.d/$$program.fish || exit 1; \
	done
	sed 's|/usr/bin/|$(PREFIX)/bin/|' $(DEPLOY)/systemd/uvxland.service >$(into)/lib/systemd/system/uvxland.service
	sed 's|/usr/bin/|$(PREFIX)/bin/|' $(DEPLOY)/systemd/docker.conf >$(into)/share/doc/uvxlan/examples/docker.conf
	sed 's|/usr/bin/|$(PREFIX)/bin/|' $(DEPLOY)/supervisord/uvxland.conf >$(into)/share/doc/uvxlan/examples/supervisord.conf
	install -m 644 $(DEPLOY)/prometheus/prometheus.yml $(DEPLOY)/prometheus/alerts.yml $(into)/share/doc/uvxlan/examples
	install -m 644 $(DEPLOY)/grafana/uvxlan.json $(into)/share/doc/uvxlan/examples/grafana.json
	install -m 644 LICENSE $(into)/share/doc/uvxlan
	for manual in $(MANUALS); do install -D -m 644 $$manual $(into)/share/doc/uvxlan/$$manual || exit 1; done
	[ -e $(DESTDIR)/etc/uvxlan/uvxland.env ] || install -m 644 $(DEPLOY)/systemd/uvxland.env $(DESTDIR)/etc/uvxlan

# A version that sorts as dpkg and rpm do: v1.2-rc1-3-gabc is 1.2~rc1+3.gabc, and what
# has no tag sorts before all that have one.
PKGVERSION = $(shell echo '$(VERSION)' | sed -E 's/^v([0-9])/\1/; s/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-dirty/+dirty/; s/-/~/g; /^[0-9]+\./!s/^/0~git$(COMMITDATE)./')
COMMITDATE = $(shell git log -1 --format=%cd --date=format:%Y%m%d%H%M%S 2>/dev/null)
DIST      ?= dist
ARCHES    ?= amd64 arm64
DISTTOOL  := $(GO) tool -modfile=.ci/dist.mod

## dist: tarballs, debs, rpms and SBOMs for ARCHES (amd64 arm64), with SHA256SUMS, in DIST (dist)
dist: build
	rm -rf $(DIST)
	for arch in $(ARCHES); do $(MAKE) --no-print-directory package ARCH=$$arch || exit 1; done
	cd $(DIST) && rm -rf stage && sha256sum * >SHA256SUMS

programs:
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/stage/programs-$(ARCH)/ ./cmd/...

# All files are as old as the commit, so that the same commit makes the same packages.
package: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
package: export STAGE = $(DIST)/stage/$(ARCH)
package: export ARCH := $(ARCH)
package: export PKGVERSION := $(PKGVERSION)
package: tarball = uvxlan-$(PKGVERSION)-linux-$(ARCH)
package: programs
	$(MAKE) --no-print-directory install PROGRAMS=$(DIST)/stage/programs-$(ARCH) PREFIX=/usr DESTDIR=$(STAGE)
	$(MAKE) --no-print-directory install PROGRAMS=$(DIST)/stage/programs-$(ARCH) PREFIX=/usr/local DESTDIR=$(STAGE)-tar
	find $(STAGE) $(STAGE)-tar -exec touch -h -d @$(SOURCE_DATE_EPOCH) {} +
	mv $(STAGE)-tar/etc/uvxlan/uvxland.env $(STAGE)-tar/usr/local/share/doc/uvxlan/examples
	tar -C $(STAGE)-tar/usr/local --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) \
	  --transform 's|^\.|$(tarball)|' -cf - . | gzip -9n >$(DIST)/$(tarball).tar.gz
	for kind in deb rpm; do $(DISTTOOL) nfpm package -f $(DEPLOY)/packaging/nfpm.yaml -p $$kind -t $(DIST) || exit 1; done
	for program in uvxland uvxlan; do \
	  $(DISTTOOL) cyclonedx-gomod bin -json -noserial -std -version '$(VERSION)' \
	    -output $(DIST)/$$program-$(PKGVERSION)-linux-$(ARCH).cdx.json $(DIST)/stage/programs-$(ARCH)/$$program || exit 1; \
	done

IMAGE     ?= localhost/uvxlan:$(VERSION)
IMAGETOOL := $(GO) run -C $(DEPLOY)/image .

## image: container images as files, for ARCHES (amd64 arm64) and for all of them, in DIST (dist)
image: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image: pack = $(IMAGETOOL) -name $(IMAGE) -time $(SOURCE_DATE_EPOCH) -license $(abspath LICENSE) -o $(abspath $(DIST))/uvxlan-$(PKGVERSION)
image:
	for arch in $(ARCHES); do $(MAKE) --no-print-directory programs ARCH=$$arch || exit 1; done
	for arch in $(ARCHES); do \
	  $(pack)-linux-$$arch.image.tar $$arch=$(abspath $(DIST))/stage/programs-$$arch || exit 1; \
	done
	$(pack).oci.tar $(foreach arch,$(ARCHES),$(arch)=$(abspath $(DIST))/stage/programs-$(arch))
	rm -rf $(DIST)/stage

## demo: three hosts on this machine, joined by uvxlan (needs root)
demo: $(BIN)/uvxland $(BIN)/uvxlan tools
	$(GO) build -o $(BIN)/uvxlan-demo ./bench/demo
	$(BIN)/uvxlan-demo -uvxland $(BIN)/uvxland $(DEMOFLAGS)

## picture: the README's picture of make demo, anew (needs root)
picture: $(BIN)/uvxland tools
	script -qec '$(MAKE) -s --no-print-directory demo' /dev/null >$(BIN)/demo.typescript
	$(GO) run ./bench/demo/picture -prompt 'make demo' <$(BIN)/demo.typescript >$(BIN)/demo.svg
	mv $(BIN)/demo.svg bench/demo/demo.svg

## test: everything CI runs; integration tests need root
test: tools vet lint unit integration

vet:
	$(GO) vet ./...

lint:
	$(LINT) run ./...

# Once more for what speaks to etcd, with the machine's: Debian's is 3.4, the
# embedded one is newer. CI asks a real kube-apiserver, too; elsewhere that is done
# where make kube-tools has built one.
unit: tools $(if $(CI),$(KUBEBIN)/kube-apiserver)
	UVXLAN_TEST_KUBE_APISERVER=$(or $(wildcard $(KUBEBIN)/kube-apiserver),$(if $(CI),$(KUBEBIN)/kube-apiserver)) \
	  $(GO) test -race -skip '^TestIntegration' $$($(GO) list ./... | grep -v /bench/e2e)
	UVXLAN_TEST_ETCD=etcd $(GO) test -count=1 ./lease ./lease/etcd
	$(GO) test -C $(DEPLOY)/image -race .

# Integration tests mostly wait. The lab is one to a machine, so its packages take
# turns, and the others run beside them: those that have integration tests, since
# linking more would take turns too. Those of bench/e2e take the programs from $(BIN).
# Those where it matters who carries packets run twice: as users have it, by the fast
# path where it can be, and by the workers alone.
integration: $(BIN)/uvxland $(BIN)/uvxlan tools
	$(MAKE) --no-print-directory -j2 integration-lab integration-others

INTEGRATION = UVXLAN_TEST_BIN=$(abspath $(BIN)) $(GO) test -p 1 -count=1 -timeout 12m -run '^TestIntegration'
PACKAGESIN  = $$(grep -rl --include='*_test.go' '^func TestIntegration' $(1) | xargs -n 1 dirname | sort -u)

integration-lab:
	$(INTEGRATION) $(call PACKAGESIN,./bench)
	UVXLAN_TEST_FASTPATH=off $(INTEGRATION) $(addprefix ./bench/e2e/,datapath direct flannel handover)

integration-others:
	$(INTEGRATION) $(call PACKAGESIN,$(addprefix ./,$(filter-out bench/ bin/ dist/,$(wildcard */))))

## generate: the fast path's BPF object anew (needs clang)
generate:
	@$(MAKE) --no-print-directory tools TOOLS='clang:clang llvm-strip:llvm /usr/include/bpf/bpf_helpers.h:libbpf-dev /usr/include/linux/bpf.h:linux-libc-dev'
	$(GO) generate ./tunnel/internal/tcprog

## fuzz: every fuzz target for FUZZTIME each
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; \
	done

## soak: checked transfers on 16 flows for SOAKTIME
SOAKTIME ?= 10m
soak: tools
	UVXLAN_SOAK=$(SOAKTIME) $(GO) test -count=1 -v -timeout 2h -run '^TestIntegrationSoak$$' ./bench/e2e/datapath/

## chaos: CHAOS kills of daemons at random moments under load, and of etcd
CHAOS ?= 100
chaos: tools
	UVXLAN_CHAOS=$(CHAOS) $(GO) test -count=1 -v -timeout 2h -run '^TestIntegrationChaos$$' ./bench/e2e/restart/

## reloads: RELOADS handovers of each model under numbered packets, none lost
RELOADS ?= 200
reloads: tools
	UVXLAN_RELOADS=$(RELOADS) $(GO) test -count=1 -v -timeout 2h -run '^TestIntegrationReloadLosesNothing$$' ./bench/e2e/handover/

## bench: uvxlan against kernel VXLAN and others, in one run
bench: $(BIN)/uvxland tools
	$(GO) run ./bench -uvxland $(BIN)/uvxland $(BENCHFLAGS)

bench-quick: $(BIN)/uvxland tools
	$(GO) run ./bench -quick -uvxland $(BIN)/uvxland $(BENCHFLAGS)

## scale: 10,000 and 100,000 leases, 5,000 nodes of Kubernetes: start, latency, changes under traffic, memory
scale: $(BIN)/uvxland tools
	$(GO) run ./bench -scale all -uvxland $(BIN)/uvxland $(SCALEFLAGS)

## kube: uvxlan in a real cluster of two nodes, beside flannel too, under numbered pings
kube: $(BIN)/uvxland $(BIN)/uvxlan tools kube-tools
	@$(MAKE) --no-print-directory tools TOOLS='containerd:containerd runc:runc nsenter:util-linux unshare:util-linux'
	UVXLAN_KUBE=$(KUBEBIN) UVXLAN_TEST_BIN=$(abspath $(BIN)) $(GO) test -count=1 -v -timeout 1h $(KUBEFLAGS) ./bench/kube/

# Kubernetes and flannel are built from their Go modules, about 12 minutes of CPU
# time once; they outlive the work tree.
KUBETOOLS   := kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl
KUBEVERSION  = $(shell $(GO) list -modfile=.ci/kube.mod -m -f '{{.Version}}' k8s.io/kubernetes)
KUBELDFLAGS  = -X k8s.io/component-base/version.gitVersion=$(KUBEVERSION) -X k8s.io/client-go/pkg/version.gitVersion=$(KUBEVERSION)
KUBEPROGRAM := CGO_ENABLED=0 nice $(GO) build -trimpath

## kube-tools: a cluster's programs and flanneld, in KUBEBIN (~/.cache/uvxlan/kube)
kube-tools: $(addprefix $(KUBEBIN)/,$(KUBETOOLS) flanneld)

$(addprefix $(KUBEBIN)/,$(KUBETOOLS)): $(KUBEBIN)/%: .ci/kube.mod .ci/kube.sum
	$(KUBEPROGRAM) -ldflags '-s -w $(KUBELDFLAGS)' -modfile=.ci/kube.mod -o $@ k8s.io/kubernetes/cmd/$*

# Without two of its backends: one's library isn't on the module proxy, the other's is C.
$(KUBEBIN)/flanneld: .ci/flannel.mod .ci/flannel.sum
	rm -rf $@.src
	cp -r "$$($(GO) mod download -modfile=.ci/flannel.mod -json github.com/flannel-io/flannel | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" $@.src
	chmod -R u+w $@.src
	sed -i '/backend.tencentvpc\|backend.udp/d' $@.src/main.go
	cd $@.src && $(KUBEPROGRAM) -ldflags '-s -w' -o $@ .
	rm -rf $@.src

# What the tests and the demo run beside our own binaries. Services that come
# with them are not to start by themselves: policy-rc.d tells the packages so.
TOOLS := iperf3:iperf3 tcpdump:tcpdump ip:iproute2 setpriv:util-linux iptables:iptables nft:nftables etcd:etcd-server etcdctl:etcd-client supervisord:supervisor \
  dockerd:docker.io dpkg:dpkg rpm:rpm systemd-analyze:systemd groff:groff-base promtool:prometheus busybox:busybox-static runc:runc /usr/lib/cni/bridge:containernetworking-plugins
tools:
	@missing=; for t in $(TOOLS); do \
	  command -v $${t%%:*} >/dev/null 2>&1 || [ -e $${t%%:*} ] || missing="$$missing $${t##*:}"; \
	done; [ -z "$$missing" ] || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "installing$$missing"; \
	    policy=/usr/sbin/policy-rc.d; \
	    [ -e $$policy ] || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; }; \
	    { apt-get install -qy --no-install-recommends $$missing || { apt-get update -q && apt-get install -qy --no-install-recommends $$missing; }; } >/tmp/uvxlan-apt.log 2>&1 || { tail -n 5 /tmp/uvxlan-apt.log; exit 1; }; \
	  else echo "missing:$$missing (install them with your package manager)" >&2; exit 1; fi; }

clean:
	rm -rf $(BIN) $(DIST) bench/out

FORCE:
