package e2e

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// memcached serves with several threads, which share UDP sockets, too.
var memcached = server{
	name: "memcached", needs: "memcached",
	args: []string{"memcached", "-u", "root", "-l", "$AT", "-p", "$PORT", "-U", "$PORT", "-t", "4"},
	load: func(l *load) {
		for i := range 20 {
			l.connected(fmt.Sprint("client ", i), func(c *client, conn net.Conn) error {
				r := bufio.NewReader(conn)
				expect := func(lines ...string) error {
					for _, want := range lines {
						if got, err := r.ReadString('\n'); err != nil || got != want+"\r\n" {
							return fmt.Errorf("%q instead of %q: %w", got, want, err)
						}
					}
					return nil
				}
				key := fmt.Sprint("key", i)
				fmt.Fprintf(conn, "set n%s 0 0 1\r\n0\r\n", key)
				if err := expect("STORED"); err != nil {
					return err
				}
				for n := 1; l.goesOn(); n++ {
					value := strings.Repeat(fmt.Sprint(key, ".", n, " "), 1+n%500)
					begun := time.Now()
					if _, err := fmt.Fprintf(conn, "set %s 7 0 %d\r\n%s\r\nget %s\r\nincr n%s 1\r\n", key, len(value), value, key, key); err != nil {
						return err
					}
					if err := expect("STORED", fmt.Sprintf("VALUE %s 7 %d", key, len(value)), value, "END", fmt.Sprint(n)); err != nil {
						return err
					}
					c.answered(begun)
					<-time.After(time.Millisecond)
				}
				return nil
			})
		}
	},
}
