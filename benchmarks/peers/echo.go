// Echo in Go on net: a goroutine for each connection.
//
//	echo tcp|copy|udp HOST PORT
//
// tcp reads and writes; copy uses io.Copy, which splices in the kernel if possible.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: echo tcp|copy|udp HOST PORT")
		os.Exit(2)
	}
	address := net.JoinHostPort(os.Args[2], os.Args[3])
	switch os.Args[1] {
	case "tcp":
		serve(address, readAndWrite)
	case "copy":
		serve(address, func(c net.Conn) { io.Copy(c, c) })
	default:
		serveUDP(address)
	}
}

func serve(address string, echo func(net.Conn)) {
	listener, err := net.Listen("tcp4", address)
	check(err)
	for {
		c, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			echo(c)
		}()
	}
}

func readAndWrite(c net.Conn) {
	buffer := make([]byte, 4096)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if _, err = c.Write(buffer[:n]); err != nil {
			return
		}
		// a busy connection gets a larger buffer; an idle one keeps a small one
		if n == len(buffer) && n < 65536 {
			buffer = make([]byte, 2*n)
		}
	}
}

func serveUDP(address string) {
	at, err := net.ResolveUDPAddr("udp4", address)
	check(err)
	c, err := net.ListenUDP("udp4", at)
	check(err)
	buffer := make([]byte, 65535)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if err == nil {
			c.WriteToUDPAddrPort(buffer[:n], from)
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}
