package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

func newCheck(s *settings) *cobra.Command {
	var req api.CheckRequest
	cmd := &cobra.Command{
		Use:   "check PID",
		Short: "Find out whether a process can move, and what stands in the way",
		Long: `Looks at a process, and with --to at the host that it would move to, and lists
everything that stands in the way of a move. Nothing is changed: the process is
stopped for a moment, as a debugger would, to look at it.

Exit code 0 means that it can move, 2 that it cannot.`,
		Example: `  migratectl check 4711
  migratectl check 4711 --to host-b
  migratectl check 4711 --to host-b --json | jq .blockers`,
		Args: one("PID"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.PID, err = parsePID(args[0]); err != nil {
				return err
			}
			client, target, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			if req.From, err = target.source(req.From); err != nil {
				return err
			}
			c, err := client.Check(cmd.Context(), req)
			if err != nil {
				return refused(err)
			}
			if err := s.output(cmd).write(c, func(w io.Writer) { explainCheck(w, req, c) }); err != nil {
				return err
			}
			if !c.Movable {
				return &exitError{exitRefused, fmt.Errorf("process %d cannot move: %s", req.PID, oneEach(c.Blockers))}
			}
			return nil
		},
	}
	addFrom(cmd, &req.From)
	flags := cmd.Flags()
	flags.StringVar(&req.To, "to", "", "the `HOST` that it would move to (default: look at the source only)")
	addWithAddress(cmd, &req.Options)
	flags.BoolVar(&req.Options.AllowDegraded, "allow-degraded", false, "accept what cannot be restored as it was")
	return cmd
}

// addFrom adds the flag that names the source.
func addFrom(cmd *cobra.Command, from *string) {
	cmd.Flags().StringVar(from, "from", "", "the `HOST` that the process is on (default this host; needed outside of it)")
}

func explainCheck(w io.Writer, req api.CheckRequest, c migrate.Check) {
	for _, f := range c.Warnings {
		fmt.Fprintln(w, "warning:", oneLine(f.String()))
	}
	if !c.Movable {
		return // an error, and printed as one
	}
	for _, p := range c.Tree {
		fmt.Fprintf(w, "%d (%s): %s, %s\n", p.PID, program(p.Command), plural(p.Threads, "thread"), size(p.ResidentBytes))
	}
	where := "away"
	if req.To != "" {
		where = "to " + req.To
	}
	fmt.Fprintf(w, "Process %d can move %s.\n", req.PID, strings.TrimSpace(where))
}
