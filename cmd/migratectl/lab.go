package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

func newLab(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Several hosts on one machine, to try things out",
		Long: `A lab is several hosts made of one machine: each has a network, processes,
control groups and clocks of its own, its own /run, /dev/shm, /dev/mqueue,
/dev/pts and /srv/local, and daemons of its own. All else is the machine's and
the same for all. The host "client" has no agent and plays the outside world.

Nothing outside of the lab is touched, and "lab down" leaves nothing behind.`,
		Example: `  migratectl lab up --hosts 3
  migratectl lab exec host-a -- ip address
  migratectl lab down`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLabUp(s), newLabExec(s), newLabStatus(s), newLabDown(s))
	return cmd
}

// labID is the lab that the caller names, or "" for the only one.
func (s *settings) labID() string { return cmp.Or(s.lab, os.Getenv("MIGRATE_LAB")) }

// findLab opens the lab that a verb of "lab" is about.
func (s *settings) findLab() (*lab.Lab, error) { return lab.Find(s.labID()) }
