// Package lifecycle has the life of what runs once and is closed once, in whatever
// order that happens.
package lifecycle

import (
	"errors"
	"sync"
)

// Errors of Start and HandOver.
var (
	// ErrClosed says that it was closed before it ran.
	ErrClosed = errors.New("closed before it ran")
	// ErrStarted says that it runs, or has run.
	ErrStarted = errors.New("it runs, or has run")
)

// Life is one life. The zero value is one that hasn't begun.
type Life struct {
	running sync.WaitGroup

	mu       sync.Mutex // guards the rest
	started  bool
	closed   bool
	released bool // what it held is given back
}

// Start begins the run, of which there is one. Done ends it.
func (l *Life) Start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case l.started:
		return ErrStarted
	}
	l.started = true
	l.running.Add(1)
	return nil
}

// Done is called when the run has ended.
func (l *Life) Done() { l.running.Done() }

// Closed tells whether Close or HandOver was called.
func (l *Life) Closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// While calls f, unless what f needs was given back.
func (l *Life) While(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.released {
		f()
	}
}

// Close has halt end the run, waits for it and has release give back what was held.
// Further calls wait as well, and do nothing else.
func (l *Life) Close(halt func(), release func() error) error {
	l.mu.Lock()
	l.closed = true
	if !l.released {
		halt()
	}
	l.mu.Unlock()
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released {
		return nil
	}
	l.released = true
	return release()
}

// HandOver is Close for what somebody else goes on with: unless ready refuses it,
// nothing is given back, and Close has nothing left to do. The caller ends the run
// and calls Wait.
func (l *Life) HandOver(ready func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if err := ready(); err != nil {
		return err
	}
	l.closed, l.released = true, true
	return nil
}

// Wait waits for the end of the run.
func (l *Life) Wait() { l.running.Wait() }
