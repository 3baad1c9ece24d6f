package sctp

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// After how long something unanswered is sent again, and how often.
	resendAfter = time.Second
	resends     = 8
	// How long an end waits for the other to have seen it.
	closeWait = 3 * time.Second
)

var (
	errAborted = errors.New("the peer refused the association")
	errSilence = errors.New("the peer does not answer")
)

// One association, of either side.
type association struct {
	socket     *net.IPConn
	ownsSocket bool
	remote     net.IP
	localPort  uint16
	remotePort uint16
	// what the peer puts into its packets, and what it wants in ours
	localTag, remoteTag uint32

	// the receiving goroutine and callers meet here
	lock     sync.Mutex
	next     uint32 // number of our next DATA
	expected uint32 // number of the peer's next DATA
	ended    bool

	cookie      chan []byte
	established chan struct{}
	messages    chan []byte
	acked       chan uint32
	over        chan struct{}
	failure     error
}

func newAssociation(socket *net.IPConn, remote net.IP, localPort, remotePort uint16) *association {
	return &association{
		socket:      socket,
		remote:      append(net.IP(nil), remote...),
		localPort:   localPort,
		remotePort:  remotePort,
		localTag:    random() | 1,
		next:        random(),
		cookie:      make(chan []byte, 1),
		established: make(chan struct{}),
		messages:    make(chan []byte, 64),
		acked:       make(chan uint32, 64),
		over:        make(chan struct{}),
	}
}

// The side that begins.
func (a *association) connect() error {
	begin := chunk{kind: chunkInit, value: initiation(a.localTag, a.next)}
	cookie, err := ask(a, func() { a.sendWith(0, begin) }, a.cookie)
	if err != nil {
		return err
	}
	_, err = ask(a, func() { a.send(chunk{kind: chunkCookieEcho, value: cookie}) }, a.established)
	return err
}

// Takes what a packet brings; says whether it made the association of a listener.
func (a *association) handle(p packet) (accepted bool) {
	a.lock.Lock()
	defer a.lock.Unlock()
	for _, c := range p.chunks {
		if c.kind != chunkInit && p.tag != a.localTag {
			return accepted
		}
		switch c.kind {
		case chunkInit:
			tag, number, ok := readInitiation(c.value)
			if !ok {
				return accepted
			}
			a.remoteTag, a.expected = tag, number
			value := initiation(a.localTag, a.next)
			// the listener remembers the association, so the cookie need not
			value = append(value, 0, parameterCookie, 0, 8)
			a.send(chunk{kind: chunkInitAck, value: binary.BigEndian.AppendUint32(value, a.localTag)})
		case chunkInitAck:
			if tag, number, ok := readInitiation(c.value); ok && a.remoteTag == 0 {
				a.remoteTag, a.expected = tag, number
				offer(a.cookie, readCookie(c.value))
			}
		case chunkCookieEcho:
			a.send(chunk{kind: chunkCookieAck})
			accepted = a.establish()
		case chunkCookieAck:
			a.establish()
		case chunkData:
			a.take(c)
		case chunkSack:
			if len(c.value) >= 4 {
				offer(a.acked, binary.BigEndian.Uint32(c.value))
			}
		case chunkShutdown:
			a.send(chunk{kind: chunkShutdownAck})
			a.end(io.EOF)
		case chunkShutdownAck:
			a.send(chunk{kind: chunkShutdownComplete})
			a.end(io.EOF)
		case chunkShutdownComplete:
			a.end(io.EOF)
		case chunkAbort:
			a.end(errAborted)
		}
	}
	return accepted
}

// A message: kept if it is the next one, acknowledged in any case.
func (a *association) take(c chunk) {
	if len(c.value) < 12 {
		return
	}
	if binary.BigEndian.Uint32(c.value) == a.expected {
		a.expected++
		offer(a.messages, append([]byte(nil), c.value[12:]...))
	}
	ack := binary.BigEndian.AppendUint32(nil, a.expected-1)
	a.send(chunk{kind: chunkSack, value: append(binary.BigEndian.AppendUint32(ack, 65536), 0, 0, 0, 0)})
}

func (a *association) establish() (first bool) {
	select {
	case <-a.established:
		return false
	default:
		close(a.established)
		return true
	}
}

func (a *association) end(why error) {
	if !a.ended {
		a.ended, a.failure = true, why
		close(a.over)
	}
}

func (a *association) hasEnded() bool {
	a.lock.Lock()
	defer a.lock.Unlock()
	return a.ended
}

func (a *association) write(message []byte) (int, error) {
	a.lock.Lock()
	number := a.next
	a.next++
	a.lock.Unlock()
	value := binary.BigEndian.AppendUint32(nil, number)
	// stream 0, no order to keep, no protocol on top
	value = append(append(value, 0, 0, 0, 0, 0, 0, 0, 0), message...)
	for {
		send := func() { a.send(chunk{kind: chunkData, flags: wholeMessage, value: value}) }
		acked, err := ask(a, send, a.acked)
		if err == io.EOF {
			// it has ended before it read this, which is not the writer's fault
			return len(message), nil
		}
		if err != nil {
			return 0, err
		}
		if acked == number {
			return len(message), nil
		}
	}
}

func (a *association) read(buffer []byte, late <-chan time.Time) (int, error) {
	select {
	case message := <-a.messages:
		return copy(buffer, message), nil
	default:
	}
	select {
	case message := <-a.messages:
		return copy(buffer, message), nil
	case <-a.over:
		// what came with the end, or before it
		select {
		case message := <-a.messages:
			return copy(buffer, message), nil
		default:
			return 0, a.failure
		}
	case <-late:
		return 0, errSilence
	}
}

func (a *association) close() error {
	a.lock.Lock()
	last := a.expected - 1
	a.lock.Unlock()
	if !a.hasEnded() {
		a.send(chunk{kind: chunkShutdown, value: binary.BigEndian.AppendUint32(nil, last)})
		select {
		case <-a.over:
		case <-time.After(closeWait):
		}
	}
	if a.ownsSocket {
		return a.socket.Close()
	}
	return nil
}

// Sends until the answer comes.
func ask[T any](a *association, send func(), answer <-chan T) (T, error) {
	var none T
	for range resends {
		send()
		select {
		case got := <-answer:
			return got, nil
		case <-a.over:
			// a short association may have come and gone while nobody looked
			select {
			case got := <-answer:
				return got, nil
			default:
				return none, a.failure
			}
		case <-time.After(resendAfter):
		}
	}
	return none, errSilence
}

func (a *association) send(chunks ...chunk) { a.sendWith(a.remoteTag, chunks...) }

// A packet that is not sent is as one that was lost.
func (a *association) sendWith(tag uint32, chunks ...chunk) {
	out := packet{source: a.localPort, destination: a.remotePort, tag: tag, chunks: chunks}
	_, _ = a.socket.WriteToIP(out.bytes(), &net.IPAddr{IP: a.remote})
}

// Whoever does not wait for it has it already.
func offer[T any](to chan T, value T) {
	select {
	case to <- value:
	default:
	}
}

func random() uint32 {
	var bytes [4]byte
	_, _ = rand.Read(bytes[:])
	return binary.BigEndian.Uint32(bytes[:])
}

// One that no server of a test listens at.
func randomPort() uint16 { return uint16(32768 + random()%28000) }
