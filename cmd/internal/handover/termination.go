package handover

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// terminations are the signals that end the process. A signal that was ignored
// when the process was started, as nohup does with SIGHUP, stays ignored.
func terminations() []os.Signal {
	all := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGQUIT}
	if !signal.Ignored(unix.SIGHUP) {
		all = append(all, unix.SIGHUP)
	}
	return all
}

// Termination is a context that ends with the first SIGINT, SIGTERM, SIGQUIT or
// SIGHUP, as the context of [signal.NotifyContext] does. The second signal ends
// the process; if it is a SIGQUIT, with the stacks of all goroutines.
//
// No signal is lost in an [Exec]. One that comes before it ends the context.
// From then on, until the successor has a Termination, a signal ends the
// process on the spot: Go's runtime blocks none of them in its threads, and a
// program that starts has no handler. The standby notices, see
// [Main.AwaitStop]. There is one exception: process 1 of a container may lose a
// signal, since the kernel spares it the signals' usual effect.
//
// Only one goroutine may use it, except for the methods of [context.Context].
type Termination struct {
	context.Context
	end     context.CancelFunc
	signals chan os.Signal
	watched chan struct{} // closed once signals is of no more use
	undo    func()        // what suspend has done besides
}

// NotifyTermination returns the process's Termination. It lasts as long as the
// process.
func NotifyTermination() *Termination {
	t := &Termination{undo: func() {}}
	t.Context, t.end = context.WithCancel(context.Background())
	t.watch()
	return t
}

func (t *Termination) watch() {
	t.signals, t.watched = make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(t.signals, terminations()...)
	go func() {
		defer close(t.watched)
		for s := range t.signals {
			if t.Err() != nil {
				die(s.(unix.Signal))
			}
			t.end()
		}
	}()
}

// die ends the process as the signal does by itself.
func die(s unix.Signal) {
	signal.Reset(s)
	_ = unix.Kill(os.Getpid(), s)
	runtime.Gosched()
	select {} // it is on its way
}

// suspend gives the signals their usual effect, which the kernel brings about.
// It returns an error if the context has ended by then.
func (t *Termination) suspend() error {
	all := terminations()
	quiesce(all)
	signal.Stop(t.signals) // what came before is in the channel now
	close(t.signals)
	<-t.watched
	if err := t.Err(); err != nil {
		return err
	}
	t.undo = defaultActions(all)
	quiesce(all) // or a handler might be about to end the process when the exec ends its thread
	return nil
}

// resume undoes suspend.
func (t *Termination) resume() {
	t.undo()
	t.undo = func() {}
	t.watch()
}

// defaultActions sets the kernel's default action for signals.
func defaultActions(signals []os.Signal) (undo func()) {
	type action [4]uint64 // a struct sigaction of the kernel's; zero is SIG_DFL
	set := func(s os.Signal, to, from *action) {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s.(unix.Signal)),
			uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(from)), unsafe.Sizeof(to[0]), 0, 0)
	}
	before := make([]action, len(signals))
	for i, s := range signals {
		set(s, &action{}, &before[i])
	}
	return func() {
		for i, s := range signals {
			set(s, &before[i], nil)
		}
	}
}
