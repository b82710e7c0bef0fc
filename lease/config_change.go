package lease

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// errConfigRemoved means that the registry has no configuration any longer.
var errConfigRemoved = errors.New("it was removed")

// takesEffect says when a changed configuration takes effect.
const takesEffect = "this daemon keeps the one that it started with until it restarts"

// compareConfig notes whether the registry's configuration is the one in force.
// data is empty if the registry has none.
func (m *Manager) compareConfig(data []byte) {
	inForce := m.inForce.Load()
	if inForce == nil {
		return
	}
	words := ""
	changes, err := m.CompareConfig(data, inForce)
	switch {
	case len(data) == 0:
		err = errConfigRemoved
	case changes != "":
		err = errors.New(changes)
	}
	if err != nil {
		words = fmt.Sprintf("the network configuration has changed (%v): %s", err, takesEffect)
	}
	before := m.configChange.Swap(&words)
	switch {
	case before != nil && *before == words || before == nil && words == "":
	case words == "":
		m.log.Info("the network configuration is again the one in force")
	default:
		m.log.Warn("the network configuration has changed", "changes", err, "effect", takesEffect)
	}
}

// CompareConfig tells in which fields the registry's configuration, as it is written
// there, differs from c; empty if in none.
func (m *Manager) CompareConfig(data []byte, c *Config) (words string, err error) {
	other, err := m.parse(data)
	if err != nil {
		return "", err
	}
	return strings.Join(differences(*c, *other), ", "), nil
}

// differences names the fields in which two configurations differ.
func differences(before, after any) (out []string) {
	x, y := reflect.ValueOf(before), reflect.ValueOf(after)
	for i := range x.NumField() {
		a, b := x.Field(i).Interface(), y.Field(i).Interface()
		name := x.Type().Field(i).Name
		if v, ok := a.(Backend); ok {
			for _, d := range differences(v, b) {
				out = append(out, name+"."+d)
			}
		} else if a != b {
			out = append(out, fmt.Sprintf("%s %v, here %v", name, b, a))
		}
	}
	return out
}
