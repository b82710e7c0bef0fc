package handover

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Termination is a context that ends with the first SIGINT or SIGTERM, as that of
// [signal.NotifyContext] does. The second one ends the process. None that comes
// before or in an [Exec] is lost. It is for one goroutine, but for what is a
// [context.Context]'s.
type Termination struct {
	context.Context
	end     context.CancelFunc
	signals chan os.Signal
	watched chan struct{} // closed once signals is of no more use
}

// NotifyTermination returns the process's. It lasts as long as the process.
func NotifyTermination() *Termination {
	t := &Termination{}
	t.Context, t.end = context.WithCancel(context.Background())
	t.watch()
	return t
}

func (t *Termination) watch() {
	t.signals, t.watched = make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(t.signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		defer close(t.watched)
		if _, came := <-t.signals; came {
			t.end()
			signal.Stop(t.signals)
		}
	}()
}

// suspend gives the signals their usual effect, and returns whether the context
// has ended by then: by every signal that had none.
func (t *Termination) suspend() error {
	signal.Stop(t.signals) // what came before is in the channel now
	close(t.signals)
	<-t.watched
	return t.Err()
}

// resume undoes suspend.
func (t *Termination) resume() {
	if t.Err() == nil {
		t.watch()
	}
}
