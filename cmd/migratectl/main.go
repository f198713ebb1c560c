package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

func main() {
	lab.Main() // in a lab host this program is PID 1, and stays there
	os.Exit(run())
}

// run ends a verb's context at the first SIGINT or SIGTERM, so that it can put
// things in order.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	root := newRoot()
	return exitCode(root.ExecuteContext(ctx), root.ErrOrStderr())
}
