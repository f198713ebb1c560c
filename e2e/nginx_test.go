package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// nginx is one process here: trees of processes cannot move yet.
var nginx = server{
	name: "nginx", needs: "nginx",
	args: []string{"nginx", "-c", "$FILES/nginx.conf"},
	files: map[string]string{
		"nginx.conf": `
daemon off;
master_process off;
user root;
pid $FILES/pid;
error_log $FILES/error.log;
events { worker_connections 512; }
http {
	access_log off;
	keepalive_requests 1000000;
	client_max_body_size 1g;
	client_body_temp_path $FILES/body;
	proxy_temp_path $FILES/proxy; fastcgi_temp_path $FILES/fastcgi; uwsgi_temp_path $FILES/uwsgi; scgi_temp_path $FILES/scgi;
	server {
		listen $AT:$PORT;
		root $FILES/www;
		location /up { dav_methods PUT; }
	}
}
`,
		"www/small":   "as small as that",
		"www/up/none": "",
	},
	load: loadNginx,
}

// large is how much is loaded up and down across several moves, at a speed that makes
// that take seconds.
const large = 24 << 20

// slowly hands on what it reads, or writes, in pieces with pauses.
type slowly struct {
	r      io.Reader
	onRead func()
}

func (s slowly) Read(p []byte) (int, error) {
	<-time.After(2 * time.Millisecond)
	n, err := s.r.Read(p[:min(len(p), 16<<10)])
	s.onRead()
	return n, err
}

func loadNginx(l *load) {
	content := make([]byte, large)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content) // never fails
	if err := os.WriteFile(filepath.Join(l.dir, "www/large"), content, 0o666); err != nil {
		l.t.Fatal(err)
	}
	url := fmt.Sprintf("http://%v/", l.at)
	for i := range 20 {
		l.client(fmt.Sprint("client ", i), func(c *client) error {
			web := protocol(oneConnection(l), (*http.Protocols).SetHTTP1)
			defer web.CloseIdleConnections()
			for l.goesOn() {
				begun := time.Now()
				resp, err := web.Get(url + "small")
				if err != nil {
					return err
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK || string(body) != "as small as that" {
					return fmt.Errorf("%s: %q: %w", resp.Status, body, err)
				}
				c.answered(begun)
				<-time.After(time.Millisecond)
			}
			return nil
		})
	}
	l.client("downloading client", func(c *client) error {
		web := protocol(oneConnection(l), (*http.Protocols).SetHTTP1)
		defer web.CloseIdleConnections()
		for l.goesOn() {
			resp, err := web.Get(url + "large")
			if err != nil {
				return err
			}
			digest := sha256.New()
			n, err := io.Copy(digest, slowly{resp.Body, func() { c.answered(time.Now()) }})
			if err != nil || n != large || [32]byte(digest.Sum(nil)) != sha256.Sum256(content) {
				return fmt.Errorf("after %d bytes, which are wrong: %w", n, err)
			}
		}
		return nil
	})
	l.client("uploading client", func(c *client) error {
		web := protocol(oneConnection(l), (*http.Protocols).SetHTTP1)
		defer web.CloseIdleConnections()
		for l.goesOn() {
			req, err := http.NewRequestWithContext(l.ctx, http.MethodPut, url+"up/large", slowly{bytes.NewReader(content), func() { c.answered(time.Now()) }})
			if err != nil {
				return err
			}
			req.ContentLength = large
			resp, err := web.Do(req)
			if err != nil {
				return err
			}
			if err := resp.Body.Close(); err != nil || resp.StatusCode/100 != 2 {
				return fmt.Errorf("%s: %w", resp.Status, err)
			}
			if got, err := os.ReadFile(filepath.Join(l.dir, "www/up/large")); err != nil || !bytes.Equal(got, content) {
				return fmt.Errorf("%d bytes, which are wrong, have come up: %w", len(got), err)
			}
		}
		return nil
	})
}
