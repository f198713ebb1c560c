package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/migrate/resource"
	"github.com/pagurus-project/pagurus/parasite"
)

// An Inspection is the source's half of a preflight.
type Inspection struct {
	Tree     []migrate.Process
	Blockers []migrate.Finding
	Warnings []migrate.Finding
	// Inventory is what the destination must offer; nil if it is not known.
	Inventory *image.Image
}

// Inspect stops the process for a moment, reads what it consists of and lets it
// go on. What stands in the way of a migration is in the result, not an error.
// Of the configuration, Epoch and Token are not used. Save is called as for a
// migration; the plan is worth nothing any more when Inspect has returned
// without an error.
func (h *Host) Inspect(ctx context.Context, c Config) (*Inspection, error) {
	in := &Inspection{Blockers: h.refuse(c.PID)}
	if p, err := Describe(c.PID); err == nil {
		in.Tree = append(in.Tree, p)
	}
	if len(in.Blockers) > 0 {
		return in, nil
	}
	m, err := h.Start(ctx, c)
	if err == nil {
		m.dump.Inspect = true
		in.Inventory, err = m.inspect(ctx)
		in.Blockers, in.Warnings = distinct(m.dump.Blockers), distinct(m.dump.Warnings)
		if _, undone := m.Resume(ctx); undone != nil {
			return nil, errors.Join(err, undone)
		}
	}
	switch {
	case errors.Is(err, procfs.ErrGone), errors.Is(err, parasite.ErrGone), errors.Is(err, ErrProcess), errors.Is(err, unix.ESRCH):
		in.Blockers = append(in.Blockers, migrate.Findingf(migrate.CodeProcessVanished, "try again", "process %d: %v", c.PID, err))
	case errors.Is(err, resource.ErrTryAgain):
		in.Blockers = append(in.Blockers, migrate.Findingf(migrate.CodeProcessState, "try again", "process %d: %v", c.PID, err))
	case err != nil && len(in.Blockers) == 0:
		return nil, fmt.Errorf("inspecting process %d: %w", c.PID, err)
	}
	return in, nil
}

// inspect takes an image of what the process is now, but for its memory.
func (m *Migration) inspect(ctx context.Context) (*image.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.dump.CheckProcess(m.config.PID); err != nil {
		return nil, err
	}
	// What is learned from the running process makes the stop shorter.
	if _, err := m.dump.Layout(ctx, 0, m.pids()); err != nil {
		return nil, err
	}
	if err := m.enclose(); err != nil {
		return nil, err
	}
	if err := m.dump.NoteHolders(m.pids()); err != nil {
		return nil, err
	}
	if err := m.dump.NoteIDs(ctx, m.pids()); err != nil {
		return nil, err
	}
	var inventory *image.Image
	err := m.standing(ctx, func() error {
		err := m.dump.CheckCode(m.targets())
		if err == nil {
			err = m.mapScratch(ctx)
		}
		if err == nil {
			inventory, err = m.dump.Dump(ctx, m.targets())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	m.withoutScratch(inventory)
	inventory.Addresses = m.dump.AddressesAlong(inventory, m.config.Addresses, m.config.Options.WithAddresses)
	m.dump.WarnConnections(inventory)
	if err := m.dump.CheckAddressesAlong(inventory.Addresses, m.pids()); err != nil {
		return nil, err
	}
	return inventory, m.dump.AddDigests(ctx, inventory.Files)
}

func distinct(findings []migrate.Finding) []migrate.Finding {
	var all []migrate.Finding
	for _, f := range findings {
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

// refuse reports what keeps a process from being looked at at all.
func (h *Host) refuse(pid int) []migrate.Finding {
	one := func(code migrate.Code, hint, format string, args ...any) []migrate.Finding {
		return []migrate.Finding{migrate.Findingf(code, hint, format, args...)}
	}
	if pid <= 0 {
		return one(migrate.CodeNoSuchProcess, "migratectl ps lists those that there are", "%d is no process id", pid)
	}
	proc := procfs.Process{PID: pid}
	stat, err := proc.Stat()
	var status procfs.Status
	if err == nil {
		status, err = proc.Status()
	}
	switch {
	case errors.Is(err, procfs.ErrGone), errors.Is(err, os.ErrNotExist):
		return one(migrate.CodeNoSuchProcess, "migratectl ps lists those that there are", "there is no process %d", pid)
	case err != nil:
		return one(migrate.CodeProcessState, "try again", "process %d: %v", pid, err)
	case pid == 1:
		return one(migrate.CodeInit, "name another process", "process 1 is its host's first process")
	case stat.KernelThread():
		return one(migrate.CodeKernelThread, "name another process", "process %d is the kernel thread %s", pid, stat.Command)
	case h.config.Own != nil && h.config.Own(pid):
		return one(migrate.CodeOwnDaemon, "name another process", "process %d is one of the daemons that move processes", pid)
	case status.TGID != pid:
		return one(migrate.CodeNoSuchProcess, fmt.Sprintf("name the process, %d", status.TGID), "%d is a thread of process %d", pid, status.TGID)
	case stat.State == 'Z' || stat.State == 'X':
		return zombie(proc, one)
	case status.TracerPID != 0:
		return one(migrate.CodeTraced, "detach the debugger", "process %d is traced by process %d", pid, status.TracerPID)
	}
	return nil
}

// zombie says what is the matter with a process whose first thread has exited.
func zombie(p procfs.Process, one func(migrate.Code, string, string, ...any) []migrate.Finding) []migrate.Finding {
	if threads, err := p.Threads(); err == nil && len(threads) > 1 {
		return one(migrate.CodeProcessState, "restart it", "the first thread of process %d has exited while others run on", p.PID)
	}
	return one(migrate.CodeZombie, "there is nothing left to move", "process %d has exited, and its parent has not asked for its status yet", p.PID)
}

// Describe says what a process is, as ps shows it.
func Describe(pid int) (migrate.Process, error) {
	proc := procfs.Process{PID: pid}
	status, err := proc.Status()
	if err != nil {
		return migrate.Process{}, err
	}
	p := migrate.Process{
		PID: pid, PPID: status.PPID, Command: status.Name, UID: int(status.UIDs[1]), State: string(status.State),
		Threads: status.Threads, ResidentBytes: status.RSSBytes,
	}
	if line, err := proc.Read("cmdline"); err == nil && len(line) > 0 {
		p.Command = strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	fds, err := proc.FDs()
	if err != nil {
		return p, err
	}
	for _, fd := range fds {
		if link, err := proc.Link(fmt.Sprintf("fd/%d", fd)); err == nil && strings.HasPrefix(link, "socket:") {
			p.Sockets++
		}
	}
	return p, nil
}
