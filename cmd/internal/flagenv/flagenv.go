// Package flagenv fills flags from environment variables, as flanneld does.
package flagenv

import (
	"errors"
	"flag"
	"os"
	"strings"

	"uvxlan/internal/cli"
)

// Name is the variable of a flag: prefix "FLANNELD_" makes of "etcd-prefix"
// FLANNELD_ETCD_PREFIX.
func Name(prefix, flagName string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// Fill sets every flag of the parsed set fs that the command line left alone
// from its variable, if there is one that isn't empty. All errors are found at
// once; each is a [cli.ErrUsage].
func Fill(fs *flag.FlagSet, prefix string) error {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		value := os.Getenv(Name(prefix, f.Name))
		if value == "" || given[f.Name] {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			errs = append(errs, cli.Usagef("%s=%q: %s", Name(prefix, f.Name), value, cli.Reason(f, err)))
		}
	})
	return errors.Join(errs...)
}

// List is a flag that may be given several times; a variable gives it once. What
// is empty counts for nothing: a unit file's -iface=${IFACE} may be.
type List []string

// String is the values, separated by commas.
func (l *List) String() string { return strings.Join(*l, ",") }

// Set adds a value.
func (l *List) Set(value string) error {
	if value != "" {
		*l = append(*l, value)
	}
	return nil
}
