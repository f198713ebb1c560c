package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/procfs"
)

// ownPrograms are the daemons that no coordinator may move: it could not give
// the next order any more.
var ownPrograms = []string{"migrate-agent", "migrate-coordinator"}

// OwnDaemon reports whether a process is one of the project's daemons.
func OwnDaemon(pid int) bool {
	_, own := ownDaemon(pid)
	return own
}

// ownDaemon names the program, too.
func ownDaemon(pid int) (program string, own bool) {
	exe, err := procfs.Process{PID: pid}.Link("exe")
	if err != nil {
		return "", pid == os.Getpid()
	}
	exe, _ = procfs.CutDeleted(exe) // after an upgrade
	program = filepath.Base(exe)
	return program, pid == os.Getpid() || slices.Contains(ownPrograms, program)
}

// processes lists what could be moved from here. Whether a process can be in
// every detail, only Inspect finds out.
func (a *Agent) processes() ([]migrate.Process, error) {
	pids, err := procfs.All()
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var list []migrate.Process
	for _, pid := range pids {
		if pid == 1 || OwnDaemon(pid) {
			continue
		}
		p, kernel, err := process(pid)
		if err != nil || kernel || dead(p.State) {
			continue // gone by now
		}
		p.Migration = a.busy(pid, "")
		list = append(list, p)
	}
	return list, nil
}

func dead(state string) bool { return state == "Z" || state == "X" }

// process is what a list shows of a process, and whether it is a kernel thread.
func process(pid int) (migrate.Process, bool, error) {
	proc := procfs.Process{PID: pid}
	status, err := proc.Status()
	if err != nil {
		return migrate.Process{}, false, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return migrate.Process{}, false, err
	}
	p := migrate.Process{
		PID: pid, PPID: status.PPID, Command: status.Name, UID: int(status.UIDs[0]), State: string(status.State),
		Threads: status.Threads, ResidentBytes: status.RSSBytes,
	}
	if stat.KernelThread() {
		return p, true, nil
	}
	line, err := proc.Read("cmdline")
	if err != nil {
		return p, false, err
	}
	if text := commandLine(line); text != "" {
		p.Command = text
	}
	fds, err := proc.FDs()
	if err != nil {
		return p, false, err
	}
	for _, fd := range fds {
		if target, err := proc.Link(fmt.Sprintf("fd/%d", fd)); err == nil && strings.HasPrefix(target, "socket:") {
			p.Sockets++
		}
	}
	return p, false, nil
}

// maxCommandBytes is as much of a command line as anybody wants to read.
const maxCommandBytes = 256

// commandLine makes one line of text of /proc/PID/cmdline, which is whatever
// the program has left there.
func commandLine(data []byte) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(data), " "))
	text = strings.TrimSpace(text)
	if len(text) > maxCommandBytes {
		text = strings.ToValidUTF8(text[:maxCommandBytes], "") + "..."
	}
	return text
}

// inspect is the source's half of preflight: what can be seen without touching
// the process, and if nothing stands in the way there, what the engine sees.
func (a *Agent) inspect(ctx context.Context, pid int, migration string, service []netip.Prefix, o migrate.Options) (Inspection, error) {
	free, err := a.looks.claim(ctx, pid)
	if err != nil {
		return Inspection{}, err
	}
	defer func() { free() }()
	look, ok := a.glance(pid, migration)
	if !ok {
		return look, nil
	}
	id := inspectionOf(pid)
	var last json.RawMessage
	looked, err := a.config.Source.Inspect(ctx, SourceConfig{
		Migration: id, PID: pid, Options: o, Addresses: service,
		Save: func(plan json.RawMessage) error {
			last = plan
			return a.journal.writeInspection(id, plan)
		},
	})
	switch {
	case err == nil:
		return looked, a.journal.removeInspection(id)
	case last != nil: // perhaps not everything was undone
		a.undoInspection(id, last, free)
		free = func() {} // it does that when it is done
	}
	return looked, err
}

// inspectionOf names an inspection as if it were a migration.
func inspectionOf(pid int) string { return fmt.Sprintf(inspectionPattern, pid) }

const inspectionPattern = "inspection-%d"

