package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/coordinator"
	"github.com/pagurus-project/pagurus/coordinator/logline"
)

// Exit codes. Supervisors rely on them.
const (
	exitDone   = 0
	exitFailed = 1
	exitConfig = 2 // wrong usage or configuration
)

// shutdownPatience is how long a shutdown may take, of which most would be
// handing over leadership to a server that does not answer.
const shutdownPatience = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends a shutdown that takes too long.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := newCommand(stderr)
	command.SetArgs(args)
	command.SetOut(stdout)
	command.SetErr(stderr)
	err := command.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, "migrate-coordinator:", err)
	if _, ok := errors.AsType[failure](err); ok {
		return exitFailed
	}
	return exitConfig
}

// A failure is an error that another start may not have.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

func newCommand(stderr io.Writer) *cobra.Command {
	var path string
	command := &cobra.Command{
		Use:   "migrate-coordinator --config FILE",
		Short: "Keep the record of all migrations, decide them and carry them out",
		Long: `Migrate-coordinator is one of the one or three servers of a cluster that keep the
record of all migrations, replicated by raft, and carry them out by way of the
agents. Operators ask any of them by HTTP, agents by gRPC; the one that leads
answers. It needs no privileges.

The configuration is a TOML file:

` + configHelp,
		Example:       "  migrate-coordinator --config /etc/pagurus/coordinator.toml",
		Args:          cobra.NoArgs,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), path, stderr)
		},
	}
	command.SetVersionTemplate("migrate-coordinator {{.Version}}\n")
	command.Flags().StringVar(&path, "config", "", "the configuration, a TOML file")
	_ = command.MarkFlagRequired("config") // fails only for a flag that does not exist
	return command
}

// serve is the life of a coordinator, from boot to shutdown.
func serve(ctx context.Context, path string, stderr io.Writer) error {
	// Whatever is wrong with the configuration, certificates and the gossip
	// key included, is told before anything is opened.
	settings, err := load(path)
	if err != nil {
		return err
	}
	config, err := settings.coordinator(stderr)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}

	// In this order: ports, gossip, the store and raft on it, the scheduler,
	// gRPC for agents, HTTP for everybody. It answers from then on; a cluster
	// is formed, and a leader elected, in the background.
	server, err := coordinator.Start(config)
	if err != nil {
		return failure{err}
	}
	config.Logger.Info("serving", "version", config.Version,
		"http", server.HTTPAddress(), "gossip", server.GossipAddress(), "expect", config.Expect)

	select {
	case <-ctx.Done():
		config.Logger.Info("shutting down")
	case err = <-server.Failed():
		config.Logger.Error("giving up", logline.KeyError, err)
	}

	// Politely: no more requests, leadership handed over, a word to the others.
	// Migrations go on under the next leader.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
	defer cancel()
	if err := errors.Join(err, server.Shutdown(ending)); err != nil {
		return failure{err}
	}
	return nil
}

// version is what the Go tool has noted in the program.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return info.Main.Version + " " + s.Value[:12]
		}
	}
	return info.Main.Version
}
