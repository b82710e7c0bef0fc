package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Errors of [Open], which say that a host can't have rules this way.
var (
	// ErrNoIPTables says that there is no iptables command, or that it has no
	// tables in this kernel: install it, or use nftables.
	ErrNoIPTables = errors.New("iptables can't be used")
	// ErrNoNFTables says that the kernel has no nftables, or not what the rules
	// need: load the modules, or use iptables.
	ErrNoNFTables = errors.New("nftables can't be used")
)

// quiet is the least time between two looks at the rules, so that somebody who
// removes them in a loop doesn't keep us from everything else.
const quiet = 100 * time.Millisecond

// Config says how rules are written.
type Config struct {
	// NFTables writes them into nftables' own tables, otherwise the iptables
	// command does it.
	NFTables bool
	// Policy says which rules there are to be. Its Subnet doesn't count before
	// Apply.
	Policy Policy
	// Resync is the time after which the rules are looked at again, whatever
	// the kernel reports. It is required.
	Resync time.Duration
	// Logger is required.
	Logger *slog.Logger
}

// Firewall is the rules of one address family. One goroutine at a time uses it.
type Firewall struct {
	config  Config
	backend backend
	chains  []chain
	told    string // the last failure or obstacle that was logged
}

// backend is one way to write rules.
type backend interface {
	// probe finds out whether the kernel takes the chains' rules.
	probe([]chain) error
	// apply makes the chains as wanted, each whole or not at all.
	apply([]chain) (changed bool, err error)
	// leftover tells of all that can be ours, and removes it if remove is set.
	leftover(remove bool) (found []string, err error)
	// forget tells of the rules that the chains have had, none of which is
	// wanted, and removes them if remove is set.
	forget(chains []chain, remove bool) (found []string, err error)
}

// Open finds out whether the host can have the rules, and puts none yet. Its
// error is [ErrNoIPTables] or [ErrNoNFTables].
func Open(c Config) (*Firewall, error) {
	b, err := open(c.NFTables, FamilyOf(c.Policy.Network))
	if err != nil {
		return nil, err
	}
	f := &Firewall{config: c, backend: b}
	return f, b.probe(chains(c.Policy, Policy{}))
}

func open(nft bool, f Family) (backend, error) {
	if nft {
		return openNFTables(f)
	}
	return openIPTables(f)
}

// Apply makes the host's rules those of the policy: it puts what is missing and
// removes what is no longer wanted, also what a run with the policy before may
// have put, the zero Policy for none, and those that either has left in the
// other way of writing rules. It reports whether anything changed.
func (f *Firewall) Apply(now, before Policy) (changed bool, err error) {
	f.chains = chains(now, before)
	f.removeOther(now, before)
	return f.apply()
}

// removeOther removes the policies' rules of the other way, in which another
// network of the host may have its own. They do no more than ours, so a failure
// is only told.
func (f *Firewall) removeOther(now, before Policy) {
	other, err := open(!f.config.NFTables, FamilyOf(now.Network))
	if err != nil {
		return
	}
	found, err := other.forget(chains(Policy{}, now, before), true)
	for _, what := range found {
		f.config.Logger.Info("removed an earlier run's rules", "what", what)
	}
	if err != nil && !unavailable(err) {
		f.config.Logger.Warn("an earlier run's rules may be left", "error", err)
	}
}

func unavailable(err error) bool {
	return errors.Is(err, ErrNoIPTables) || errors.Is(err, ErrNoNFTables)
}

func (f *Firewall) apply() (changed bool, err error) {
	if changed, err = f.backend.apply(f.chains); err != nil {
		return false, fmt.Errorf("put firewall rules: %w", err)
	}
	return changed, nil
}

// Run puts back what somebody removes until ctx ends, which isn't an error:
// with nftables as soon as the kernel reports it, and in any case at the next
// resync. The rules stay.
func (f *Firewall) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	events, err := f.watch(ctx, &wg)
	if err != nil {
		return err
	}
	tick := time.NewTicker(f.config.Resync)
	defer tick.Stop()
	for {
		f.look()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(quiet):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-events:
		}
	}
}

// watch returns a channel that says that our rules may have changed, nil for
// iptables, which reports nothing.
func (f *Firewall) watch(ctx context.Context, wg *sync.WaitGroup) (<-chan struct{}, error) {
	if n, ok := f.backend.(*nfTables); ok {
		return n.watch(ctx, wg)
	}
	return nil, nil
}

// look puts back what is missing. What fails each time is told once.
func (f *Firewall) look() {
	changed, err := f.apply()
	if changed {
		f.config.Logger.Warn("somebody removed firewall rules, they are put back")
	}
	var told string
	if err != nil {
		told = err.Error()
	} else if n, ok := f.backend.(*nfTables); ok {
		told = n.obstacle(f.chains)
	}
	if told != f.told && told != "" {
		f.config.Logger.Warn("firewall rules are not in force", "reason", told)
	}
	f.told = told
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
		return b.leftover(remove)
	}
	other := func(p Policy) bool { return FamilyOf(p.Network) != family }
	if of = slices.DeleteFunc(slices.Clone(of), other); len(of) == 0 {
		return nil, nil
	}
	return b.forget(chains(Policy{}, of...), remove)
}
