package sctp

import (
	"encoding/binary"
	"hash/crc32"
)

// Types of chunks.
const (
	chunkData             = 0
	chunkInit             = 1
	chunkInitAck          = 2
	chunkSack             = 3
	chunkAbort            = 6
	chunkShutdown         = 7
	chunkShutdownAck      = 8
	chunkCookieEcho       = 10
	chunkCookieAck        = 11
	chunkShutdownComplete = 14
)

// A parameter of INIT ACK.
const parameterCookie = 7

// Beginning, end, and one message a chunk.
const wholeMessage = 3

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// One chunk, without its length and padding.
type chunk struct {
	kind, flags byte
	value       []byte
}

// What a packet says, in host byte order.
type packet struct {
	source, destination uint16
	tag                 uint32
	chunks              []chunk
}

// The value of the first chunk of a kind, or nil.
func (p packet) first(kind byte) []byte {
	for _, c := range p.chunks {
		if c.kind == kind {
			return c.value
		}
	}
	return nil
}

// The bytes behind the IP header.
func (p packet) bytes() []byte {
	out := make([]byte, 12, 128)
	binary.BigEndian.PutUint16(out, p.source)
	binary.BigEndian.PutUint16(out[2:], p.destination)
	binary.BigEndian.PutUint32(out[4:], p.tag)
	for _, c := range p.chunks {
		out = append(out, c.kind, c.flags)
		out = binary.BigEndian.AppendUint16(out, uint16(4+len(c.value)))
		out = append(out, c.value...)
		out = append(out, make([]byte, padding(len(c.value)))...)
	}
	binary.LittleEndian.PutUint32(out[8:], crc32.Checksum(out, castagnoli))
	return out
}

// Reads what comes behind the IP header. What is cut short or damaged is nothing.
func parse(data []byte) (packet, bool) {
	if len(data) < 12 {
		return packet{}, false
	}
	sum := binary.LittleEndian.Uint32(data[8:])
	zeroed := append([]byte(nil), data...)
	clear(zeroed[8:12])
	if sum != crc32.Checksum(zeroed, castagnoli) {
		return packet{}, false
	}
	p := packet{
		source:      binary.BigEndian.Uint16(data),
		destination: binary.BigEndian.Uint16(data[2:]),
		tag:         binary.BigEndian.Uint32(data[4:]),
	}
	for rest := zeroed[12:]; len(rest) >= 4; {
		length := int(binary.BigEndian.Uint16(rest[2:]))
		if length < 4 || length > len(rest) {
			return packet{}, false
		}
		p.chunks = append(p.chunks, chunk{kind: rest[0], flags: rest[1], value: rest[4:length:length]})
		rest = rest[min(len(rest), length+padding(length)):]
	}
	return p, true
}

func padding(length int) int { return (4 - length%4) % 4 }

// What INIT and INIT ACK begin with: tag, window, streams each way, first number.
func initiation(tag, number uint32) []byte {
	value := binary.BigEndian.AppendUint32(nil, tag)
	value = binary.BigEndian.AppendUint32(value, 65536)
	value = append(value, 0, 1, 0, 1)
	return binary.BigEndian.AppendUint32(value, number)
}

// The tag and the first number of an INIT or INIT ACK.
func readInitiation(value []byte) (tag, number uint32, ok bool) {
	if len(value) < 16 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(value[12:]), true
}

// The cookie of an INIT ACK.
func readCookie(value []byte) []byte {
	if len(value) < 16 {
		return nil
	}
	for rest := value[16:]; len(rest) >= 4; {
		length := int(binary.BigEndian.Uint16(rest[2:]))
		if length < 4 || length > len(rest) {
			return nil
		}
		if binary.BigEndian.Uint16(rest) == parameterCookie {
			return rest[4:length]
		}
		rest = rest[min(len(rest), length+padding(length)):]
	}
	return nil
}
