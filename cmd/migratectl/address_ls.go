package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

func newAddressLs(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List service addresses and who has them",
		Example: `  migratectl address ls --json | jq -r '.addresses[] | select(.host == "host-a") | .address'`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Addresses(cmd.Context())
			if err != nil {
				return err
			}
			return s.output(cmd).write(api.Addresses{Addresses: list}, func(w io.Writer) {
				var rows [][]string
				for _, a := range list {
					state := "there"
					if a.Leaving {
						state = "leaving"
					}
					rows = append(rows, []string{a.Prefix.String(), a.Host, state, a.Since.Local().Format("2006-01-02 15:04:05")})
				}
				table(w, []string{"ADDRESS", "HOST", "STATE", "SINCE"}, rows)
			})
		},
	}
}
