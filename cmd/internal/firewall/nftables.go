package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// comment marks our rules. Whatever else lies in our tables is flanneld's, which
// replaces all of them as well.
const comment = "uvxlan"

// nfTables writes rules into tables of its own, by netlink.
type nfTables struct {
	table *nftables.Table
}

func openNFTables(f Family) (*nfTables, error) {
	n := &nfTables{&nftables.Table{Name: "flannel-ipv4", Family: nftables.TableFamilyIPv4}}
	if f == IPv6 {
		n.table = &nftables.Table{Name: "flannel-ipv6", Family: nftables.TableFamilyIPv6}
	}
	t, err := n.begin()
	if err == nil {
		_, err = t.list()
	}
	return n, refusal(err)
}

// transaction is changes that the kernel makes at once, with the Flush of its
// connection, or that never happen.
type transaction struct {
	*nftables.Conn
	table *nftables.Table
}

func (n *nfTables) begin() (*transaction, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoNFTables, err)
	}
	return &transaction{conn, n.table}, nil
}

// nftables is the chain in our table, by flannel's names.
func (p purpose) nftables(t *nftables.Table) *nftables.Chain {
	if p == masquerading {
		return &nftables.Chain{Name: "postrtg", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	}
	return &nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
}

// probe writes the rules into a table that goes in the same step, which the
// kernel does as a whole or refuses.
func (n *nfTables) probe(chains []chain) error {
	tx, err := n.begin()
	if err != nil {
		return err
	}
	t := tx.AddTable(&nftables.Table{Name: n.table.Name + "-probe", Family: n.table.Family})
	for _, c := range chains {
		if len(c.want) == 0 {
			continue
		}
		to := tx.AddChain(c.purpose.nftables(t))
		for _, r := range c.want {
			tx.AddRule(newRule(to, r))
		}
	}
	tx.DelTable(t)
	return refusal(tx.Flush())
}

// passing are errors of netlink that say nothing about what the kernel can.
var passing = []error{unix.EAGAIN, unix.EINTR, unix.EBUSY, unix.ENOBUFS, unix.ENOMEM, unix.EMFILE, unix.ENFILE}

// refusal is what a kernel says that lacks something.
func refusal(err error) error {
	if err == nil || errors.Is(err, unix.EPERM) || slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
		return first(err)
	}
	return fmt.Errorf("%w: %w", ErrNoNFTables, first(err))
}

// first is the first of the errors of a batch, one for each of its messages.
func first(err error) error {
	var all interface{ Unwrap() []error }
	for errors.As(err, &all) {
		err = all.Unwrap()[0]
	}
	return err
}

func (n *nfTables) differing(chains []chain) (all []purpose, err error) {
	for _, c := range chains {
		tx, err := n.begin()
		if err != nil {
			return nil, err
		}
		changed, _, err := tx.changes([]chain{c})
		if err != nil {
			return nil, err
		}
		if changed > 0 {
			all = append(all, c.purpose)
		}
	}
	return all, nil
}

func (n *nfTables) apply(_ context.Context, chains []chain) error {
	tx, err := n.begin()
	if err != nil {
		return err
	}
	if _, _, err := tx.changes(chains); err != nil {
		return err
	}
	return first(tx.Flush())
}

// changes prepares what makes the chains as wanted. It returns how many rules
// change, and whether the table goes.
func (t *transaction) changes(chains []chain) (changed int, gone bool, err error) {
	there, err := t.list()
	if err != nil {
		return 0, false, err
	}
	left := len(there)
	for _, c := range chains {
		does, err := t.change(c, there)
		if err != nil {
			return 0, false, err
		}
		changed, left = changed+does.rules, left+does.chains
	}
	if gone = left == 0 && len(there) > 0; gone {
		t.DelTable(t.table)
	}
	return changed, gone, nil
}

func (n *nfTables) forget(_ context.Context, chains []chain, remove bool) ([]string, error) {
	tx, err := n.begin()
	if err != nil {
		return nil, err
	}
	changed, gone, err := tx.changes(chains)
	if err != nil || changed == 0 {
		return nil, err
	}
	found := "nftables table " + n.table.Name
	if !gone {
		found = fmt.Sprintf("%d rules in %s", changed, found)
	}
	if remove {
		err = first(tx.Flush())
	}
	return []string{found}, err
}

