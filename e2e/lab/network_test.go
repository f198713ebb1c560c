package lab

import (
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNetwork(t *testing.T) {
	machine := func() []string {
		cards, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range cards {
			names = append(names, fmt.Sprint(c.Name, c.Index, c.Flags))
		}
		return names
	}
	before := machine()
	l := bare(t, 2)
	ctx := t.Context()
	a, client := host(t, l, "host-a"), host(t, l, clientName)
	for _, name := range []string{"host-a", "host-b"} {
		h := host(t, l, name)
		p, err := h.Start(ctx, Command{Args: program(t, "listen", ":80")})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" listens", func() bool { return content(t, p.Log) != "" })
		for _, from := range []*Host{host(t, l, "host-a"), host(t, l, "host-b"), client} {
			for _, address := range []string{h.Address().String(), h.Address6().String(), "127.0.0.1"} {
				if address == "127.0.0.1" && from.Name() != name {
					continue
				}
				if got := run(t, from, program(t, "dial", net.JoinHostPort(address, "80"))...); got != name {
					t.Errorf("from %s to %s: reached %q", from.Name(), address, got)
				}
			}
		}
	}
	if diff := cmp.Diff(before, machine()); diff != "" {
		t.Errorf("network cards of the machine:\n%s", diff)
	}

	carrier := func() string { return run(t, a, "cat", "/sys/class/net/eth0/carrier") }
	if err := a.SetLink(false); err != nil {
		t.Fatal(err)
	}
	if got := carrier(); got != "0" {
		t.Errorf("unplugged, the carrier is %s", got)
	}
	if _, err := client.Exec(ctx, program(t, "dial", "10.77.0.1:80")...); err == nil {
		t.Error("reached a host that is unplugged")
	}
	if err := a.SetLink(true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "plugged in again", func() bool {
		_, err := client.Exec(ctx, program(t, "dial", "10.77.0.1:80")...)
		return err == nil
	})

	const bytes, rate = 3 << 20, 10 << 20 // 300 ms, less what the bucket holds
	push := func(from *Host, to string) int {
		ms, err := strconv.Atoi(run(t, from, program(t, "push", to, strconv.Itoa(bytes))...))
		if err != nil {
			t.Fatal(err)
		}
		return ms
	}
	for range 2 { // a limit replaces another
		if err := a.LimitLink(rate); err != nil {
			t.Fatal(err)
		}
	}
	if ms := push(client, "10.77.0.1:80"); ms < 250 {
		t.Errorf("3 MiB to host-a took %d ms at 10 MiB/s", ms)
	}
	if ms := push(a, "10.77.0.2:80"); ms < 250 {
		t.Errorf("3 MiB from host-a took %d ms at 10 MiB/s", ms)
	}
	for range 2 {
		if err := a.LimitLink(0); err != nil {
			t.Fatal(err)
		}
	}
	if ms := push(client, "10.77.0.1:80"); ms >= 250 {
		t.Errorf("3 MiB took %d ms without a limit", ms)
	}
}
