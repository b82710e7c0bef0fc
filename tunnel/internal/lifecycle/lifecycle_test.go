package lifecycle_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"uvxlan/tunnel/internal/lifecycle"
)

// Close waits for the run, releases once, and nothing is used after that.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lifecycle.Life
		halted := make(chan struct{})
		released := 0
		if err := l.Start(); err != nil {
			t.Fatal(err)
		}
		if err := l.Start(); !errors.Is(err, lifecycle.ErrStarted) {
			t.Errorf("a second start: %v", err)
		}
		ended := false
		go func() {
			defer l.Done()
			<-halted
			ended = true
		}()
		refused := errors.New("refused")
		for i, want := range []error{refused, nil} {
			err := l.Close(func() { close(halted) }, func() error {
				if !ended {
					t.Error("released while it runs")
				}
				released++
				return refused
			})
			if !errors.Is(err, want) {
				t.Errorf("close %d: %v", i, err)
			}
		}
		l.While(func() { t.Error("used after its release") })
		if released != 1 || !l.Closed() {
			t.Errorf("released %d times, closed: %t", released, l.Closed())
		}
		if err := l.Start(); !errors.Is(err, lifecycle.ErrClosed) {
			t.Errorf("a start after the end: %v", err)
		}
	})
}

// What is handed over is not released, and what can't be goes on.
func TestHandOver(t *testing.T) {
	var l lifecycle.Life
	refused := errors.New("refused")
	if err := l.HandOver(func() error { return refused }); !errors.Is(err, refused) || l.Closed() {
		t.Errorf("refused: %v, closed: %t", err, l.Closed())
	}
	if err := l.HandOver(func() error { return nil }); err != nil {
		t.Error(err)
	}
	l.Wait()
	never := func() error { t.Error("released"); return nil }
	if err := l.Close(func() { t.Error("halted") }, never); err != nil {
		t.Error(err)
	}
	if err := l.HandOver(never); !errors.Is(err, lifecycle.ErrClosed) {
		t.Errorf("a second time: %v", err)
	}
}
