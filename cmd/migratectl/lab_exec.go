package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

// started is what "lab exec -d --json" prints.
type started struct {
	PID  int    `json:"pid"`
	Host string `json:"host"`
	Log  string `json:"log"`
}

func newLabExec(s *settings) *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:   "exec [-d] HOST -- COMMAND [ARGUMENT]...",
		Short: "Run a command on a host of the lab",
		Long: `Runs a command on a host of the lab, with this program's standard streams,
environment and working directory. Signals are passed on, and the exit status is
the command's: 128 + N if signal N ended it, 127 if there is no such command, 126
if it cannot be executed.

With -d the command is left to itself, as a child of the host's PID 1 and in a
session of its own: it reads nothing, and its output goes to a log file that all
hosts see. Only its PID is printed, as it is on that host.`,
		Example: `  migratectl lab exec host-a -- ps -ef
  pid=$(migratectl lab exec -d host-a -- python3 -m http.server)
  migratectl lab exec client -- curl http://10.77.0.1:8000/`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("a host and a command are missing, as in: migratectl lab exec host-a -- hostname")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args[0], args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return errors.New("a command is missing, as in: migratectl lab exec " + name + " -- hostname")
			}
			l, err := s.findLab()
			if err != nil {
				return err
			}
			h, err := l.Host(name)
			if err != nil {
				return err
			}
			if detach {
				return s.execDetached(cmd, h, command)
			}
			return execAttached(cmd.Context(), h, command)
		},
	}
	// What follows the host is the command's, also if it looks like a flag.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait for the command, print its PID")
	return cmd
}

func (s *settings) execDetached(cmd *cobra.Command, h *lab.Host, command []string) error {
	p, err := h.Start(cmd.Context(), lab.Command{Args: command})
	if err != nil {
		return err
	}
	return s.output(cmd).write(started{PID: p.PID, Host: h.Name(), Log: p.Log}, func(w io.Writer) {
		fmt.Fprintln(w, p.PID)
	})
}

// execAttached lets the command decide what a signal means.
func execAttached(ctx context.Context, h *lab.Host, command []string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	status, err := h.Run(context.WithoutCancel(ctx), lab.Command{
		Args: command, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals,
	})
	if status != 0 {
		return &exitError{code: status, err: err}
	}
	return err
}
