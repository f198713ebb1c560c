// Command guest is the init of a guest of package vm, and its go command.
//
// As init it mounts what programs expect, loads modules, runs the plan's
// programs one after the other with the second serial port as their output,
// reaps whatever is left to it and ends the machine.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/vm"
)

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		if err := handOut(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "go:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "run" {
		if err := runPlan(); err != nil {
			fmt.Fprintf(os.Stdout, "\n%s%v\n", vm.MarkTrap, err)
			os.Exit(1)
		}
		return
	}
	if err := boot(); err != nil {
		fmt.Fprintf(os.Stdout, "\n%s%v\n", vm.MarkTrap, err)
	}
	unix.Sync()
	// qemu ends at a reboot.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Fprintln(os.Stdout, err)
	}
}

// boot is init: it sets the machine up, has the plan carried out and reaps.
func boot() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/tmp"},
		{"tmpfs", "/run"},
		{"cgroup2", "/sys/fs/cgroup"},
		{"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.kind, m.at, err)
		}
	}
	for link, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, "/dev/"+link); err != nil {
			return err
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("setting the loopback interface up: %w", err)
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	for _, std := range []int{0, 1, 2} {
		if err := unix.Dup2(int(port.Fd()), std); err != nil {
			return err
		}
	}
	runner, err := os.StartProcess("/init", []string{"/init", "run"}, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/bin", "HOME=/root", "TMPDIR=/tmp"}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting: %w", err)
		case pid == runner.Pid:
			return nil
		}
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// runPlan loads the modules and runs the programs.
func runPlan() error {
	content, err := os.ReadFile(vm.PlanFile)
	if err != nil {
		return err
	}
	var plan vm.Plan
	if err := json.Unmarshal(content, &plan); err != nil {
		return err
	}
	for _, name := range plan.Modules {
		if err := load(name); err != nil {
			return fmt.Errorf("loading %s: %w", name, err)
		}
	}
	for _, p := range plan.Programs {
		fmt.Fprintf(os.Stdout, "\n%s%s\n", vm.MarkBegin, p.Name)
		cmd := exec.Command(p.Path, p.Args...)
		cmd.Dir = p.Dir
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		err := cmd.Run()
		status := "0"
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			status = exit.String()
		} else if err != nil {
			status = err.Error()
		}
		fmt.Fprintf(os.Stdout, "\n%s%s\n", vm.MarkEnd, status)
	}
	return nil
}

func load(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	flags := 0
	if filepath.Ext(name) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(file.Fd()), "", flags)
}

// handOut is "go build -o FILE PACKAGE" where nothing can be built: it copies
// what was built outside.
func handOut(args []string) error {
	if len(args) != 4 || args[0] != "build" || args[1] != "-o" {
		return fmt.Errorf("this machine has no go command, only what stands in for go build -o FILE PACKAGE, not for %q", args)
	}
	from, err := os.Open(filepath.Join(vm.BuiltDir, args[3]))
	if err != nil {
		return fmt.Errorf("the guest was not given this program: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(args[2], os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}
