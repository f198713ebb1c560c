package pid1

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A reaper starts processes and collects them and every orphan of the host.
type reaper struct {
	signals chan os.Signal

	mu       sync.Mutex // held across fork and across wait
	children map[int]*child
}

// A child is a process that this one has started itself.
type child struct {
	reaper *reaper
	pid    int
	exited chan struct{} // closed when status is set
	status syscall.WaitStatus
}

// newReaper also keeps the process from dying of what reaches every host's
// init: Notify, unlike Ignore, is not inherited by the children.
func newReaper() *reaper {
	r := &reaper{signals: make(chan os.Signal, 8), children: make(map[int]*child)}
	signal.Notify(r.signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	return r
}

// run collects for ever.
func (r *reaper) run() {
	for s := range r.signals {
		if s == unix.SIGCHLD {
			r.collect()
		}
	}
}

// collect takes everything that has ended: one SIGCHLD may stand for many.
func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
		if c, ok := r.children[pid]; ok {
			delete(r.children, pid)
			c.status = status
			close(c.exited)
		}
	}
}

// start runs the program at path in the given control group.
func (r *reaper) start(path string, args []string, attr *syscall.ProcAttr, group *os.File) (*child, error) {
	attr.Sys = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return nil, err
	}
	c := &child{reaper: r, pid: pid, exited: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// signal sends to the child, or to nobody once it has been collected: its PID
// may then be another's.
func (c *child) signal(s syscall.Signal) { c.kill(c.pid, s) }

// signalGroup sends to the child's process group, which has its PID for a name.
func (c *child) signalGroup(s syscall.Signal) { c.kill(-c.pid, s) }

func (c *child) kill(whom int, s syscall.Signal) {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if _, ok := c.reaper.children[c.pid]; ok {
		_ = unix.Kill(whom, s) // fails only if there is nobody left
	}
}
