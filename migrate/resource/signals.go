package resource

import (
	"fmt"
	"slices"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// signalActions: what a process does with each signal (sigaction(2)).
var signalActions = processKind{
	name: "signal actions",
	dump: func(d *ProcessDump) error {
		status, err := d.status(d.Proc.PID)
		if err != nil {
			return err
		}
		b := d.batch(d.Proc.PID)
		for signal := 1; signal <= maxSignal; signal++ {
			switch bit := uint64(1) << (signal - 1); {
			case status.SigIgn&bit != 0:
				// Ignored signals may have flags and a mask too, and what is ignored
				// by default shows up here only if that was asked for.
			case status.SigCgt&bit == 0:
				continue
			}
			out := b.Space(sigactionBytes)
			get := b.Call(unix.SYS_RT_SIGACTION, uintptr(signal), 0, out, sigsetBytes)
			d.then(func() error {
				if _, err := b.Result(get); err != nil {
					return err
				}
				var a sigactionABI
				parasite.Into(b, out, &a)
				d.Process.Actions = append(d.Process.Actions, image.SignalAction{
					Signal: signal, Handler: a.handler, Flags: a.flags, Restorer: a.restorer, Mask: a.mask,
				})
				return nil
			})
		}
		return nil
	},
	restore: func(r *ProcessRestore) error {
		b := r.batch()
		for _, a := range r.Process.Actions {
			abi := actionABI(&a)
			b.Call(unix.SYS_RT_SIGACTION, uintptr(a.Signal), parasite.Struct(b, &abi), 0, sigsetBytes)
		}
		return b.RunAll(r.Ctx)
	},
}

// settleTraps sets the action of SIGTRAP once more, after the last breakpoint.
func (r *ProcessRestore) settleTraps() error {
	for i := range r.Process.Actions {
		a := &r.Process.Actions[i]
		if unix.Signal(a.Signal) != unix.SIGTRAP {
			continue
		}
		memory, abi := r.Shell.Scratch().Data, actionABI(a)
		if err := r.Shell.WriteMemory(memory, bytesOf(&abi)); err != nil {
			return err
		}
		if _, err := r.leader().PlainSyscall(r.Ctx, unix.SYS_RT_SIGACTION, uintptr(a.Signal), memory, 0, sigsetBytes); err != nil {
			return fmt.Errorf("setting the action of %v: %w", unix.SIGTRAP, err)
		}
	}
	return nil
}

const (
	maxSignal      = 64
	sigsetBytes    = 8
	sigactionBytes = 32
)

// sigactionABI is the kernel's struct sigaction (include/linux/signal_types.h).
type sigactionABI struct {
	_        structs.HostLayout
	handler  uint64
	flags    uint64
	restorer uint64
	mask     uint64
}

func actionABI(a *image.SignalAction) sigactionABI {
	return sigactionABI{handler: a.Handler, flags: a.Flags, restorer: a.Restorer, mask: a.Mask}
}

// pendingSignals: signals that were sent and not delivered. While a shell is
// built all signals are blocked in it, so they stay pending.
var pendingSignals = processKind{
	name: "pending signals",
	dump: func(d *ProcessDump) error {
		shared, err := d.leader().PendingSignals(true)
		if err != nil {
			return err
		}
		d.Process.Pending = signalBytes(shared)
		for i := range d.Process.Threads {
			t := &d.Process.Threads[i]
			own, err := d.Target.Thread(t.TID).PendingSignals(false)
			if err != nil {
				return err
			}
			t.Pending = signalBytes(own)
		}
		return nil
	},
	restore: func(r *ProcessRestore) error {
		if err := QueueSignals(r, r.Process.Pending); err != nil {
			return err
		}
		for i := range r.Process.Threads {
			if err := queueThreadSignals(r, &r.Process.Threads[i]); err != nil {
				return err
			}
		}
		return nil
	},
}

func signalBytes(infos []parasite.SigInfo) [][]byte {
	var all [][]byte
	for i := range infos {
		all = append(all, slices.Clone(infos[i][:]))
	}
	return all
}

// QueueSignals sends signals to the process as a whole. They are sent by the
// process to itself: only then may they say that the kernel sent them
// (rt_sigqueueinfo(2)).
func QueueSignals(r *ProcessRestore, infos [][]byte) error {
	b := r.batch()
	for _, info := range infos {
		b.Call(unix.SYS_RT_SIGQUEUEINFO, uintptr(r.Process.PID), signalNumber(info), b.Bytes(info))
	}
	return b.RunAll(r.Ctx)
}

func queueThreadSignals(r *ProcessRestore, t *image.Thread) error {
	b := r.Shell.Thread(t.TID).Batch(r.Ctx)
	for _, info := range t.Pending {
		b.Call(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(r.Process.PID), uintptr(t.TID), signalNumber(info), b.Bytes(info))
	}
	if err := b.RunAll(r.Ctx); err != nil {
		return fmt.Errorf("thread %d: %w", t.TID, err)
	}
	return nil
}

func signalNumber(info []byte) uintptr {
	var s parasite.SigInfo
	copy(s[:], info)
	return uintptr(s.Signal())
}
