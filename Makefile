# uvxlan: `make demo` shows it, `make test` tests it. The targets install what
# they need with apt when they may, and say what is missing when they may not.

GO       ?= go
BIN      ?= bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X uvxlan/cmd/internal/version.Version=$(VERSION)
LINT     := $(GO) tool -modfile=.ci/tools.mod golangci-lint
FUZZTIME ?= 30s

.PHONY: all build build-arm64 demo test vet lint unit integration fuzz soak chaos reloads bench bench-quick scale generate tools clean

all: build

## build: static binaries for linux/amd64 and linux/arm64
build: $(BIN)/uvxland $(BIN)/uvxlan build-arm64

$(BIN)/%: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

build-arm64:
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/linux-arm64/ ./cmd/...

## demo: three hosts on this machine, joined by uvxlan (needs root)
demo: $(BIN)/uvxland tools
	$(GO) build -o $(BIN)/uvxlan-demo ./bench/demo
	$(BIN)/uvxlan-demo -uvxland $(BIN)/uvxland $(DEMOFLAGS)

## test: everything CI runs; integration tests need root
test: tools vet lint unit integration

vet:
	$(GO) vet ./...

lint:
	$(LINT) run ./...

# Once more for what speaks to etcd, with the machine's: Debian's is 3.4, the
# embedded one is newer.
unit: tools
	$(GO) test -race -skip '^TestIntegration' $$($(GO) list ./... | grep -v /bench/e2e)
	UVXLAN_TEST_ETCD=etcd $(GO) test -count=1 ./lease ./lease/etcd

# The lab is one to a machine, so packages take turns: those that have integration
# tests, since linking the others would take its turn too. Those of bench/e2e take
# the programs from $(BIN). Those where it matters who carries packets run twice: as
# users have it, by the fast path where it can be, and by the workers alone.
integration: $(BIN)/uvxland $(BIN)/uvxlan tools
	UVXLAN_TEST_BIN=$(abspath $(BIN)) $(GO) test -p 1 -count=1 -timeout 12m -run '^TestIntegration' \
	  $$(grep -rl --include='*_test.go' '^func TestIntegration' . | xargs -n 1 dirname | sort -u)
	UVXLAN_TEST_BIN=$(abspath $(BIN)) UVXLAN_TEST_FASTPATH=off $(GO) test -p 1 -count=1 -timeout 12m -run '^TestIntegration' \
	  $(addprefix ./bench/e2e/,datapath direct flannel handover)

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

## scale: 10,000 and 100,000 leases: start, latency, changes under traffic, memory
scale: $(BIN)/uvxland tools
	$(GO) run ./bench -scale all -uvxland $(BIN)/uvxland $(SCALEFLAGS)

# What the tests and the demo run beside our own binaries. Services that come
# with them are not to start by themselves: policy-rc.d tells the packages so.
TOOLS := iperf3:iperf3 tcpdump:tcpdump ip:iproute2 setpriv:util-linux iptables:iptables nft:nftables etcd:etcd-server etcdctl:etcd-client \
  dockerd:docker.io busybox:busybox-static runc:runc /usr/lib/cni/bridge:containernetworking-plugins
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
	rm -rf $(BIN) bench/out

FORCE:
