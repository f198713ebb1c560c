package main

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/migrate"
)

func newWatch(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Follow a migration until it has ended",
		Long: `Shows how a migration goes on until it has ended and both hosts have cleaned up,
then what it cost. The exit code is that of the move: 0 done, 2 refused, 3
aborted. Ctrl-C ends the watching and not the migration.

With --json it prints the migration's document, on a line of its own, each time
that something has changed.`,
		Example: `  migratectl watch 01jd2k4x
  migratectl watch 01jd2k4x --json | jq .progress.dirty_rate_bytes`,
		Args: one("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			d := newDisplay(cmd.ErrOrStderr(), s.json)
			defer d.end()
			each := json.NewEncoder(cmd.OutOrStdout())
			var last migrate.Report
			for r, err := range client.Watch(cmd.Context(), args[0]) {
				switch {
				case err != nil && cmd.Context().Err() != nil:
					return &exitError{exitUndecided, errors.New("interrupted: the migration goes on")}
				case err != nil:
					return err
				}
				last = r
				d.show(r)
				if s.json {
					if err := each.Encode(r); err != nil {
						return err
					}
				}
			}
			d.end()
			if !s.json {
				if err := s.output(cmd).write(last, func(w io.Writer) { summarize(w, last) }); err != nil {
					return err
				}
			}
			return outcome(last)
		},
	}
}
