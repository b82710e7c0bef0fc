package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fullStore has no room for a while.
type fullStore struct {
	until time.Time
	saved []State
}

func (s *fullStore) Load() (*State, error) { return nil, nil }

func (s *fullStore) Save(state State) error {
	if time.Now().Before(s.until) {
		return errors.New("no space left on device")
	}
	s.saved = append(s.saved, state)
	return nil
}

// A state that couldn't be saved is saved as soon as possible, without another
// change.
func TestJournalTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fullStore{until: time.Now().Add(time.Minute)}
		j := newJournal(store, slog.New(slog.DiscardHandler))
		j.configured([]byte("{}"))
		j.follow(func() []Lease { return []Lease{} })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { j.run(ctx) })
		time.Sleep(time.Minute + 10*time.Second)
		cancel()
		wg.Wait()
		if len(store.saved) != 1 {
			t.Errorf("saved %d times", len(store.saved))
		}
	})
}
