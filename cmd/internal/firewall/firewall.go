package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of [Firewall.Probe], which say that a host can't have rules this way.
var (
	// ErrNoIPTables says that there is no iptables command, or that it has no
	// tables in this kernel: install it, or use nftables.
	ErrNoIPTables = errors.New("iptables can't be used")
	// ErrNoNFTables says that the kernel has no nftables, or not what the rules
	// need: load the modules, or use iptables.
	ErrNoNFTables = errors.New("nftables can't be used")
)

// Config says how rules are written.
type Config struct {
	// NFTables writes them into nftables' own tables, otherwise the iptables
	// command does it.
	NFTables bool
	// Policy says which rules there are to be. Its Subnet doesn't count before
	// the host has one: [Firewall.Part] is told it.
	Policy Policy
	// Before is the policy of an earlier run, whose rules are removed where they
	// aren't wanted; the zero Policy if there is none. A Policy without a Network
	// only removes those.
	Before Policy
	// Resync is the time after which the rules are looked at again, whatever
	// the kernel reports; 0 means the default of [host.Part].
	Resync time.Duration
}

// Firewall is the rules of one address family. One goroutine at a time uses it.
type Firewall struct {
	config Config
}

// New returns the rules that c describes. The host has none of them yet.
func New(c Config) *Firewall { return &Firewall{c} }

// Family is that of the policy's Network, or else of that before.
func (f *Firewall) Family() Family {
	if n := f.config.Policy.Network; n.IsValid() {
		return FamilyOf(n)
	}
	return FamilyOf(f.config.Before.Network)
}

// backend is one way to write rules.
type backend interface {
	// probe finds out whether the kernel takes the chains' rules.
	probe([]chain) error
	// differing are those of the chains that aren't as wanted.
	differing([]chain) ([]purpose, error)
	// apply makes the chains as wanted, each whole or not at all.
	apply(context.Context, []chain) error
	// leftover tells of all that can be ours, and removes it if remove is set.
	leftover(_ context.Context, remove bool) (found []string, err error)
	// forget tells of the rules that the chains have had, none of which is
	// wanted, and removes them if remove is set.
	forget(_ context.Context, chains []chain, remove bool) (found []string, err error)
}

// Probe finds out whether the host can have the rules, and puts none. Its error is
// something that doesn't pass by itself: [ErrNoIPTables], [ErrNoNFTables], or a
// permission that is missing.
func (f *Firewall) Probe() error {
	b, err := open(f.config.NFTables, f.Family())
	if err == nil {
		err = b.probe(chains(f.config.Policy, Policy{}))
	}
	if unavailable(err) || errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

func open(nft bool, f Family) (backend, error) {
	if nft {
		return openNFTables(f)
	}
	return openIPTables(f)
}

func unavailable(err error) bool {
	return errors.Is(err, ErrNoIPTables) || errors.Is(err, ErrNoNFTables)
}

// Leftover tells of the rules of the policies, in either way, whatever else they
// say; without any policy, of all that a daemon may have put on the host: our
// chains in iptables and our tables in nftables, of both families.
func Leftover(of ...Policy) ([]string, error) { return leftover(of, false) }

// Remove removes what [Leftover] tells of, and returns what it removed.
func Remove(of ...Policy) ([]string, error) { return leftover(of, true) }

func leftover(of []Policy, remove bool) (all []string, err error) {
	var errs []error
	for _, nft := range []bool{false, true} {
		for _, family := range []Family{IPv4, IPv6} {
			found, err := leftoverOf(nft, family, of, remove)
			if err != nil && !unavailable(err) {
				errs = append(errs, fmt.Errorf("remove firewall rules: %w", err))
				continue
			}
			all = append(all, found...)
		}
	}
	return all, errors.Join(errs...)
}

func leftoverOf(nft bool, family Family, of []Policy, remove bool) ([]string, error) {
	b, err := open(nft, family)
	if err != nil {
		return nil, err
	}
	if len(of) == 0 {
		return b.leftover(context.Background(), remove)
	}
	other := func(p Policy) bool { return FamilyOf(p.Network) != family }
	if of = slices.DeleteFunc(slices.Clone(of), other); len(of) == 0 {
		return nil, nil
	}
	return b.forget(context.Background(), chains(Policy{}, of...), remove)
}
