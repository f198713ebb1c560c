package pid1

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

// daemonEnv is what a daemon is started with, whatever the caller's is.
var daemonEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}

// A host serves the control socket.
type host struct {
	Config
	reaper   *reaper
	commands *os.File // control group of commands

	mu      sync.Mutex
	daemons map[string]*daemon
}

func (h *host) serve(l *net.UnixListener) {
	for {
		connection, err := l.AcceptUnix()
		if err != nil {
			slog.Error("host stops listening", "err", err)
			os.Exit(1)
		}
		go h.answer(control.NewConn(connection))
	}
}

func (h *host) answer(c *control.Conn) {
	defer c.Close()
	var request control.Request
	if err := c.Receive(&request); err != nil {
		return // a caller that thought better of it
	}
	if e := request.Exec; e != nil && !e.Detach {
		h.command(c, e)
		return
	}
	if err := c.Send(h.reply(&request)); err != nil {
		slog.Warn("caller did not wait for its answer", "err", err)
	}
}

func (h *host) reply(r *control.Request) control.Reply {
	switch {
	case r.Exec != nil:
		return h.detach(r.Exec)
	case r.Kill != nil:
		return kill(r.Kill)
	case r.Daemon != nil:
		return h.daemon(r.Daemon)
	}
	return control.Reply{Error: control.Errorf("unknown request")}
}

// command runs one command to its end, with the caller's streams.
func (h *host) command(c *control.Conn, e *control.Exec) {
	files := c.Files()
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	if len(fds) != 3 {
		_ = c.Send(control.Reply{Error: control.Errorf("%d descriptors came along, not 3", len(fds))})
		return
	}
	child, refusal := h.startCommand(e, fds)
	// From here on only the command holds its streams: their readers see its end.
	for _, f := range files {
		_ = f.Close()
	}
	if refusal != nil {
		_ = c.Send(control.Reply{Error: refusal})
		return
	}
	if err := c.Send(control.Reply{PID: child.pid}); err != nil {
		child.signalGroup(unix.SIGHUP)
		return
	}
	go forwardSignals(c, child)
	<-child.exited
	exit := control.Exit{Code: child.status.ExitStatus()}
	if child.status.Signaled() {
		exit = control.Exit{Signal: child.status.Signal()}
	}
	_ = c.Send(control.Reply{Exit: &exit}) // whoever hung up does not want to know
}

// forwardSignals ends when the caller hangs up, which hangs up on the command,
// or when the connection is closed because the command has ended.
func forwardSignals(c *control.Conn, child *child) {
	for {
		var s control.Signal
		if err := c.Receive(&s); err != nil {
			child.signalGroup(unix.SIGHUP)
			return
		}
		child.signalGroup(s.Signal)
	}
}

func kill(k *control.Kill) control.Reply {
	// 0, -1 and negative numbers are groups; 1 would be this process.
	if k.PID <= 1 {
		return control.Reply{Error: control.Errorf("%d is no process to send signals to", k.PID)}
	}
	if err := unix.Kill(k.PID, k.Signal); err != nil {
		return control.Reply{Error: control.Errorf("sending %s to process %d: %v", unix.SignalName(k.Signal), k.PID, err)}
	}
	return control.Reply{PID: k.PID}
}

func (h *host) daemon(r *control.Daemon) control.Reply {
	if r.Do == control.DaemonRun {
		return h.define(r)
	}
	h.mu.Lock()
	d := h.daemons[r.Name]
	h.mu.Unlock()
	if d == nil {
		return control.Reply{Error: control.Errorf("%s runs no %s", h.Host, r.Name)}
	}
	switch r.Do {
	case control.DaemonStart:
		if err := d.start(); err != nil {
			return control.Reply{Error: control.Errorf("%v", err)}
		}
	case control.DaemonStop:
		d.stop()
	case control.DaemonPID:
	default:
		return control.Reply{Error: control.Errorf("%q is nothing that can be done to a daemon", r.Do)}
	}
	return control.Reply{PID: d.pid()}
}

// define makes a daemon, in the place of one that had its name, and starts it.
func (h *host) define(r *control.Daemon) control.Reply {
	if len(r.Args) == 0 {
		return control.Reply{Error: control.Errorf("no program given for %s", r.Name)}
	}
	group, err := openGroup(groupOfDaemon(r.Name))
	if err != nil {
		return control.Reply{Error: control.Errorf("%v", err)}
	}
	d := &daemon{
		name: r.Name, args: r.Args, env: daemonEnv, group: group, reaper: h.reaper,
		log: filepath.Join(filepath.Dir(h.Socket), r.Name+".log"),
	}
	h.mu.Lock()
	before := h.daemons[r.Name]
	h.daemons[r.Name] = d
	h.mu.Unlock()
	if before != nil {
		before.stop()
		_ = before.group.Close()
	}
	if err := d.start(); err != nil {
		return control.Reply{Error: control.Errorf("%v", err)}
	}
	return control.Reply{PID: d.pid()}
}
