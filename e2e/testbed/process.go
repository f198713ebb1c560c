package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

// A Process is one that is moved about.
type Process struct {
	PID  int
	Host string // that it runs on
	Log  string // its output, on all hosts
	Ask  string // path of questions to it, unique to it and part of its command line

	bed *Bed
}

// pollInterval is how often something is looked at that tells nobody when it changes.
const pollInterval = time.Millisecond

// Start starts a program and waits until it has printed a line that begins with
// "ready". Of its arguments, $ASK is replaced by the path of questions to it,
// and $BIN by the directory of programs.
func (b *Bed) Start(ctx context.Context, host string, args ...string) (*Process, error) {
	h, err := b.Lab.Host(host)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.Bin, "process-")
	if err != nil {
		return nil, err
	}
	p := &Process{Host: host, Ask: filepath.Join(dir, "ask"), bed: b}
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.NewReplacer("$ASK", p.Ask, "$BIN", b.Bin, "$DIR", dir).Replace(args[i])
	}
	started, err := h.Start(ctx, lab.Command{Args: args, Dir: dir})
	if err != nil {
		return nil, err
	}
	p.PID, p.Log = started.PID, started.Log
	err = Await(ctx, "a line from "+args[0]+" that it is ready", func() (bool, error) {
		if !p.Alive() {
			return false, fmt.Errorf("%s on %s has ended: %s", strings.Join(args, " "), host, p.Output())
		}
		out := "\n" + p.Output()
		return strings.Contains(out, "\nready"), nil
	})
	if err != nil {
		_ = h.Kill(ctx, p.PID, unix.SIGKILL) // it may be what has ended
	}
	return p, err
}

// Await waits for something that happens elsewhere and tells nobody.
func Await(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

// Output is what the process has written.
func (p *Process) Output() string {
	content, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// Alive reports whether there is a process of that number where it should be.
func (p *Process) Alive() bool {
	h, err := p.bed.Lab.Host(p.Host)
	if err != nil {
		return false
	}
	root, err := h.Root()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(root, "proc", strconv.Itoa(p.PID)))
	return err == nil
}

// Verdict asks the process for its own opinion.
func (p *Process) Verdict(ctx context.Context) (verdict.Verdict, error) {
	v, err := verdict.Ask(ctx, p.Ask)
	if err != nil {
		copies, _ := p.Copies()
		err = fmt.Errorf("%w; there are %+v of it, and it has written: %s", err, copies, p.Output())
	}
	return v, err
}

// End ends the process, and is done when nothing is left of it on any host.
func (p *Process) End(ctx context.Context, signal syscall.Signal) error {
	h, err := p.bed.Lab.Host(p.Host)
	if err != nil {
		return err
	}
	if err := h.Kill(ctx, p.PID, signal); err != nil {
		return err
	}
	return Await(ctx, fmt.Sprintf("the end of process %d", p.PID), func() (bool, error) {
		copies, err := p.Copies()
		return len(copies) == 0, err
	})
}

// A Copy is a process that looks like a Process: itself, or a shell that was
// to become it.
type Copy struct {
	Host  string
	PID   int
	State string // as in /proc/PID/stat
}

// Copies are all there are on any host.
func (p *Process) Copies() ([]Copy, error) {
	var copies []Copy
	err := p.bed.processes(func(host, dir string, pid int) {
		// What ends while it is looked at is none.
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !bytes.Contains(command, []byte(p.Ask)) {
			return
		}
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		if _, after, ok := strings.Cut(string(stat), ") "); ok {
			copies = append(copies, Copy{Host: host, PID: pid, State: after[:1]})
		}
	})
	return copies, err
}

// processes calls each with the /proc directory of every process of every host.
func (b *Bed) processes(each func(host, dir string, pid int)) error {
	for _, h := range b.Lab.Hosts() {
		root, err := h.Root()
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(filepath.Join(root, "proc"))
		if err != nil {
			return fmt.Errorf("looking at the processes of %s: %w", h.Name(), err)
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil {
				each(h.Name(), filepath.Join(root, "proc", e.Name()), pid)
			}
		}
	}
	return nil
}

// HoldDevice is in the names of devices that hold packets.
const HoldDevice = "pgh0-"

// Traces are everything on the hosts that a migration could leave behind: names
// of processes, control groups, network devices (of what holds packets, which has
// firewall tables as long as it has one), and the agents' state.
func (b *Bed) Traces() ([]string, error) {
	var found []string
	err := b.processes(func(host, dir string, pid int) {
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err == nil {
			found = append(found, host+" process "+strings.TrimSpace(string(name)))
		}
	})
	for _, h := range b.Lab.Hosts() {
		root, rootErr := h.Root()
		err = errors.Join(err, rootErr)
		devices, readErr := os.ReadFile(filepath.Join(root, "proc/1/net/dev"))
		err = errors.Join(err, readErr)
		for line := range strings.Lines(string(devices)) {
			if name, _, ok := strings.Cut(line, ":"); ok && strings.Contains(name, HoldDevice) {
				found = append(found, h.Name()+" device "+strings.TrimSpace(name))
			}
		}
		err = errors.Join(err, b.Within(h.Name(), func() error {
			tables, err := new(nftables.Conn).ListTables()
			for _, t := range tables {
				if strings.HasPrefix(t.Name, "pagurus-forward-") || strings.HasPrefix(t.Name, "pagurus-guests-") {
					found = append(found, h.Name()+" table "+t.Name)
				}
			}
			return err
		}))
		for _, dir := range []string{"sys/fs/cgroup", "run/pagurus"} {
			err = errors.Join(err, filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
				switch {
				case errors.Is(err, fs.ErrNotExist):
					return nil // it goes away just now
				case err != nil:
					return err
				case d.Name() == "addresses.json": // as long as the host has a service address
				case dir == "run/pagurus" || d.IsDir():
					found = append(found, h.Name()+" "+strings.TrimPrefix(path, root))
				}
				return nil
			}))
		}
	}
	slices.Sort(found)
	return found, err
}
