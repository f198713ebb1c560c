package resource

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/parasite"
)

// switches: settings of prctl(2) that are one number, read with one call and
// set with another.
var switches = processKind{
	name: "prctl settings",
	dump: func(d *ProcessDump) error {
		for _, s := range processSwitches {
			s.dump(d, d.Proc.PID, &d.Process.Switches)
		}
		for i := range d.Process.Threads {
			t := &d.Process.Threads[i]
			for _, s := range threadSwitches {
				s.dump(d, t.TID, &t.Switches)
			}
		}
		return nil
	},
	restore: func(r *ProcessRestore) error {
		for i := range r.Process.Threads {
			t := &r.Process.Threads[i]
			if err := setSwitches(r, t.TID, threadSwitches, t.Switches); err != nil {
				return err
			}
		}
		return setSwitches(r, r.Process.PID, processSwitches, r.Process.Switches)
	},
}

// A prctlSwitch is one such setting.
type prctlSwitch struct {
	name     string
	get, set uintptr
	byRef    bool   // get writes an int to where its second argument points
	initial  uint64 // what a fresh process has
}

// Numbers that x/sys/unix lacks or that are not in all its versions
// (include/uapi/linux/prctl.h).
const (
	prSetMDWE    = 65
	prGetMDWE    = 66
	prGetIOFlush = 58
	prSetIOFlush = 57
)

var processSwitches = []prctlSwitch{
	{name: "child-subreaper", get: unix.PR_GET_CHILD_SUBREAPER, set: unix.PR_SET_CHILD_SUBREAPER, byRef: true},
	{name: "thp-disable", get: unix.PR_GET_THP_DISABLE, set: unix.PR_SET_THP_DISABLE},
	{name: "dumpable", get: unix.PR_GET_DUMPABLE, set: unix.PR_SET_DUMPABLE, initial: ^uint64(0)},
	// Last: from then on memory cannot become executable.
	{name: "mdwe", get: prGetMDWE, set: prSetMDWE},
}

var threadSwitches = []prctlSwitch{
	{name: "parent-death-signal", get: unix.PR_GET_PDEATHSIG, set: unix.PR_SET_PDEATHSIG, byRef: true},
	{name: "tsc", get: unix.PR_GET_TSC, set: unix.PR_SET_TSC, byRef: true, initial: unix.PR_TSC_ENABLE},
	{name: "io-flusher", get: prGetIOFlush, set: prSetIOFlush},
}

// dump adds the call that reads the setting of a thread. One that the kernel
// does not know has no value.
func (s prctlSwitch) dump(d *ProcessDump, tid int, into *[]image.Switch) {
	b := d.batch(tid)
	var out uintptr
	if s.byRef {
		out = b.Space(8)
	}
	get := b.Call(unix.SYS_PRCTL, s.get, out, 0, 0, 0)
	d.then(func() error {
		value, err := b.Result(get)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s of thread %d: %w", s.name, tid, err)
		}
		v := uint64(value)
		if s.byRef {
			v = uint64s(b.Read(out, 8))[0]
		}
		if v != s.initial {
			*into = append(*into, image.Switch{Name: s.name, Value: v})
		}
		return nil
	})
}

// setSwitches sets those that have a value, in the order of the table.
func setSwitches(r *ProcessRestore, tid int, table []prctlSwitch, values []image.Switch) error {
	b := r.Shell.Thread(tid).Batch(r.Ctx)
	for _, s := range table {
		for _, v := range values {
			if v.Name == s.name {
				s.addSet(b, v.Value)
			}
		}
	}
	if err := b.RunAll(r.Ctx); err != nil {
		return fmt.Errorf("thread %d: %w", tid, err)
	}
	return nil
}

func (s prctlSwitch) addSet(b *parasite.Batch, value uint64) {
	const suidDumpable = 2
	if s.name == "dumpable" && value == suidDumpable {
		value = 0 // prctl cannot give it; both keep users without privileges out
	}
	var flags uint64
	if s.name == "thp-disable" {
		// It is told as one number with its flags (Linux 6.18).
		value, flags = value&1, value&^1
	}
	b.Call(unix.SYS_PRCTL, s.set, uintptr(value), uintptr(flags), 0, 0)
}
