package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/migrate"
)

func newShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one migration: its state, what stood in its way, what it cost",
		Long: `Shows one migration, under way or ended. --json prints the same document as "move
--json" does. The exit code is 0 whatever became of the migration: see "state", or
"migratectl watch", whose exit code is that of the move.`,
		Example: "  migratectl show 01jd2k4x\n  migratectl show 01jd2k4x --json",
		Args:    one("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			r, err := client.Migration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.output(cmd).write(r, func(w io.Writer) { describe(w, r) })
		},
	}
}

// describe writes all that is known of a migration.
func describe(w io.Writer, r migrate.Report) {
	fmt.Fprintf(w, "migration %s, %s, asked for at %s\n", r.ID, r.State, r.Created.Local().Format(time.DateTime))
	if p := r.Progress; p != nil {
		fmt.Fprintf(w, "round %d: %s\n", p.Round, speed(p))
	}
	fmt.Fprintln(w)
	summarize(w, r)
	for _, f := range r.Blockers {
		fmt.Fprintln(w, "blocker:", oneLine(f.String()))
	}
}
