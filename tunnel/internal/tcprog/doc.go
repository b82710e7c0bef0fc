// Package tcprog has the tc programs of the fast path, VXLAN for plain packets in the
// kernel, and their maps: vxlan.bpf.c says what they do. The object is compiled into
// the package for both byte orders; `make generate` makes it anew.
//
// The object is licensed under the GPL 2.0 or the two-clause BSD licence: the kernel
// keeps some of the helpers for programs of a licence compatible with its own.
package tcprog

//go:generate go tool -modfile=../../../.ci/tools.mod bpf2go -cc clang -strip llvm-strip -no-global-types -type settings -type peer -type traffic -type totals -type prefix4 -type prefix6 -target bpfel,bpfeb vxlan vxlan.bpf.c -- -O2 -g -Wall -Werror -mcpu=v2 -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate sh -c "clang -dumpversion | cut -d. -f1 >clang.version"
