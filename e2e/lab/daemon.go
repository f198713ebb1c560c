package lab

import (
	"context"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

// A Daemon is a program that the host's PID 1 keeps running: "agent" on every
// host and "coordinator" on the first ones.
type Daemon struct {
	host *Host
	name string
}

// Daemon names a daemon of the host.
func (h *Host) Daemon(name string) *Daemon { return &Daemon{host: h, name: name} }

// Stop ends the daemon with SIGTERM, later SIGKILL; it stays down.
func (d *Daemon) Stop(ctx context.Context) error {
	_, err := d.do(ctx, control.DaemonStop)
	return err
}

// Start starts a stopped daemon.
func (d *Daemon) Start(ctx context.Context) error {
	_, err := d.do(ctx, control.DaemonStart)
	return err
}

// Kill kills the daemon with SIGKILL. It is started again 200 ms later.
func (d *Daemon) Kill(ctx context.Context) error { return d.Signal(ctx, unix.SIGKILL) }

// Signal sends the daemon a signal.
func (d *Daemon) Signal(ctx context.Context, signal syscall.Signal) error {
	pid, err := d.PID(ctx)
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("%s of %s does not run", d.name, d.host.Name())
	}
	return d.host.Kill(ctx, pid, signal)
}

// PID is the daemon's process, as seen on its host, or 0 while it has none.
func (d *Daemon) PID(ctx context.Context) (int, error) {
	reply, err := d.do(ctx, control.DaemonPID)
	return reply.PID, err
}

// Log is the file that the daemon's output goes to.
func (d *Daemon) Log() string { return d.host.lab.plan.daemonLog(d.host.Name(), d.name) }

// Run replaces the daemon, or adds one, and starts it.
func (d *Daemon) Run(ctx context.Context, args ...string) error {
	_, err := d.do(ctx, control.DaemonRun, args...)
	return err
}

func (d *Daemon) do(ctx context.Context, what string, args ...string) (control.Reply, error) {
	return d.host.ask(ctx, &control.Request{Daemon: &control.Daemon{Name: d.name, Do: what, Args: args}})
}
