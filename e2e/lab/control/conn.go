package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// A Conn is one end of a connection.
type Conn struct {
	unix     *net.UnixConn
	incoming *incoming
	decoder  *json.Decoder
}

// NewConn takes over a connected unix stream socket.
func NewConn(unix *net.UnixConn) *Conn {
	in := &incoming{unix: unix}
	return &Conn{unix: unix, incoming: in, decoder: json.NewDecoder(in)}
}

// Dial connects to the socket at path.
func Dial(path string) (*Conn, error) {
	unix, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return NewConn(unix), nil
}

// Send writes a message, and with it descriptors.
func (c *Conn) Send(message any, files ...*os.File) error {
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if len(files) > 0 {
		// A stream may take a long message in pieces. The descriptors travel
		// with its first byte, which comes first whatever happens to the rest.
		if err := c.sendFiles(line[:1], files); err != nil {
			return fmt.Errorf("passing descriptors: %w", err)
		}
		line = line[1:]
	}
	_, err = c.unix.Write(line)
	return err
}

func (c *Conn) sendFiles(first []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Not f.Fd(): it would make the caller's descriptor blocking.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	_, _, err := c.unix.WriteMsgUnix(first, syscall.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	return err
}

// Receive reads the next message. It returns io.EOF if there is none.
func (c *Conn) Receive(message any) error { return c.decoder.Decode(message) }

// Files hands over the descriptors that have come so far.
func (c *Conn) Files() []*os.File {
	files := c.incoming.files
	c.incoming.files = nil
	return files
}

// Abort makes whoever is in Send or Receive return, now and from now on.
func (c *Conn) Abort() { _ = c.unix.SetDeadline(time.Unix(1, 0)) }

// Close closes the connection and the descriptors that nobody took.
func (c *Conn) Close() error {
	for _, f := range c.Files() {
		_ = f.Close()
	}
	return c.unix.Close()
}

// incoming is the byte stream of a connection with the descriptors set aside.
type incoming struct {
	unix  *net.UnixConn
	files []*os.File
}

func (in *incoming) Read(p []byte) (int, error) {
	// Room for the three streams of a command; the kernel closes what is beyond.
	oob := make([]byte, syscall.CmsgSpace(3*4))
	n, oobn, _, _, err := in.unix.ReadMsgUnix(p, oob)
	if err != nil {
		return n, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return n, err
		}
		for _, fd := range fds {
			in.files = append(in.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}
