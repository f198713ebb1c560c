package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/e2e/testbed"
)

// oneConnection is a client of HTTP that never connects twice.
func oneConnection(l *load) *http.Client {
	var dialed atomic.Int32
	return &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: 1, DisableCompression: true, Protocols: new(http.Protocols),
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if dialed.Add(1) > 1 {
				return nil, errEnded
			}
			return l.dial()
		},
	}}
}

// protocol has a client of oneConnection speak just that.
func protocol(c *http.Client, set func(*http.Protocols, bool)) *http.Client {
	set(c.Transport.(*http.Transport).Protocols, true)
	return c
}

// goServer is what Go's own library makes of it: HTTP/2 with many streams on one
// connection, and WebSockets.
var goServer = server{
	name: "go", needs: "bash",
	args: []string{"$BIN/workload", "web", "-at", "$AT:$PORT"},
	load: func(l *load) {
		for i := range 4 {
			web := protocol(oneConnection(l), (*http.Protocols).SetUnencryptedHTTP2)
			for j := range 10 {
				l.client(fmt.Sprintf("stream %d.%d", i, j), func(c *client) error {
					for n := 1; l.goesOn(); n++ {
						text := strings.Repeat(fmt.Sprintf("%s %d ", c.name, n), 1+n%1000)
						begun := time.Now()
						resp, err := web.Post(fmt.Sprintf("http://%v/echo", l.at), "text/plain", strings.NewReader(text))
						if err != nil {
							return err
						}
						body, err := io.ReadAll(resp.Body)
						if err != nil || !strings.HasPrefix(string(body), "HTTP/2.0 "+text+" ") {
							return fmt.Errorf("%s: %.200q instead of %.200q: %w", resp.Status, body, text, err)
						}
						c.answered(begun)
						<-time.After(2 * time.Millisecond)
					}
					return nil
				})
			}
		}
		for i := range 10 {
			l.client(fmt.Sprint("WebSocket ", i), func(c *client) error {
				conn, _, err := websocket.Dial(l.ctx, fmt.Sprintf("ws://%v/socket", l.at), &websocket.DialOptions{HTTPClient: protocol(oneConnection(l), (*http.Protocols).SetHTTP1)})
				if err != nil {
					return err
				}
				for n := 1; l.goesOn(); n++ {
					text := strings.Repeat(fmt.Sprintf("%s %d ", c.name, n), 1+n%1000)
					begun := time.Now()
					if err := conn.Write(l.ctx, websocket.MessageText, []byte(text)); err != nil {
						return err
					}
					if _, got, err := conn.Read(l.ctx); err != nil || string(got) != text {
						return fmt.Errorf("%.200q instead of %.200q: %w", got, text, err)
					}
					c.answered(begun)
					<-time.After(2 * time.Millisecond)
				}
				return conn.Close(websocket.StatusNormalClosure, "")
			})
		}
	},
}

// node sends events over connections on which clients say nothing.
var node = server{
	name: "node", needs: "node",
	args: []string{"node", "$TESTDATA/events.js", "$AT", "$PORT"},
	load: func(l *load) {
		for i := range 20 {
			l.client(fmt.Sprint("listener ", i), func(c *client) error {
				path := fmt.Sprint("/", i)
				resp, err := protocol(oneConnection(l), (*http.Protocols).SetHTTP1).Get(fmt.Sprintf("http://%v%s", l.at, path))
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				lines := bufio.NewReader(resp.Body)
				last := time.Now()
				for n := 1; l.goesOn(); n++ {
					for _, want := range []string{fmt.Sprintf("data: %d %s\n", n, path), "\n"} {
						if got, err := lines.ReadString('\n'); err != nil || got != want {
							return fmt.Errorf("%q instead of %q: %w", got, want, err)
						}
					}
					c.answered(last)
					last = time.Now()
				}
				return nil
			})
		}
	},
}

// asyncio is Python's way to serve many connections in one thread.
var asyncio = server{
	name: "asyncio", needs: "python3",
	args: []string{"python3", "$TESTDATA/asyncio_count.py", "$AT", "$PORT", "$ASK"}, // which may start it under another name
	load: func(l *load) {
		for i := range 20 {
			l.connected(fmt.Sprint("client ", i), func(c *client, conn net.Conn) error {
				lines := bufio.NewReader(conn)
				for n := 1; l.goesOn(); n++ {
					begun := time.Now()
					line := fmt.Sprintf("line %d of %d", n, i)
					if _, err := fmt.Fprintln(conn, line); err != nil {
						return err
					}
					if got, err := lines.ReadString('\n'); err != nil || got != fmt.Sprintf("%s %d\n", line, n) {
						return fmt.Errorf("%q instead of %q: %w", got, line, err)
					}
					c.answered(begun)
					<-time.After(time.Millisecond)
				}
				return nil
			})
		}
	},
}

// iperf fills the network in both directions.
var iperf = server{
	name: "iperf3", needs: "iperf3",
	args: []string{"iperf3", "-s", "-B", "$AT", "-p", "$PORT"},
	load: func(l *load) {
		l.client("iperf3", func(c *client) error {
			const seconds = 12
			h, err := bed.Lab.Host("client")
			if err != nil {
				return err
			}
			begun := time.Now()
			p, err := h.Start(l.ctx, lab.Command{Args: []string{"iperf3", "--json", "--bidir", "-t", fmt.Sprint(seconds), "-c", l.at.Addr().String(), "-p", fmt.Sprint(l.at.Port())}, Dir: l.dir})
			if err != nil {
				return err
			}
			var result struct {
				Error string
				End   struct {
					Sum struct {
						Seconds, Bytes float64
						Retransmits    int
					} `json:"sum_sent"`
					Back struct{ Seconds, Bytes float64 } `json:"sum_received_bidir_reverse"`
				}
			}
			err = testbed.Await(l.ctx, "the result of iperf3", func() (bool, error) {
				if time.Since(begun) > time.Second {
					c.answered(time.Now())
				}
				content, err := os.ReadFile(p.Log)
				return err == nil && json.Unmarshal(content, &result) == nil, err
			})
			if err != nil {
				return err
			}
			if result.Error != "" || result.End.Sum.Seconds < seconds-1 || result.End.Back.Bytes == 0 {
				return fmt.Errorf("%+v", result)
			}
			l.t.Logf("%.0f MB went there and %.0f MB back in %.1f s; %d segments again", result.End.Sum.Bytes/1e6, result.End.Back.Bytes/1e6, result.End.Sum.Seconds, result.End.Sum.Retransmits)
			return nil
		})
	},
}