// list returns the names of our chains that are there.
func (t *transaction) list() (names []string, err error) {
	all, err := t.ListChainsOfTableFamily(t.table.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range all {
		if c.Table != nil && c.Table.Name == t.table.Name {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

// effect is what a change does: how many rules come or go, the chain itself
// counted as one, and by how many the chains become more.
type effect struct{ rules, chains int }

// change prepares what makes a chain as wanted.
func (t *transaction) change(c chain, there []string) (does effect, err error) {
	to := c.purpose.nftables(t.table)
	missing := !slices.Contains(there, to.Name)
	var rules []*nftables.Rule
	if !missing {
		if rules, err = t.GetRules(t.table, to); err != nil {
			return does, fmt.Errorf("list rules of %s: %w", to.Name, err)
		}
	}
	have, foreign := t.known(rules)
	remove, add := c.plan(have, t.ruleKey)
	if c.idle(slices.DeleteFunc(slices.Clone(have), func(h string) bool { return h == "" }), t.ruleKey) {
		if missing {
			return does, nil
		}
		t.DelChain(to)
		return effect{1 + len(rules), -1}, nil
	}
	if missing {
		t.AddTable(t.table)
		t.AddChain(to)
		does = effect{1, 1}
	}
	for _, at := range append(remove, foreign...) {
		rules[at].Table = t.table
		if err := t.DelRule(rules[at]); err != nil {
			return does, err
		}
	}
	for _, r := range add {
		t.AddRule(newRule(to, r))
	}
	does.rules += len(remove) + len(foreign) + len(add)
	return does, nil
}

// known returns the rules' keys, "" for those that aren't ours, whose places it
// returns too.
func (t *transaction) known(rules []*nftables.Rule) (have []string, foreign []int) {
	for i, r := range rules {
		text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if text != comment {
			have, foreign = append(have, ""), append(foreign, i)
			continue
		}
		have = append(have, t.key(r.Exprs))
	}
	return have, foreign
}

// leftover tells of our table, and removes it unless it is only to tell.
func (n *nfTables) leftover(_ context.Context, remove bool) ([]string, error) {
	tx, err := n.begin()
	if err != nil {
		return nil, err
	}
	tables, err := tx.ListTablesOfFamily(n.table.Family)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == n.table.Name }) {
		return nil, nil
	}
	found := []string{"nftables table " + n.table.Name}
	if !remove {
		return found, nil
	}
	tx.DelTable(n.table)
	return found, tx.Flush()
}

func newRule(to *nftables.Chain, r rule) *nftables.Rule {
	return &nftables.Rule{Table: to.Table, Chain: to, Exprs: expressions(r),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment)}
}

func (t *transaction) ruleKey(r rule) string { return t.key(expressions(r)) }

// key is the expressions as they are sent.
func (t *transaction) key(all []expr.Any) string {
	var b bytes.Buffer
	for _, e := range all {
		text, err := expr.Marshal(byte(t.table.Family), e)
		if err != nil {
			return ""
		}
		b.Write(text)
	}
	return b.String()
}

const register = 1

func expressions(r rule) []expr.Any {
	var all []expr.Any
	if r.marked {
		m := binary.NativeEndian.AppendUint32(nil, mark)
		all = append(all, &expr.Meta{Key: expr.MetaKeyMARK, Register: register},
			&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: m, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: m})
	}
	all = append(all, match(r.src, r.notSrc, 12, 8)...)
	all = append(all, match(r.dst, r.notDst, 16, 24)...)
	switch r.then {
	case accepts:
		return append(all, &expr.Verdict{Kind: expr.VerdictAccept})
	case returns:
		return append(all, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return append(all, &expr.Masq{FullyRandom: r.then == masqueradesRandomly})
}

// match compares the address at an offset of the IPv4 or of the IPv6 header, in
// bytes.
func match(p netip.Prefix, not bool, offset4, offset6 uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	offset, op := offset6, expr.CmpOpEq
	if p.Addr().Is4() {
		offset = offset4
	}
	if not {
		op = expr.CmpOpNeq
	}
	size := p.Addr().BitLen() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(size),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: register, Data: p.Masked().Addr().AsSlice()},
	}
}