// undoInspections undoes what is left of the inspections during which an earlier
// agent died.
func (a *Agent) undoInspections() error {
	plans, err := a.journal.readInspections()
	if err != nil {
		return err
	}
	for id, plan := range plans {
		pid := 0
		if _, err := fmt.Sscanf(id, inspectionPattern, &pid); err != nil {
			return fmt.Errorf("inspection %s in the journal: %w", id, err)
		}
		free, err := a.looks.claim(a.alive, pid)
		if err != nil {
			return err
		}
		a.undoInspection(id, plan, free)
	}
	return nil
}

// undoInspection undoes what a look at a process has left in it. If that fails it
// goes on trying when it has returned: the process may stand still until then.
// Nobody else looks at it meanwhile.
func (a *Agent) undoInspection(id string, plan json.RawMessage, free func()) {
	var m Outgoing
	try := func() error {
		ctx, cancel := context.WithTimeout(a.alive, a.timing.Undo)
		defer cancel()
		var err error
		if m == nil {
			m, err = a.config.Source.Recover(ctx, plan, func(plan json.RawMessage) error { return a.journal.writeInspection(id, plan) })
		}
		if err == nil {
			_, err = m.Resume(ctx)
		}
		if err == nil {
			err = a.journal.removeInspection(id)
		}
		if err != nil {
			a.logger.Error("undoing an inspection", keyMigration, id, keyError, err)
		}
		return err
	}
	if try() == nil {
		free()
		return
	}
	a.running.Go(func() {
		defer free()
		for n := 0; ; n++ {
			select {
			case <-a.alive.Done():
				return
			case <-time.After(a.timing.pause(n)):
			}
			if try() == nil {
				return
			}
		}
	})
}

// glance finds what rules a process out at once. ok says that nothing does.
func (a *Agent) glance(pid int, migration string) (look Inspection, ok bool) {
	host := a.config.Host
	block := func(code migrate.Code, hint, format string, args ...any) {
		look.Blockers = append(look.Blockers, migrate.Findingf(code, hint, format, args...))
	}
	proc := procfs.Process{PID: pid}
	status, err := proc.Status()
	switch {
	case pid < 1, errors.Is(err, procfs.ErrGone) || errors.Is(err, os.ErrNotExist):
		block(migrate.CodeNoSuchProcess, "see migratectl ps", "there is no process %d on %s", pid, host)
		return look, false
	case err != nil:
		block(migrate.CodeProcessVanished, "try again", "looking at process %d on %s: %v", pid, host, err)
		return look, false
	case status.TGID != pid:
		block(migrate.CodeNoSuchProcess, fmt.Sprintf("name the process, %d", status.TGID),
			"%d is a thread of process %d on %s", pid, status.TGID, host)
		return look, false
	}
	p, kernel, err := process(pid)
	if err == nil {
		p.Host = host
		look.Tree = []migrate.Process{p}
	}
	switch {
	case pid == 1:
		block(migrate.CodeInit, "it belongs to the host; name a process that it started", "process 1 is the init process of %s", host)
	case kernel:
		block(migrate.CodeKernelThread, "it is part of the kernel", "process %d (%s) is a kernel thread", pid, status.Name)
	case dead(string(status.State)):
		block(migrate.CodeZombie, fmt.Sprintf("its parent, process %d, has not asked for its exit status", status.PPID),
			"process %d (%s) has exited", pid, status.Name)
	}
	if len(look.Blockers) > 0 {
		return look, false
	}
	if program, own := ownDaemon(pid); own {
		block(migrate.CodeOwnDaemon, "start another one on the other host instead", "process %d (%s) is a daemon that carries out migrations", pid, program)
	}
	if busy := a.busy(pid, migration); busy != "" {
		look.Blockers = append(look.Blockers, migrate.Busy(busy, host, pid))
	} else if status.TracerPID != 0 {
		block(migrate.CodeTraced, "detach the debugger", "process %d (%s) is traced by process %d", pid, status.Name, status.TracerPID)
	}
	return look, len(look.Blockers) == 0
}

// looks makes sure that only one order at a time has its hands on a process.
type looks struct {
	mu   sync.Mutex
	held map[int]chan struct{} // by PID; closed when it is free again
}

func newLooks() *looks { return &looks{held: map[int]chan struct{}{}} }

// claim waits for a process to be free and takes it.
func (l *looks) claim(ctx context.Context, pid int) (free func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[pid]
		if !ok {
			mine := make(chan struct{})
			l.held[pid] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, pid)
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
