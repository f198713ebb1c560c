package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

// TestMain makes the test binary all that a lab runs: hosts, small programs on
// them, and stand-ins for the daemons.
func TestMain(m *testing.M) {
	Main()
	switch filepath.Base(os.Args[0]) {
	case coordinatorProgram:
		end(fakeCoordinator(os.Args[2]))
	case agentProgram:
		if os.Args[1] == "--probe" {
			end(nil)
		}
		end(fakeAgent(os.Args[2]))
	}
	if len(os.Args) > 2 && os.Args[1] == programFlag {
		end(programs[os.Args[2]](os.Args[3:]))
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e/lab: not root: every test that makes a lab is left out")
	}
	goleak.VerifyTestMain(m)
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const programFlag = "lab-test-program"

// programs run on hosts, or beside the test as programs that make labs.
var programs = map[string]func(args []string) error{
	// clock prints what clock_gettime(2) says, in nanoseconds.
	"clock": func([]string) error {
		for _, id := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_REALTIME} {
			var ts unix.Timespec
			if err := unix.ClockGettime(id, &ts); err != nil {
				return err
			}
			fmt.Fprintln(os.Stdout, ts.Nano())
		}
		return nil
	},
	// listen answers each connection with the host's name, then ends it when
	// the other side does.
	"listen": func(args []string) error {
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "listening")
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, name)
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	},
	// dial connects and prints the first line.
	"dial": func(args []string) error {
		c, err := net.DialTimeout("tcp", args[0], 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		buffer := make([]byte, 64)
		n, err := c.Read(buffer)
		fmt.Fprint(os.Stdout, string(buffer[:n]))
		return err
	},
	// push sends that many bytes and waits until the other side has them all.
	"push": func(args []string) error {
		c, err := net.DialTimeout("tcp", args[0], 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		var n int
		if _, err := fmt.Sscan(args[1], &n); err != nil {
			return err
		}
		start := time.Now()
		if _, err := c.Write(make([]byte, n)); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
		fmt.Fprint(os.Stdout, time.Since(start).Milliseconds())
		return nil
	},
	// signals prints what arrives and ends after a SIGTERM, with status 3.
	"signals": func([]string) error {
		c := make(chan os.Signal, 8)
		signal.Notify(c, unix.SIGINT, unix.SIGTERM, unix.SIGUSR1, unix.SIGHUP)
		fmt.Fprintln(os.Stdout, "ready")
		for s := range c {
			fmt.Fprintln(os.Stdout, unix.SignalName(s.(unix.Signal)))
			if s == unix.SIGTERM {
				os.Exit(3)
			}
		}
		return nil
	},
	// emigrate leaves its control group for the one given and stays there.
	"emigrate": func(args []string) error {
		if err := os.WriteFile(filepath.Join(args[0], "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "arrived")
		return stay()
	},
	// up makes a lab and waits to be killed.
	"up": func(args []string) error {
		_, err := Up(context.Background(), Options{Name: args[0], NoDaemons: true, Outlive: args[1] == "outlive"})
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "up")
		return stay()
	},
}

// stay waits to be killed. An empty select would be a deadlock to the runtime.
func stay() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	<-c
	return nil
}

// program is the command line of one of programs.
func program(t *testing.T, args ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{self, programFlag}, args...)
}

// fakeCoordinator answers GET /v1/status: it leads if it is the first to join,
// and a host has joined when the host's name lies in the lab's directory.
func fakeCoordinator(path string) error {
	var c coordinatorConfig
	if _, err := toml.DecodeFile(path, &c); err != nil {
		return err
	}
	return serveStatus(func() api.Status {
		s := api.Status{Name: c.Name, Leader: "host-a", Leads: c.Name == "host-a"}
		found, _ := filepath.Glob(filepath.Join(filepath.Dir(c.GossipKeyFile), "*.joined"))
		for _, f := range found {
			s.Hosts = append(s.Hosts, api.HostStatus{Name: strings.TrimSuffix(filepath.Base(f), ".joined"), Status: joined})
		}
		return s
	}, c.HTTPSocket)
}

// fakeAgent joins, unless the file of that name says that it must not.
func fakeAgent(path string) error {
	var c agentConfig
	if _, err := toml.DecodeFile(path, &c); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(os.Args[0]), "refuse-"+c.Host)); err == nil {
		return errors.New("this agent never joins")
	}
	labDir := filepath.Dir(c.GossipKeyFile)
	if err := os.WriteFile(filepath.Join(labDir, c.Host+".joined"), nil, 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(c.StateDir, 0o755); err != nil {
		return err
	}
	return serveStatus(func() api.Status {
		s, _ := askStatus(context.Background(), filepath.Join(labDir, "host-a", "coordinator.sock"))
		return s
	}, c.Sockets...)
}

func serveStatus(status func() api.Status, sockets ...string) error {
	failed := make(chan error)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(status())
	})
	for _, path := range sockets {
		_ = os.Remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		go func() { failed <- http.Serve(l, mux) }()
	}
	return <-failed
}
