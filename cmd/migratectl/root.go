package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
)

// settings are the flags that every verb has.
type settings struct {
	server string
	lab    string
	json   bool
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
3 aborted and running at the source, 4 undecided (ask "migratectl show ID").`,
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("migratectl {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&s.server, "server", "", "the coordinator's address, host:port")
	flags.StringVar(&s.lab, "lab", "", "the lab to talk to, by its name")
	flags.BoolVar(&s.json, "json", false, "print one JSON document")
	root.MarkFlagsMutuallyExclusive("server", "lab")
	root.AddCommand(newLab(s))
	return root
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
