package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
)

// Cleanup removes what a killed run, or one with Options.Keep, left: every
// namespace that a lab made, the processes in it and those of ControlGroup. It waits while another lab
// is in use, until ctx ends.
func Cleanup(ctx context.Context) error {
	log := slog.New(slog.DiscardHandler)
	lock, err := acquire(ctx, log)
	if err != nil {
		return err
	}
	return errors.Join(removeLeftovers(ctx, log), lock.Close())
}

// removeLeftovers removes every marked namespace. The caller holds the lock, so
// none of them is in use.
func removeLeftovers(ctx context.Context, log *slog.Logger) error {
	names, err := markedNamespaces()
	if err != nil {
		return err
	}
	ids := make(map[nsID]bool)
	for _, name := range names {
		id, err := namespaceID(namespacePath(name))
		if err != nil {
			return err
		}
		ids[id] = true
		log.Info("removing leftover namespace", "name", name)
	}
	// First what would start the others again.
	if err := errors.Join(killProcesses(ctx, ids), removeGroup(ctx)); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, deleteNamespace(name))
	}
	return errors.Join(errs...)
}

// markedNamespaces lists the named namespaces that labs made, and the empty
// files of their usual names that are left when a run is killed just before it
// binds a namespace, or when the machine restarts.
func markedNamespaces() ([]string, error) {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	usual := usualNames()
	var names []string
	for _, e := range entries {
		name, path := e.Name(), namespacePath(e.Name())
		if isNamespace(path) && isMarked(path) || usual[name] && isEmptyFile(path) {
			names = append(names, name)
		}
	}
	return names, nil
}

// usualNames are the names in a default lab.
func usualNames() map[string]bool {
	names := map[string]bool{routerName: true}
	for _, s := range DefaultHosts() {
		names[s.Name], names[containerName(s.Name)] = true, true
	}
	return names
}

func isEmptyFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == 0 && !isNamespace(path)
}
