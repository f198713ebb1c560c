package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/pagurus-project/pagurus/migrate"
)

// A server sends something at least every KeepAlive; one that has been silent
// for longer than silence is taken for lost.
const (
	KeepAlive = 10 * time.Second
	silence   = 30 * time.Second
)

// Watch yields the report on a migration, at once and after each change, and
// ends after the one in which it is settled. Across a change of leaders it
// goes on by itself. An error is the last thing it yields.
func (c *Client) Watch(ctx context.Context, id string) iter.Seq2[migrate.Report, error] {
	return func(yield func(migrate.Report, error) bool) {
		stopped, settled := false, false
		for !settled {
			err := c.patiently(ctx, func(base string) error {
				return c.stream(ctx, base, id, func(r migrate.Report) bool {
					settled = r.Settled
					stopped = !yield(r, nil)
					return !stopped
				})
			})
			if stopped {
				return
			}
			if err != nil {
				yield(migrate.Report{}, err)
				return
			}
			if !settled && !sleep(ctx, retryMin) {
				yield(migrate.Report{}, ctx.Err())
				return
			}
		}
	}
}

// stream reads one connection's events. A stream that has yielded something
// and then broken off is no error: its successor is asked with new patience.
func (c *Client) stream(ctx context.Context, base, id string, report func(migrate.Report) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lost := time.AfterFunc(silence, cancel)
	defer lost.Stop()
	resp, err := c.send(ctx, http.MethodGet, base+"/v1/migrations/"+url.PathEscape(id)+"/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	told := false
	err = readEvents(resp.Body, func(data []byte) (bool, error) {
		lost.Reset(silence)
		if len(data) == 0 {
			return true, nil
		}
		var r migrate.Report
		if err := json.Unmarshal(data, &r); err != nil {
			return false, fmt.Errorf("reading an event: %w", err)
		}
		told = true
		return report(r) && !r.Settled, nil
	})
	switch {
	case told:
		return nil
	case err == nil:
		err = errors.New("the coordinator ended the stream before it began")
	}
	return again{err}
}

// maxEventBytes bounds a line of an event stream.
const maxEventBytes = 16 << 20

// readEvents reads a stream of server-sent events (WHATWG HTML, section 9.2)
// and calls event with the data of each, and with nothing for a comment, until
// it says that this is enough.
func readEvents(r io.Reader, event func(data []byte) (more bool, err error)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEventBytes)
	var data []byte
	for lines.Scan() {
		line := lines.Bytes()
		var (
			more bool
			err  error
		)
		switch {
		case len(line) == 0 && data != nil:
			more, err = event(data)
			data = nil
		case bytes.HasPrefix(line, []byte(":")):
			more, err = event(nil)
		case bytes.HasPrefix(line, []byte("data:")):
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(bytes.TrimPrefix(line, []byte("data:")), []byte(" "))...)
			if len(data) > maxEventBytes {
				return bufio.ErrTooLong
			}
			continue
		default:
			continue // fields that we do not use
		}
		if err != nil || !more {
			return err
		}
	}
	return lines.Err()
}
