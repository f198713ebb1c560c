package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// echoDatagrams listens by UDP and answers each datagram with it and the number of those
// that have come from there by then.
func echoDatagrams(address string, j *journal) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	go func() {
		numbers := make(map[netip.AddrPort]int)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, unix.ECONNREFUSED) {
				continue // a client that has ended
			}
			if err == nil {
				numbers[from]++
				_, err = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %d", buf[:n], numbers[from]), from)
			}
			if err != nil {
				j.problemf("answering %v: %v", from, err)
				return
			}
		}
	}()
	return nil
}
