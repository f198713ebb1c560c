package main

import (
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

func newAddressAdd(s *settings) *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use:   "add ADDRESS/LENGTH --host HOST",
		Short: "Give a host a service address",
		Long: `Gives a host a service address, with the length of its network's prefix. The host
has it when the command returns. Repeated, it changes nothing.`,
		Example: `  migratectl address add 10.77.0.100/24 --host host-a`,
		Args:    one("ADDRESS/LENGTH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := netip.ParsePrefix(args[0])
			if err == nil {
				err = migrate.ValidateAddress(p)
			} else {
				err = fmt.Errorf("%q is no address with the length of its network's prefix, as in 10.77.0.100/24", args[0])
			}
			if err != nil {
				return &exitError{exitRefused, err}
			}
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			a, err := client.AddAddress(cmd.Context(), api.AddressRequest{Address: p.String(), Host: host})
			if err != nil {
				return refusedAddress(err)
			}
			return s.output(cmd).write(a, func(w io.Writer) { fmt.Fprintf(w, "%s is on %s.\n", a.Prefix.Addr(), a.Host) })
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "the host that is to have it")
	_ = cmd.MarkFlagRequired("host") // it is there
	return cmd
}
