package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

// A Host is one host of a lab: host-a, host-b, ..., client or switch.
type Host struct {
	lab  *Lab
	plan hostPlan
}

// Host looks a host up by its name.
func (l *Lab) Host(name string) (*Host, error) {
	h, ok := l.plan.host(name)
	if !ok {
		var names []string
		for _, h := range l.plan.Hosts {
			names = append(names, h.Name)
		}
		return nil, fmt.Errorf("lab %s has no host %q, but %s", l.plan.ID, name, strings.Join(names, ", "))
	}
	return &Host{lab: l, plan: h}, nil
}

// Hosts are the hosts that have an agent.
func (l *Lab) Hosts() []*Host {
	var hosts []*Host
	for _, h := range l.plan.Hosts {
		if h.Agent {
			hosts = append(hosts, &Host{lab: l, plan: h})
		}
	}
	return hosts
}

// Name is the host's name.
func (h *Host) Name() string { return h.plan.Name }

// Address is the host's IPv4 address.
func (h *Host) Address() netip.Addr { return h.plan.Address.Addr() }

// Address6 is the host's IPv6 address.
func (h *Host) Address6() netip.Addr { return h.plan.Address6.Addr() }

// Kill sends a signal to a process of the host.
func (h *Host) Kill(ctx context.Context, pid int, signal syscall.Signal) error {
	_, err := h.ask(ctx, &control.Request{Kill: &control.Kill{PID: pid, Signal: signal}})
	return err
}

func (h *Host) dial() (*control.Conn, error) {
	connection, err := control.Dial(h.lab.plan.control(h.Name()))
	if err != nil {
		return nil, fmt.Errorf("%s does not answer, see %s: %w", h.Name(), h.lab.plan.hostFile(h.Name(), "init.log"), err)
	}
	return connection, nil
}

// ask sends a request that has one reply.
func (h *Host) ask(ctx context.Context, r *control.Request) (control.Reply, error) {
	connection, err := h.dial()
	if err != nil {
		return control.Reply{}, err
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, connection.Abort)()
	if err := connection.Send(r); err != nil {
		return control.Reply{}, fmt.Errorf("asking %s: %w", h.Name(), err)
	}
	reply, err := receive(connection)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return reply, err
}

func receive(c *control.Conn) (control.Reply, error) {
	var reply control.Reply
	if err := c.Receive(&reply); err != nil {
		return reply, fmt.Errorf("waiting for a host's answer: %w", err)
	}
	if reply.Error != nil {
		return reply, reply.Error
	}
	return reply, nil
}

// Root is a directory in which this program sees the host's file system, its
// own /proc, /run and /sys/fs/cgroup included, for as long as the host is up.
func (h *Host) Root() (string, error) {
	pid, err := h.lab.initPID(h.Name())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/root", pid), nil
}
