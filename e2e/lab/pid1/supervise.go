package pid1

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/cgroup"
)

const (
	restartDelay = 200 * time.Millisecond // between a daemon's death and its next life
	stopTimeout  = 10 * time.Second       // between SIGTERM and SIGKILL
)

// A daemon is a program that is started again whenever it ends, until it is
// told to stop. Whatever its group still holds then is killed, so a process
// that is meant to outlive it must have left the group, as under systemd.
type daemon struct {
	name   string
	args   []string
	env    []string
	log    string
	group  *os.File
	reaper *reaper

	mu  sync.Mutex
	run *run // nil while the daemon is stopped
}

// A run is the time from a start to a stop, with any number of restarts.
type run struct {
	stop    chan struct{} // closed to end it
	stopped chan struct{} // closed when it has ended

	mu    sync.Mutex
	child *child // nil between two lives
}

// start begins a run and returns an error if its first process cannot be started.
func (d *daemon) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run != nil {
		return nil
	}
	first, err := d.launch()
	if err != nil {
		return err
	}
	d.run = &run{stop: make(chan struct{}), stopped: make(chan struct{}), child: first}
	go d.supervise(d.run, first)
	return nil
}

// stop ends the run and waits for it.
func (d *daemon) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run == nil {
		return
	}
	close(d.run.stop)
	<-d.run.stopped
	d.run = nil
}

// pid is the daemon's process, or 0.
func (d *daemon) pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.run == nil {
		return 0
	}
	d.run.mu.Lock()
	defer d.run.mu.Unlock()
	if d.run.child == nil {
		return 0
	}
	return d.run.child.pid
}

func (d *daemon) supervise(r *run, c *child) {
	defer close(r.stopped)
	for {
		select {
		case <-c.exited:
		case <-r.stop:
			d.end(c)
			return
		}
		r.set(nil)
		slog.Warn("daemon ended, starting it again", "daemon", d.name, "pid", c.pid, "status", describe(c.status))
		d.clear()
		for c = nil; c == nil; {
			select {
			case <-r.stop:
				return
			case <-time.After(restartDelay):
			}
			var err error
			if c, err = d.launch(); err != nil {
				slog.Error("daemon does not start", "daemon", d.name, "err", err)
			}
		}
		r.set(c)
	}
}

func (r *run) set(c *child) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.child = c
}

// end stops a living daemon: politely, then by force, then all it has left.
func (d *daemon) end(c *child) {
	c.signal(unix.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(stopTimeout):
		c.signal(unix.SIGKILL)
		<-c.exited
	}
	d.clear()
}

// clear kills what is left in the daemon's group.
func (d *daemon) clear() {
	if err := cgroup.Clear(d.group.Name(), time.Now().Add(stopTimeout)); err != nil {
		slog.Error("killing what a daemon left behind", "daemon", d.name, "err", err)
	}
}

func (d *daemon) launch() (*child, error) {
	path, err := lookPath(d.args[0], d.env, "/")
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	c, err := d.reaper.start(path, d.args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   d.env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
	}, d.group)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(path), err)
	}
	return c, nil
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit %d", status.ExitStatus())
}
