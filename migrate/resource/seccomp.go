package resource

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"structs"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// seccomp: filters and strict mode. The tracer suspends them while it makes
// remote calls; they hold again when it lets go.
var seccomp = processKind{
	name: "seccomp filters",
	dump: func(d *ProcessDump) error {
		for i := range d.Process.Threads {
			t := &d.Process.Threads[i]
			status, err := d.status(t.TID)
			if err != nil {
				return err
			}
			switch status.Seccomp {
			case unix.SECCOMP_MODE_STRICT:
				t.SeccompStrict = true
			case unix.SECCOMP_MODE_FILTER:
				if err := dumpFilters(d, t); err != nil {
					return err
				}
			}
		}
		first := &d.Process.Threads[0]
		d.Process.SharedFilters = len(d.Process.Threads) > 1 && len(first.Filters) > 0
		for i := range d.Process.Threads {
			if !slices.EqualFunc(first.Filters, d.Process.Threads[i].Filters, equalFilters) {
				d.Process.SharedFilters = false
			}
		}
		return nil
	},
	restore: func(r *ProcessRestore) error {
		if r.Process.SharedFilters {
			// Installed once for all threads, so that they stay shared and later
			// filters can be installed for all of them too.
			return installFilters(r, &r.Process.Threads[0], unix.SECCOMP_FILTER_FLAG_TSYNC)
		}
		for i := range r.Process.Threads {
			if err := installFilters(r, &r.Process.Threads[i], 0); err != nil {
				return err
			}
		}
		return nil
	},
}

func equalFilters(a, b image.Filter) bool {
	return a.Flags == b.Flags && bytes.Equal(a.Program, b.Program)
}

// Flags of a filter that can be given again; the others act at installation.
const keptFilterFlags = unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

func dumpFilters(d *ProcessDump, t *image.Thread) error {
	thread := d.Target.Thread(t.TID)
	for index := 0; ; index++ {
		program, flags, err := thread.SeccompFilter(index)
		if errors.Is(err, parasite.ErrNoFilter) {
			break
		}
		if err != nil {
			return fmt.Errorf("thread %d: %w", t.TID, err)
		}
		for _, in := range program {
			if in.Code == unix.BPF_RET|unix.BPF_K && in.K&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_USER_NOTIF {
				d.Block(migrate.CodeProcessState, "end the supervisor of its system calls first", "seccomp filter of thread %d asks another process (SECCOMP_RET_USER_NOTIF)", t.TID)
			}
		}
		// The newest comes first; they are installed oldest first.
		t.Filters = slices.Insert(t.Filters, 0, image.Filter{Program: encodeFilter(program), Flags: flags & keptFilterFlags})
	}
	return nil
}

// encodeFilter writes a program as the kernel's array of struct sock_filter.
func encodeFilter(program []unix.SockFilter) []byte {
	out := make([]byte, 0, 8*len(program))
	for _, in := range program {
		out = append(out, byte(in.Code), byte(in.Code>>8), in.Jt, in.Jf, byte(in.K), byte(in.K>>8), byte(in.K>>16), byte(in.K>>24))
	}
	return out
}

// filterProgram is struct sock_fprog (include/uapi/linux/filter.h).
type filterProgram struct {
	_      structs.HostLayout
	length uint16
	filter uintptr
}

func installFilters(r *ProcessRestore, t *image.Thread, flags uintptr) error {
	const setModeFilter = 1
	b := r.Shell.Thread(t.TID).Batch(r.Ctx)
	for _, f := range t.Filters {
		program := filterProgram{length: uint16(len(f.Program) / 8), filter: b.Bytes(f.Program)}
		b.Call(unix.SYS_SECCOMP, setModeFilter, flags|uintptr(f.Flags), parasite.Struct(b, &program))
	}
	if err := b.RunAll(r.Ctx); err != nil {
		return fmt.Errorf("thread %d: %w", t.TID, err)
	}
	return nil
}

// enterStrict puts threads into strict mode: nothing can be called after that.
func (r *ProcessRestore) enterStrict() error {
	for i := range r.Process.Threads {
		if t := &r.Process.Threads[i]; t.SeccompStrict {
			if _, err := r.Shell.Thread(t.TID).PlainSyscall(r.Ctx, unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_STRICT); err != nil {
				return fmt.Errorf("thread %d: %w", t.TID, err)
			}
		}
	}
	return nil
}
