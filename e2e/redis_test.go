package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var redis = server{
	name: "redis", needs: "redis-server",
	args: []string{"redis-server", "$FILES/redis.conf"},
	files: map[string]string{"redis.conf": `
bind $AT
port $PORT
unixsocket $FILES/redis.sock
protected-mode no
dir $FILES
appendonly yes
save ""
set-proc-title no
`},
	load: loadRedis, after: totalsOfRedis,
}

// A redisConn speaks RESP (redis.io/docs/reference/protocol-spec).
type redisConn struct {
	net.Conn
	r *bufio.Reader
}

// redisClient starts a client.
func redisClient(l *load, name string, f func(*client, redisConn) error) {
	l.connected(name, func(c *client, conn net.Conn) error { return f(c, redisConn{conn, bufio.NewReader(conn)}) })
}

// send sends a command, or several.
func (c redisConn) send(commands ...[]string) error {
	var b strings.Builder
	for _, words := range commands {
		fmt.Fprintf(&b, "*%d\r\n", len(words))
		for _, w := range words {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
		}
	}
	_, err := io.WriteString(c, b.String())
	return err
}

// reply reads one: its words, or the number or state in words. An error of the server's
// is one.
func (c redisConn) reply() ([]string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	kind, rest := line[0], strings.TrimSuffix(line[1:], "\r\n")
	n, _ := strconv.Atoi(rest)
	switch kind {
	case '+', ':':
		return []string{rest}, nil
	case '$':
		if n < 0 {
			return []string{""}, nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(c.r, b)
		return []string{string(b[:n])}, err
	case '*':
		var all []string
		for range n {
			words, err := c.reply()
			if err != nil {
				return nil, err
			}
			all = append(all, words...)
		}
		return all, nil
	}
	return nil, fmt.Errorf("the server says %q", line)
}

func (c redisConn) expect(want ...string) error {
	got, err := c.reply()
	if err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("%q instead of %q", got, want)
	}
	return err
}

// increments is how often clients have had INCR answered, in all loads.
var increments atomic.Int64

func loadRedis(l *load) {
	increments.Store(0)
	for i := range 50 {
		redisClient(l, fmt.Sprint("pipelining client ", i), func(c *client, conn redisConn) error {
			key := fmt.Sprint("key", i)
			for n := 1; l.goesOn(); n++ {
				value := strings.Repeat(fmt.Sprint(key, ".", n, " "), 1+n%40)
				begun := time.Now()
				if err := conn.send([]string{"SET", key, value}, []string{"INCR", "own" + key}, []string{"GET", key}, []string{"INCR", "total"}); err != nil {
					return err
				}
				for _, want := range []string{"OK", fmt.Sprint(n), value} {
					if err := conn.expect(want); err != nil {
						return err
					}
				}
				if _, err := conn.reply(); err != nil {
					return err
				}
				increments.Add(1)
				c.answered(begun)
				<-time.After(2 * time.Millisecond)
			}
			return nil
		})
	}
	subscribed := make(chan struct{}, 2)
	for i := range 2 {
		redisClient(l, fmt.Sprint("subscriber ", i), func(c *client, conn redisConn) error {
			if err := conn.send([]string{"SUBSCRIBE", "news"}); err != nil {
				return err
			}
			if err := conn.expect("subscribe", "news", "1"); err != nil {
				return err
			}
			subscribed <- struct{}{}
			for n := 1; ; n++ {
				got, err := conn.reply()
				switch {
				case err != nil:
					return err
				case slices.Equal(got, []string{"message", "news", "end"}):
					return nil
				case !slices.Equal(got, []string{"message", "news", fmt.Sprint(n)}):
					return fmt.Errorf("%q instead of message %d", got, n)
				}
				c.answered(time.Now())
			}
		})
	}
	redisClient(l, "publisher", func(c *client, conn redisConn) error {
		<-subscribed
		<-subscribed
		return c.numbered(2*time.Millisecond, func(text string) error {
			if err := conn.send([]string{"PUBLISH", "news", text}); err != nil {
				return err
			}
			return conn.expect("2")
		})
	})
	// One waits in BLPOP most of the time, also while the server moves.
	redisClient(l, "blocked client", func(c *client, conn redisConn) error {
		for n := 1; ; n++ {
			if err := conn.send([]string{"BLPOP", "list", "0"}); err != nil {
				return err
			}
			got, err := conn.reply()
			switch {
			case err != nil:
				return err
			case slices.Equal(got, []string{"list", "end"}):
				return nil
			case !slices.Equal(got, []string{"list", fmt.Sprint(n)}):
				return fmt.Errorf("%q instead of element %d", got, n)
			}
			c.answered(time.Now())
		}
	})
	redisClient(l, "pushing client", func(c *client, conn redisConn) error {
		return c.numbered(150*time.Millisecond, func(text string) error {
			if err := conn.send([]string{"RPUSH", "list", text}); err != nil {
				return err
			}
			_, err := conn.reply()
			return err
		})
	})
	redisClient(l, "monitoring client", func(c *client, conn redisConn) error {
		if err := conn.send([]string{"MONITOR"}); err != nil {
			return err
		}
		if err := conn.expect("OK"); err != nil {
			return err
		}
		for l.goesOn() {
			line, err := conn.reply() // what others do, as text
			if err != nil || len(line) != 1 || !strings.Contains(line[0], " [0 ") {
				return fmt.Errorf("%q: %w", line, err)
			}
			c.answered(time.Now())
		}
		return nil
	})
}

// totalsOfRedis compares what the server has counted with what its clients have.
func totalsOfRedis(l *load) error {
	plain, err := l.dial()
	if err != nil {
		return err
	}
	defer plain.Close()
	conn := redisConn{plain, bufio.NewReader(plain)}
	if err := conn.send([]string{"GET", "total"}); err != nil {
		return err
	}
	return conn.expect(fmt.Sprint(increments.Load()))
}
