package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newCancel(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a migration: the process goes on where it was",
		Long: `Cancels a migration that has not been decided yet: the process goes on at the
source, and nothing is left at the destination. After the decision it is too
late, which is an error.`,
		Example: "  migratectl cancel 01jd2k4x",
		Args:    one("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			r, err := client.Cancel(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.output(cmd).write(r, func(w io.Writer) {
				fmt.Fprintf(w, "Migration %s is cancelled: process %d goes on on %s.\n", r.ID, r.PID, r.From)
			})
		},
	}
}
