package pid1

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Name is argv[0] of a host's first process: the program that makes a lab
// runs itself again under this name.
const Name = "pagurus-lab-host"

// What the process finds open when it begins, besides an empty standard input
// and a log for output.
const (
	OrdersFD = 3 // Config as JSON, then one byte when the host may outlive who made it
	ReportFD = 4 // takes one Report
)

// Config is what the process is told at its start.
type Config struct {
	Lab    string `json:"lab"`
	Host   string `json:"host"`
	Number int    `json:"number"` // which of the lab's hosts this is, from 0
	Hosts  int    `json:"hosts"`  // and how many there are
	Agent  bool   `json:"agent"`  // an agent will run here
	Socket string `json:"socket"` // to listen on for package control
	Logs   string `json:"logs"`   // directory for logs of detached commands
}

// Report is what the process answers.
type Report struct {
	Error string `json:"error,omitempty"`
}

// Main is the program. It never returns.
func Main() {
	// What is started here finds only what it is given.
	for fd := range ReportFD + 1 {
		unix.CloseOnExec(fd)
	}
	orders, report := os.NewFile(OrdersFD, "orders"), os.NewFile(ReportFD, "report")
	decoder := json.NewDecoder(orders)
	h := &host{reaper: newReaper(), daemons: make(map[string]*daemon)}
	listener, err := h.boot(decoder)
	answer := Report{}
	if err != nil {
		answer.Error = err.Error()
	}
	if err := errors.Join(err, json.NewEncoder(report).Encode(answer), report.Close()); err != nil {
		slog.Error("host does not come up", "err", err)
		os.Exit(1)
	}
	go diesWithMaker(io.MultiReader(decoder.Buffered(), orders))
	go h.reaper.run()
	h.serve(listener)
}

// boot turns bare namespaces into a host.
func (h *host) boot(orders *json.Decoder) (*net.UnixListener, error) {
	unix.Umask(0o022)
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	if err := orders.Decode(&h.Config); err != nil {
		return nil, fmt.Errorf("reading what to be: %w", err)
	}
	if os.Getpid() != 1 {
		return nil, errors.New("not the first process of a PID namespace: the lab starts this program by itself")
	}
	if err := unix.Sethostname([]byte(h.Host)); err != nil {
		return nil, fmt.Errorf("setting the host's name: %w", err)
	}
	if err := mountOwn(); err != nil {
		return nil, err
	}
	if err := os.WriteFile("/proc/self/comm", []byte("lab-host"), 0); err != nil {
		return nil, fmt.Errorf("naming this process: %w", err)
	}
	if err := h.countPIDs(); err != nil {
		return nil, err
	}
	if err := joinGroup(groupInit); err != nil {
		return nil, err
	}
	commands, err := openGroup(groupExec)
	if err != nil {
		return nil, err
	}
	h.commands = commands
	return net.ListenUnix("unix", &net.UnixAddr{Name: h.Socket, Net: "unix"})
}

// countPIDs makes the host count PIDs from a place of its own, 10000 behind the
// host before it or as far as there is room (pid_namespaces(7), ns_last_pid).
func (h *host) countPIDs() error {
	content, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return err
	}
	end, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return fmt.Errorf("reading kernel.pid_max: %w", err)
	}
	first := (h.Number + 1) * min(10000, end/(h.Hosts+1))
	last := strconv.Itoa(first - 1)
	if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(last), 0); err != nil {
		return fmt.Errorf("counting PIDs from %d: %w", first, err)
	}
	return nil
}

// diesWithMaker ends the host, and every process in it, when the program that
// made it ends without having let it go.
func diesWithMaker(orders io.Reader) {
	// The newline behind the JSON document comes first.
	if _, err := io.ReadFull(orders, make([]byte, 2)); err != nil {
		slog.Warn("who made this host is gone")
		os.Exit(1)
	}
}
