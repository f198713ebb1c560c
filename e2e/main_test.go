package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
)

// bed is the one lab of all tests. It takes seconds to make, and that a lab
// still works after everything that tests have done to it is a test by itself.
var bed *testbed.Bed

func TestMain(m *testing.M) {
	lab.Main()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: not root: every test that moves a process is left out")
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// An interrupted run takes its lab down: a lab ends with who made it, but
	// its directory and control groups do not.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var err error
	bed, err = testbed.Up(ctx, lab.Options{Hosts: 3})
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: making a lab:", err)
		return 1
	}
	context.AfterFunc(ctx, func() { _ = bed.Down(context.WithoutCancel(ctx)) })
	code := m.Run()
	if code != 0 {
		saveLogs()
	}
	if err := bed.Down(context.WithoutCancel(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: taking the lab down:", err)
		return 1
	}
	return code
}

// saveLogs keeps what the daemons had to say, where the lab's end does not reach it.
func saveLogs() {
	dir, err := os.MkdirTemp("", "pagurus-e2e-logs-")
	if err == nil {
		err = bed.SaveLogs(dir)
	}
	fmt.Fprintln(os.Stderr, "e2e: the daemons' logs are in", dir, err)
}

// limit bounds what a test waits for.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
