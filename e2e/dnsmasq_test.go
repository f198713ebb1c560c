package e2e

import (
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// dnsmasq answers by UDP, and asks the kernel for devices and addresses by netlink.
var dnsmasq = server{
	name: "dnsmasq", needs: "dnsmasq",
	args: []string{
		"dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--user=root", "--pid-file=", "--log-facility=-", "--no-resolv", "--no-hosts", "--cache-size=100",
		"--listen-address=$AT", "--bind-interfaces", "--port=$PORT", "--address=/moved.test/10.1.2.3", "--txt-record=text.test,found",
	},
	load: func(l *load) {
		for i := range 4 {
			l.client(fmt.Sprint("resolver ", i), func(c *client) error {
				conn := &dns.Conn{Conn: openUDP(l.t, 0, l.at)}
				return c.numbered(4*time.Millisecond, func(text string) error {
					question := new(dns.Msg)
					question.SetQuestion(fmt.Sprintf("n%s.c%d.moved.test.", text, i), dns.TypeA)
					if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
						return err
					}
					if err := conn.WriteMsg(question); err != nil { // once: no answer is an error
						return err
					}
					answer, err := conn.ReadMsg()
					if err != nil {
						return err
					}
					if answer.Id != question.Id || len(answer.Answer) != 1 {
						return fmt.Errorf("%v for question %d", answer, question.Id)
					}
					if a, ok := answer.Answer[0].(*dns.A); !ok || a.Hdr.Name != question.Question[0].Name || a.A.String() != "10.1.2.3" {
						return fmt.Errorf("%v", answer.Answer)
					}
					return nil
				})
			})
		}
	},
}
