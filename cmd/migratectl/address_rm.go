package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"
)

func newAddressRm(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "rm ADDRESS",
		Short: "Take a service address away",
		Long: `Takes a service address from the host that has it. A host that does not answer
has it until it has said that it has not: the address is listed as leaving.`,
		Example: `  migratectl address rm 10.77.0.100`,
		Args:    one("ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			address, err := netip.ParseAddr(args[0])
			if err != nil {
				return &exitError{exitRefused, fmt.Errorf("%q is no address", args[0])}
			}
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			a, err := client.RemoveAddress(cmd.Context(), address.String())
			if err != nil {
				return refusedAddress(err)
			}
			return s.output(cmd).write(a, func(w io.Writer) {
				if a.Leaving {
					fmt.Fprintf(w, "%s leaves %s as soon as its agent has taken it off.\n", address, a.Host)
					return
				}
				fmt.Fprintf(w, "%s is no longer on %s.\n", address, a.Host)
			})
		},
	}
}
