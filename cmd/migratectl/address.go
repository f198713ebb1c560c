package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

func newAddress(s *settings) *cobra.Command {
	address := &cobra.Command{
		Use:   "address",
		Short: "Give hosts service addresses, and take them away",
		Long: `A service address is the local end of connections that are to move: an address
that no host has for itself. The coordinators record which host has it; that
host's agent puts it on the device that is in its network, and announces it.

An address outlives the agent, and is put on again after the host has started
anew. It goes along with a process that has a socket bound to it, or when
"migratectl move --with-address" names it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	address.AddCommand(newAddressAdd(s), newAddressLs(s), newAddressRm(s))
	return address
}

// refusedAddress gives the coordinator's word that an address cannot be added or
// removed the exit code of a refusal: nothing was touched.
func refusedAddress(err error) error {
	if problem, ok := errors.AsType[*api.Error](err); ok {
		switch problem.Code {
		case api.CodeAddressTaken, api.CodeAddressUnfit, api.CodeAddressHeld, api.CodeNotFound, api.CodeInvalid, api.CodeUnreachable:
			return &exitError{exitRefused, err}
		}
	}
	return err
}
