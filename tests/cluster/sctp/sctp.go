// Package sctp has the calls of github.com/ishidawataru/sctp that agnhost makes, without the kernel's SCTP sockets: the
// kernel that the tests run on is built without them (CONFIG_IP_SCTP). Associations are made here, on raw sockets, as
// RFC 9260 says: INIT, INIT ACK, COOKIE ECHO, COOKIE ACK, DATA and SACK, SHUTDOWN. On the wire they are what a gate and
// the nodes' connection tracking know as SCTP, tags and checksums included.
//
// What two test programs on one machine do not need is left out: windows, several streams or addresses, bundled DATA,
// messages longer than a packet. The cookie is not signed.
package sctp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// Number of the protocol in an IP header.
const protocolNumber = "132"

// SCTPAddr is where an endpoint is.
type SCTPAddr struct {
	IPAddrs []net.IPAddr
	Port    int
}

// Network is "sctp".
func (a *SCTPAddr) Network() string { return "sctp" }

func (a *SCTPAddr) String() string {
	host := ""
	if ip := a.ip(); ip != nil {
		host = ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(a.Port))
}

func (a *SCTPAddr) ip() net.IP {
	if a == nil || len(a.IPAddrs) == 0 || a.IPAddrs[0].IP.IsUnspecified() {
		return nil
	}
	return a.IPAddrs[0].IP
}

// ResolveSCTPAddr reads HOST:PORT.
func ResolveSCTPAddr(_, address string) (*SCTPAddr, error) {
	udp, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	resolved := &SCTPAddr{Port: udp.Port}
	if udp.IP != nil {
		resolved.IPAddrs = []net.IPAddr{{IP: udp.IP, Zone: udp.Zone}}
	}
	return resolved, nil
}

// SCTPConn is one end of an association, as a net.Conn is of a connection. Each Write is one message.
type SCTPConn struct {
	association  *association
	readDeadline time.Time
}

// DialSCTP begins an association and waits for it, as long as the peer says nothing.
func DialSCTP(_ string, local, remote *SCTPAddr) (*SCTPConn, error) {
	ip := remote.ip()
	if ip == nil {
		return nil, fmt.Errorf("dial %v: it has no address", remote)
	}
	socket, err := open(ip)
	if err != nil {
		return nil, err
	}
	port := randomPort()
	if local != nil && local.Port != 0 {
		port = uint16(local.Port)
	}
	made := newAssociation(socket, ip, port, uint16(remote.Port))
	made.ownsSocket = true
	go receive(socket, func(from net.IP, arrived packet) {
		if from.Equal(ip) && arrived.destination == port && arrived.source == made.remotePort {
			made.handle(arrived)
		}
	})
	if err := made.connect(); err != nil {
		socket.Close()
		return nil, err
	}
	return &SCTPConn{association: made}, nil
}

// Write sends one message and waits until the peer has it.
func (c *SCTPConn) Write(message []byte) (int, error) { return c.association.write(message) }

// Read waits for a message; what does not fit is lost.
func (c *SCTPConn) Read(buffer []byte) (int, error) {
	var late <-chan time.Time
	if !c.readDeadline.IsZero() {
		late = time.After(time.Until(c.readDeadline))
	}
	return c.association.read(buffer, late)
}

// Close ends the association.
func (c *SCTPConn) Close() error { return c.association.close() }

// SetReadDeadline is for the next Read.
func (c *SCTPConn) SetReadDeadline(at time.Time) error {
	c.readDeadline = at
	return nil
}

// SCTPRemoteAddr is where the peer is.
func (c *SCTPConn) SCTPRemoteAddr(int) (*SCTPAddr, error) {
	peer := c.association
	return &SCTPAddr{IPAddrs: []net.IPAddr{{IP: peer.remote}}, Port: int(peer.remotePort)}, nil
}

// SCTPListener accepts associations at one port.
type SCTPListener struct {
	sockets  []*net.IPConn
	accepted chan *SCTPConn
}

// ListenSCTP listens at a port: at both families unless the address has one.
func ListenSCTP(_ string, local *SCTPAddr) (*SCTPListener, error) {
	families := []net.IP{net.IPv4zero, net.IPv6unspecified}
	if len(local.IPAddrs) > 0 && local.IPAddrs[0].IP.To4() != nil {
		families = families[:1]
	}
	listener := &SCTPListener{accepted: make(chan *SCTPConn, 64)}
	for _, family := range families {
		socket, err := open(family)
		if err != nil {
			listener.Close()
			return nil, err
		}
		listener.sockets = append(listener.sockets, socket)
		go listener.serve(socket, uint16(local.Port))
	}
	return listener, nil
}

// AcceptSCTP waits for the next association.
func (l *SCTPListener) AcceptSCTP() (*SCTPConn, error) {
	conn, open := <-l.accepted
	if !open {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// Close ends listening, and what was accepted.
func (l *SCTPListener) Close() error {
	var all []error
	for _, socket := range l.sockets {
		all = append(all, socket.Close())
	}
	return errors.Join(all...)
}

func (l *SCTPListener) serve(socket *net.IPConn, port uint16) {
	type peer struct {
		ip   string
		port uint16
	}
	known := map[peer]*association{}
	receive(socket, func(from net.IP, arrived packet) {
		if arrived.destination != port {
			return
		}
		at := peer{string(from.To16()), arrived.source}
		association, is := known[at]
		// a new one, also where the end of the last from that port was lost; the same INIT again is of the same one
		if tag, _, begins := readInitiation(arrived.first(chunkInit)); begins && (!is || association.remoteTag != tag) {
			association, is = newAssociation(socket, from, port, arrived.source), true
			known[at] = association
		}
		if !is {
			return
		}
		if association.handle(arrived) {
			l.accepted <- &SCTPConn{association: association}
		}
		if association.hasEnded() {
			delete(known, at)
		}
	})
}

// A raw socket of an address's family. A kernel that has SCTP would answer for ports it knows nothing of.
func open(ip net.IP) (*net.IPConn, error) {
	if _, err := os.Stat("/proc/net/sctp"); err == nil {
		return nil, errors.New("open a raw socket for SCTP: this kernel has SCTP's sockets, and refuses what it does not " +
			"know: build agnhost without tests/cluster/sctp")
	}
	network := "ip6:" + protocolNumber
	if ip.To4() != nil {
		network = "ip4:" + protocolNumber
	}
	socket, err := net.ListenIP(network, nil)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket for SCTP: %w", err)
	}
	return socket, nil
}

// Gives each whole packet to a function, until the socket is closed.
func receive(socket *net.IPConn, handle func(net.IP, packet)) {
	buffer := make([]byte, 65536)
	for {
		length, from, err := socket.ReadFromIP(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if arrived, ok := parse(buffer[:length]); ok {
			handle(from.IP, arrived)
		}
	}
}
