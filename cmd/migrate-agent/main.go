package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/agent"
)

// Exit codes. Supervisors rely on them.
const (
	exitDone   = 0
	exitFailed = 1
	exitConfig = 2 // wrong usage or configuration, or a machine that --probe finds wanting
)

// shutdownPatience is how long a shutdown may take, of which most would be
// resuming processes whose memory is being copied.
const shutdownPatience = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends a shutdown that takes too long. The journal has
	// what is undone then.
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
	fmt.Fprintln(stderr, "migrate-agent:", err)
	if _, ok := errors.AsType[failure](err); ok {
		return exitFailed
	}
	return exitConfig
}

// A failure is an error that another start may not have.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

func newCommand(stderr io.Writer) *cobra.Command {
	var (
		path  string
		alone bool
	)
	command := &cobra.Command{
		Use:   "migrate-agent --config FILE | --probe",
		Short: "Move processes from and to this host as the coordinators order",
		Long: `Migrate-agent runs as root on every host whose processes are to move. It carries
out the coordinators' orders, sends the memory of processes that leave straight
to the agent of the other host, and passes the coordinators' API on to whoever
may open its sockets. Stop and start it at will: what has arrived here runs on
without it, and what it had to leave half done the next one takes up.

The configuration is a TOML file:

` + configHelp,
		Example:       "  migrate-agent --config /etc/pagurus/agent.toml",
		Args:          cobra.NoArgs,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if alone {
				return probe(cmd.Context(), agent.Probe)
			}
			return serve(cmd.Context(), path, stderr)
		},
	}
	command.SetVersionTemplate("migrate-agent {{.Version}}\n")
	command.Flags().StringVar(&path, "config", "", "the configuration, a TOML file")
	command.Flags().BoolVar(&alone, "probe", false, "only say, in one line, what this machine lacks: exit code 2")
	command.MarkFlagsOneRequired("config", "probe")
	command.MarkFlagsMutuallyExclusive("config", "probe")
	return command
}

// probe looks at the machine and ends.
func probe(ctx context.Context, look func(context.Context) error) error {
	err := look(ctx)
	if err == nil {
		return nil
	}
	return fmt.Errorf("this machine cannot take part in migrations: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// serve is the life of an agent, from boot to shutdown.
func serve(ctx context.Context, path string, stderr io.Writer) error {
	// Whatever is wrong with the configuration, certificates and the gossip
	// key included, is told before anything is opened.
	settings, err := load(path)
	if err != nil {
		return err
	}
	config, err := settings.agent(stderr)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}

	// The engines look at the machine once; a kernel that lacks something is
	// told here, and not at the first migration.
	groups, err := settings.groups()
	if err != nil {
		return failure{err}
	}
	engines, err := agent.NewEngines(ctx, groups, config.StateDir)
	if err != nil {
		return failure{fmt.Errorf("this machine cannot take part in migrations: %w", err)}
	}
	defer engines.Close()
	config.Source, config.Target = engines.Source(), engines.Target()
	config.Addresses, config.Guests = agent.HostAddresses(), agent.HostGuests()

	// In this order: the journal, ports, gossip, what the journal has, pages
	// and orders from others, sockets for local users.
	a, err := agent.Start(config)
	if err != nil {
		return failure{err}
	}
	config.Logger.Info("up", "version", config.Version, "gossip", a.GossipAddress(), "groups", groups)
	if why := engines.Slow(); why != nil {
		config.Logger.Warn("freezes of large processes take longer than they need to, or relative time-outs start over", "why", why)
	}

	<-ctx.Done()
	config.Logger.Info("shutting down")

	// Politely: migrations that may be given up are, the coordinators hear of
	// it, a word to the others.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
	defer cancel()
	if err := a.Shutdown(ending); err != nil {
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
