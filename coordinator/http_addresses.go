package coordinator

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pagurus-project/pagurus/coordinator/addresses"
	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

func (s *Server) registerAddresses(a huma.API) {
	huma.Register(a, huma.Operation{
		OperationID: "addresses", Method: http.MethodGet, Path: "/v1/addresses", Summary: "All service addresses",
	}, func(context.Context, *struct{}) (*document[api.Addresses], error) {
		return answer(api.Addresses{Addresses: append([]migrate.Address{}, s.addresses.Addresses()...)}, nil)
	})

	huma.Register(a, huma.Operation{
		OperationID: "add-address", Method: http.MethodPost, Path: "/v1/addresses", Summary: "Give a host a service address",
		Description: "Answers when the host has it. To add it once more to the same host changes nothing.",
	}, func(ctx context.Context, in *struct{ Body api.AddressRequest }) (*document[migrate.Address], error) {
		p, err := netip.ParsePrefix(in.Body.Address)
		if err != nil {
			return nil, invalid(errors.New("address: an address and the length of its network's prefix are needed, as in 10.0.0.100/24"))
		}
		if err := migrate.ValidateAddress(p); err != nil {
			return nil, invalid(err)
		}
		return answer(s.addresses.Add(ctx, p, in.Body.Host))
	})

	huma.Register(a, huma.Operation{
		OperationID: "remove-address", Method: http.MethodDelete, Path: "/v1/addresses/{address}", Summary: "Take a service address away",
		Description: "Answers when the host has it no longer, or, with leaving set, when it does not answer or cannot take it off: " +
			"then it will be told again.",
	}, func(ctx context.Context, in *struct {
		Address string `path:"address" maxLength:"64" doc:"without the length of its network's prefix"`
	},
	) (*document[migrate.Address], error) {
		address, err := netip.ParseAddr(in.Address)
		if err != nil {
			return nil, invalid(err)
		}
		return answer(s.addresses.Remove(ctx, address))
	})
}

// problemOfAddress says in HTTP what is wrong with a request about an address, or
// returns nil.
func problemOfAddress(err error) error {
	switch {
	case errors.Is(err, addresses.ErrNoSuchAddress):
		return newProblem(http.StatusNotFound, api.CodeNotFound, err.Error())
	case errors.Is(err, migrate.ErrAddressHeld):
		return newProblem(http.StatusConflict, api.CodeAddressHeld, err.Error())
	case errors.Is(err, migrate.ErrAddressTaken):
		return newProblem(http.StatusConflict, api.CodeAddressTaken, err.Error())
	case errors.Is(err, addresses.ErrUnfit):
		return newProblem(http.StatusConflict, api.CodeAddressUnfit, err.Error())
	case errors.Is(err, addresses.ErrPending):
		return newProblem(http.StatusBadGateway, api.CodeAddressPending, err.Error())
	case errors.Is(err, addresses.ErrUnreachable):
		return newProblem(http.StatusBadGateway, api.CodeUnreachable, err.Error())
	}
	return nil
}
