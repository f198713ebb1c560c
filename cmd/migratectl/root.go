package main

import (
	"crypto/tls"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/trust"
)

// settings are the flags that every verb has.
type settings struct {
	server string
	lab    string
	json   bool

	tlsFiles trust.Files
	patience time.Duration
}

// tls are the credentials for a coordinator that is reached by address.
func (s *settings) tls() (*tls.Config, error) {
	credentials, err := trust.Load(s.files())
	if err != nil {
		return nil, fmt.Errorf("loading the certificate that --server needs (see --cert, --key, --ca): %w", err)
	}
	return credentials.Client(trust.AllowRoles(trust.RoleCoordinator)), nil
}

func newRoot() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:   "migratectl",
		Short: "Move running processes between hosts",
		Long: `Migratectl moves running processes between hosts: the whole tree below a PID,
with its memory, threads, files and connections, while it runs.

To try it on one machine, make a lab of three hosts:

  migratectl lab up
  migratectl lab exec -d host-a -- sleep 1000
  migratectl move PID --from host-a --to host-b
  migratectl lab down

It talks to the coordinator that --server or MIGRATE_SERVER names, else to the
lab that --lab or MIGRATE_LAB names, else by way of this host's agent, else to
the only lab of this machine.

Exit codes: 0 done, 1 wrong usage or no answer, 2 refused and nothing touched,
3 aborted and as before at the source, 4 undecided (ask "migratectl show ID").`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w (see \"%s --help\")", err, cmd.CommandPath())
	})
	root.SetUsageTemplate(root.UsageTemplate() + `{{if .HasParent}}
"migratectl --help" says how a coordinator is found and what exit codes mean.
{{end}}`)
	root.SetVersionTemplate("migratectl {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&s.server, "server", "", "address of a coordinator, host:port (or several, with commas), or the path of its socket")
	flags.StringVar(&s.lab, "lab", "", "the lab to talk to, by its name")
	flags.StringVar(&s.tlsFiles.CA, "ca", "", "authority to trust, a PEM file (default $MIGRATE_CA or /etc/pagurus/ca.pem)")
	flags.StringVar(&s.tlsFiles.Cert, "cert", "", "certificate to show (default $MIGRATE_CERT or /etc/pagurus/operator.pem)")
	flags.StringVar(&s.tlsFiles.Key, "key", "", "its key (default $MIGRATE_KEY or /etc/pagurus/operator.key)")
	flags.DurationVar(&s.patience, "patience", api.DefaultPatience, "how long to try when no coordinator answers")
	flags.BoolVar(&s.json, "json", false, "print one JSON document")
	root.MarkFlagsMutuallyExclusive("server", "lab")
	root.AddCommand(
		newMove(s), newCheck(s), newPs(s), newHosts(s),
		newMigrations(s), newShow(s), newWatch(s), newCancel(s),
		newAddress(s), newLab(s),
	)
	return root
}

// one is a verb's only argument.
func one(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("one %s is needed, not %d: %s", what, len(args), cmd.UseLine())
		}
		return nil
	}
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
