package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/pid1"
)

// Starting a host's first process, in this order:
//
//  1. a thread of our own leaves for a new time namespace, which only its
//     children enter, and sets that namespace's clocks
//  2. it forks into the host's control group and into new PID, mount, network,
//     UTS and IPC namespaces
//  3. the child takes its control group as the root of a new cgroup namespace
//     and becomes package pid1
//  4. that reads its configuration and reports

// namespaces are what a host has of its own, besides CLONE_NEWTIME and
// CLONE_NEWCGROUP, which are left for by unshare(2).
const namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// A birth is a first process that has been started and not yet reported.
type birth struct {
	host    string
	process *os.Process
	orders  *os.File // closing it early ends the host
	report  *os.File
}

// spawn starts the first process of a host.
func spawn(h hostPlan, group string, log *os.File) (_ *birth, err error) {
	ordersRead, ordersWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersRead.Close()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, ordersWrite.Close())
	}
	defer reportWrite.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, ordersWrite.Close(), reportRead.Close())
	}
	defer null.Close()
	dir, err := os.Open(group)
	if err != nil {
		return nil, errors.Join(err, ordersWrite.Close(), reportRead.Close())
	}
	defer dir.Close()
	pid, err := inNewTime(h, func() (int, error) {
		return fork(dir, []*os.File{null, log, log, ordersRead, reportWrite}, []string{pid1.Name + ":" + h.Name})
	})
	if err != nil {
		return nil, errors.Join(explain(err), ordersWrite.Close(), reportRead.Close())
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, errors.Join(err, ordersWrite.Close(), reportRead.Close())
	}
	return &birth{host: h.Name, process: process, orders: ordersWrite, report: reportRead}, nil
}

// inNewTime runs fn on a thread whose children have the host's clocks.
func inNewTime(h hostPlan, fn func() (int, error)) (pid int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWTIME); err != nil {
			err = fmt.Errorf("making a time namespace: %w", err)
			return
		}
		offsets := fmt.Sprintf("monotonic %s\nboottime %s\n", offset(h.Monotonic), offset(h.Boottime))
		// Not /proc/self, which is the process's first thread.
		if err = os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte(offsets), 0); err != nil {
			err = fmt.Errorf("setting the clocks of a time namespace: %w", err)
			return
		}
		pid, err = fn()
	}()
	<-done
	return pid, err
}

// offset is how timens_offsets wants it: seconds and nanoseconds.
func offset(d time.Duration) string {
	return fmt.Sprintf("%d %d", d/time.Second, d%time.Second)
}

// configure tells the process who it is. Unless the lab is to outlive this
// program, the pipe stays open as a sign of life.
func (b *birth) configure(c pid1.Config) error {
	if err := json.NewEncoder(b.orders).Encode(c); err != nil {
		return fmt.Errorf("telling %s who it is: %w", b.host, err)
	}
	return nil
}

// await waits for the process's report.
func (b *birth) await() error {
	defer b.report.Close()
	var report pid1.Report
	if err := json.NewDecoder(b.report).Decode(&report); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s died while coming up: its log is below the lab's directory", b.host)
		}
		return fmt.Errorf("waiting for %s: %w", b.host, err)
	}
	if report.Error != "" {
		return fmt.Errorf("%s: %s", b.host, report.Error)
	}
	return nil
}

// close gives the process up. That ends it, unless it was let go.
func (b *birth) close() {
	_ = b.orders.Close() // both may be closed already
	_ = b.report.Close()
}

// letGo lets the host outlive this program.
func (b *birth) letGo() error {
	_, err := b.orders.Write([]byte{1})
	return errors.Join(err, b.orders.Close())
}

// explain says what to do about the errors of making namespaces.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: making namespaces needs CAP_SYS_ADMIN: run this as root, and not in an unprivileged container", err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: too many namespaces: see /proc/sys/user/max_*_namespaces", err)
	}
	return err
}

// checkMachine says in one line what the machine lacks for a lab.
func checkMachine() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root, to make namespaces and control groups: try again with sudo")
	}
	var missing []string
	for kind, option := range map[string]string{
		"time": "CONFIG_TIME_NS", "cgroup": "CONFIG_CGROUPS", "net": "CONFIG_NET_NS",
		"pid": "CONFIG_PID_NS", "uts": "CONFIG_UTS_NS", "ipc": "CONFIG_IPC_NS",
	} {
		if _, err := os.Stat("/proc/self/ns/" + kind); err != nil {
			missing = append(missing, kind+" ("+option+")")
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this kernel has no namespaces for: %s; a lab needs Linux 5.7 or later with all of them built in", strings.Join(missing, ", "))
	}
	return nil
}
