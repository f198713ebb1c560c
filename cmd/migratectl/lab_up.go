package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

func newLabUp(s *settings) *cobra.Command {
	o := lab.Options{Outlive: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a lab and start its daemons",
		Long: `Makes host-a, host-b, ... with the addresses 10.77.0.1, .2, ... and fd77::1, ::2,
..., and client with 10.77.0.250, joined by a bridge; makes certificates; starts
a coordinator on the first hosts and an agent on each. The daemons are those that
lie beside this program. It returns when the coordinators have a leader and all
agents have joined; if that fails, or is interrupted, everything is taken down.`,
		Example: `  migratectl lab up
  migratectl lab up --hosts 5 --name big`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Progress = func(what string) { fmt.Fprintln(cmd.ErrOrStderr(), what) }
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			status := l.Status(cmd.Context())
			return s.output(cmd).write(status, func(w io.Writer) { explainLab(w, status) })
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.Hosts, "hosts", 3, "how many hosts, 1 to 26, besides the client")
	flags.StringVar(&o.Name, "name", "", "name of the lab (default one made up)")
	flags.IntVar(&o.Coordinators, "coordinators", 0, "how many hosts run a coordinator, an odd number (default 3, or what the hosts allow)")
	flags.BoolVar(&o.NoDaemons, "bare", false, "hosts only, without daemons")
	flags.DurationVar(&o.Timeout, "timeout", time.Minute, "how long the daemons may take to find each other")
	return cmd
}

func explainLab(w io.Writer, status lab.Status) {
	fmt.Fprintf(w, "Lab %s is up: ", status.ID)
	if status.Leader == "" {
		fmt.Fprint(w, "hosts without daemons.\n")
	} else {
		fmt.Fprintf(w, "%d hosts, the leader is %s.\n", len(status.Hosts), status.Leader)
	}
	first, second := status.Hosts[0].Name, "HOST"
	if len(status.Hosts) > 1 {
		second = status.Hosts[1].Name
	}
	fmt.Fprintf(w, `
  migratectl lab exec -d %s -- COMMAND     start something, prints its PID
  migratectl move PID --from %s --to %s
  migratectl lab exec client -- COMMAND        be the outside world
  migratectl lab down
`, first, first, second)
}
