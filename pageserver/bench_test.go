package pageserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

// Throughput of the whole way on this machine, sender and receiver on the same
// cores, beside what limits it: a copy of the same memory and raw TCP over the
// same loopback, both measured in the same run. x-copy and x-tcp are the
// fractions of these; on two hosts each has its cores to itself.

const benchBytes = 256 << 20

// flat is memory in one piece: reading and placing are mere copies.
type flat []byte

func (f flat) each(ranges []pageserver.Range, copyPages func(memory []byte)) {
	for _, r := range ranges {
		copyPages(f[r.First*pageserver.PageSize:][:r.Pages*pageserver.PageSize])
	}
}

func (f flat) Read(_ pageserver.SpaceID, ranges []pageserver.Range, buf []byte) ([]pageserver.Range, error) {
	f.each(ranges, func(memory []byte) { buf = buf[copy(buf, memory):] })
	return nil, nil
}

func (f flat) Write(_ pageserver.SpaceID, ranges []pageserver.Range, buf []byte) error {
	f.each(ranges, func(memory []byte) { buf = buf[copy(memory, buf):] })
	return nil
}

func (f flat) Zero(_ pageserver.SpaceID, ranges []pageserver.Range) error {
	f.each(ranges, func(memory []byte) { clear(memory) })
	return nil
}

func (f flat) Drop(space pageserver.SpaceID, ranges []pageserver.Range) error {
	return f.Zero(space, ranges)
}

func content(kind string) flat {
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	f := make(flat, benchBytes)
	switch kind {
	case "heap":
		pagetest.Heap(rng, f)
	case "random":
		pagetest.Random(rng, f)
	}
	return f
}

func loopback(b *testing.B) (client, server net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// mutualTLS puts TLS 1.3 with certificates on both sides over a connection.
func mutualTLS(b *testing.B, client, server net.Conn) (*tls.Conn, *tls.Conn) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"bench"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ServerName:   "bench",
	}
	c, s := tls.Client(client, config), tls.Server(server, config)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		b.Fatal(err)
	}
	return c, s
}

// rateOfCopy and rateOfTCP are the limits, in bytes a second.
func rateOfCopy(src, dst flat) float64 {
	start := time.Now()
	copy(dst, src)
	return float64(len(src)) / time.Since(start).Seconds()
}

func rateOfTCP(b *testing.B, w io.Writer, r io.Reader, src flat) float64 {
	b.Helper()
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		_, err := io.CopyN(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, int64(len(src)))
		done <- err
	}()
	for piece := range slices.Chunk(src, 256<<10) {
		if _, err := w.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return float64(len(src)) / time.Since(start).Seconds()
}

// cpuTime is what the process has used of its cores; unlike the wall time it
// means something on a machine that others use too.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPipeline(b *testing.B) {
	for _, kind := range []string{"heap", "random", "zero"} {
		src := content(kind)
		for _, secure := range []bool{false, true} {
			for _, codec := range []pageserver.Codec{pageserver.None, pageserver.S2, pageserver.Zstd, pageserver.Auto} {
				if kind != "heap" && codec != pageserver.None && codec != pageserver.Auto {
					continue
				}
				transport := "tcp"
				if secure {
					transport = "tls"
				}
				b.Run(fmt.Sprintf("%s/%s/%v", kind, transport, codec), func(b *testing.B) {
					benchmarkPipeline(b, src, secure, codec)
				})
			}
		}
	}
}

func benchmarkPipeline(b *testing.B, src flat, secure bool, codec pageserver.Codec) {
	dst := make(flat, len(src))
	copyRate := max(rateOfCopy(src, dst), rateOfCopy(src, dst))
	client, server := loopback(b)
	var w io.Writer = client
	var r io.Reader = server
	if secure {
		w, r = mutualTLS(b, client, server)
	}
	tcpRate := max(rateOfTCP(b, w, r, src), rateOfTCP(b, w, r, src))

	ctx := context.Background()
	sender := pageserver.NewSender(w, src, pageserver.SenderOptions{Codec: codec})
	receiver := pageserver.NewReceiver(r, dst, pageserver.ReceiverOptions{})
	placed := make(chan error)
	go func() {
		for {
			_, err := receiver.Next(ctx)
			placed <- err
			if err != nil {
				return
			}
		}
	}()
	all := slices.Values([]pageserver.Run{{Range: pageserver.Range{Pages: uint64(len(src)) / pageserver.PageSize}}})
	var n uint32
	var stats pageserver.RoundStats
	round := func() {
		var err error
		stats, err = sender.Round(ctx, pageserver.RoundSpec{N: n, Runs: all})
		if err := errors.Join(err, sender.Message(ctx, 0, nil), <-placed); err != nil {
			b.Fatal(err)
		}
		n++
	}
	round() // buffers and measurements
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		round()
	}
	cpu = cpuTime(b) - cpu
	rate := float64(len(src)) * float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate/copyRate, "x-copy")
	b.ReportMetric(rate/tcpRate, "x-tcp")
	b.ReportMetric(cpu.Seconds()*1e9/(float64(len(src))/pageserver.PageSize*float64(b.N)), "cpu-ns/page")
	b.ReportMetric(float64(stats.Bytes)/float64(stats.WireBytes), "ratio")
	if codec == pageserver.Auto {
		for c, blocks := range stats.Blocks {
			b.ReportMetric(float64(blocks), c.String()+"-blocks")
		}
	}
	if err := sender.Close(ctx); err != nil {
		b.Fatal(err)
	}
	if err := <-placed; err != io.EOF { //nolint:errorlint // the proper end is io.EOF itself
		b.Fatal(err)
	}
	if !slices.Equal(src, dst) {
		b.Fatal("content differs")
	}
}
