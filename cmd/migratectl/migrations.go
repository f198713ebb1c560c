package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

func newMigrations(s *settings) *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "migrations",
		Short: "List migrations, the oldest first",
		Example: `  migratectl migrations
  migratectl migrations --state ABORTED`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted := migrate.State(strings.ToUpper(state))
			if wanted != "" && !wanted.Valid() {
				return fmt.Errorf("%q is not a state of a migration, as DONE, ABORTED or PRECOPY are", state)
			}
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Migrations(cmd.Context(), wanted)
			if err != nil {
				return err
			}
			return s.output(cmd).write(api.Migrations{Migrations: list}, func(w io.Writer) {
				var rows [][]string
				for _, r := range list {
					rows = append(rows, []string{
						r.ID, r.Created.Local().Format(time.DateTime), strconv.Itoa(r.PID), program(r.Command), r.From, r.To,
						string(r.State), duration(r.DowntimeMS), duration(r.TotalMS), why(r),
					})
				}
				table(w, []string{"ID", "CREATED", "PID", "COMMAND", "FROM", "TO", "STATE", "DOWNTIME", "TOTAL", "REASON"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this `STATE`")
	return cmd
}

// why is why a migration ended as it did, in a few words.
func why(r migrate.Report) string {
	if len(r.Blockers) == 0 {
		return r.Reason
	}
	var codes []string
	for _, f := range r.Blockers {
		codes = append(codes, string(f.Code))
	}
	return strings.Join(codes, ", ")
}
