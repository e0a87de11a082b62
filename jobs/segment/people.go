package segment

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// People is a Bloom filter of whom the lines of a segment are about: of each line
// its tenant, and its actor and its subject within it. It tells which segments need
// not be read for a person, and names nobody to who does not know the identity
// already. A member is SHA-256 of the tenant, or of the tenant, a slash and the
// identity as text; bit i of a member's 8 is the i-th big-endian uint32 of its
// digest modulo the filter's size, a power of two; bit b is byte b/8, mask
// 1 << (b%8).
type People struct {
	filter  []byte
	members int64 // that were not in it before
	text    []byte
	tenant  int // bytes of text that are the tenant of the last line and a slash
}

const (
	peopleHashes  = 8
	bitsPerMember = 12
	// A filter has 128 bytes to 2 MiB. The largest is full at 1.4 million members;
	// beyond them it rules out less: at 3 million it is mistaken one time in four.
	peopleMin, peopleMax = 128, 2 << 20
)

// NewPeople makes a filter for as many lines.
func NewPeople(lines int64) *People {
	return &People{filter: make([]byte, peopleSize(min(lines, peopleMax)*3))}
}

// peopleSize is the size in bytes of a filter for as many members.
func peopleSize(members int64) int {
	size := int64(peopleMin)
	for size < peopleMax && size*8 < members*bitsPerMember {
		size *= 2
	}
	return int(size)
}

// Add takes the people of a line.
func (p *People) Add(e *Entry) {
	if p.tenant == 0 || !bytes.Equal(p.text[:p.tenant-1], e.Tenant) {
		p.text = append(append(p.text[:0], e.Tenant...), '/')
		p.tenant = len(p.text)
		p.add(e.Tenant)
	}
	for _, id := range [...][]byte{e.Actor, e.Subject} {
		if len(id) > 0 {
			p.text = append(p.text[:p.tenant], id...)
			p.add(p.text)
		}
	}
}

func (p *People) add(member []byte) {
	digest := sha256.Sum256(member)
	mask := uint32(len(p.filter)*8 - 1) //nolint:gosec // at most 2^26
	added := false
	for i := range peopleHashes {
		bit := binary.BigEndian.Uint32(digest[4*i:]) & mask
		if p.filter[bit/8]&(1<<(bit%8)) == 0 {
			p.filter[bit/8] |= 1 << (bit % 8)
			added = true
		}
	}
	if added {
		p.members++
	}
}

// Bytes is the filter, folded to the size that its members need: a bit modulo half
// the size is the bit modulo the size, folded.
func (p *People) Bytes() []byte {
	for size := peopleSize(p.members); len(p.filter) > size; {
		half := len(p.filter) / 2
		for i, b := range p.filter[half:] {
			p.filter[i] |= b
		}
		p.filter = p.filter[:half:half]
	}
	return p.filter
}

// checkPeople tells whether it is a filter.
func checkPeople(filter []byte) bool {
	return len(filter) >= peopleMin && len(filter) <= peopleMax && bits.OnesCount(uint(len(filter))) == 1
}

// MayHold tells whether lines of a tenant, and of an identity in it unless that is
// empty, may be among those whose filter it is. False is certain.
func MayHold(filter []byte, tenant, identity string) bool {
	if !checkPeople(filter) {
		return true
	}
	member := tenant
	if identity != "" {
		member += "/" + identity
	}
	digest := sha256.Sum256([]byte(member))
	for i := range peopleHashes {
		bit := binary.BigEndian.Uint32(digest[4*i:]) & uint32(len(filter)*8-1) //nolint:gosec // at most 2^26
		if filter[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
	}
	return true
}
