package coordinator

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/pagurus-project/pagurus/coordinator/clustertest/certtest"
	"github.com/pagurus-project/pagurus/coordinator/member"
	"github.com/pagurus-project/pagurus/trust"
)

func TestValidate(t *testing.T) {
	ca := certtest.New(t)
	good := Config{
		Name: "one", Advertise: netip.MustParseAddr("192.0.2.1"), Expect: 3, Join: []string{"192.0.2.2:7410"},
		DataDir: "/data", Key: make([]byte, member.KeyBytes), Credentials: ca.Credentials(t, trust.RoleCoordinator, "one"),
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no credentials", func(c *Config) { c.Credentials = nil }, "credentials are needed"},
		{"an agent's credentials", func(c *Config) { c.Credentials = ca.Credentials(t, trust.RoleAgent, "one") }, "pagurus://agent/one"},
		{"another's name", func(c *Config) { c.Name = "two" }, "pagurus://coordinator/two"},
		{"no address", func(c *Config) { c.Advertise = netip.Addr{} }, "advertise"},
		{"any address", func(c *Config) { c.Advertise = netip.IPv6Unspecified() }, "advertise"},
		{"two servers", func(c *Config) { c.Expect = 2 }, "odd number"},
		{"fewer than none", func(c *Config) { c.Expect = -1 }, "expect is -1"},
		{"nobody to join", func(c *Config) { c.Join = nil }, "expect = 3"},
		{"nobody to be added by", func(c *Config) { c.Expect, c.Join = 0, nil }, "expect = 0"},
		{"no directory", func(c *Config) { c.DataDir = "" }, "data_dir"},
		{"short key", func(c *Config) { c.Key = c.Key[:16] }, "16 bytes instead of 32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	// All that is wrong is told at once.
	if err := (Config{}).Validate(); strings.Count(err.Error(), "\n") < 4 {
		t.Errorf("got %v", err)
	}
}
