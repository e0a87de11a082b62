package segment

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
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
}

// Members makes the members of lines. It leaves out some of those that it has made
// before, since the same people come again and again and hashing costs. It is for one
// goroutine.
type Members struct {
	text   []byte
	tenant int // bytes of text that are the tenant of the last line and a slash
	seed   maphash.Seed
	seen   [membersSeen][]byte // by the hash of the text
}

const membersSeen = 4096

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

// NewMembers returns one that has made none.
func NewMembers() *Members { return &Members{seed: maphash.MakeSeed()} }

// Append appends those of a line.
func (m *Members) Append(to []SHA256, e *Entry) []SHA256 {
	if m.tenant == 0 || !bytes.Equal(m.text[:m.tenant-1], e.Tenant) {
		m.text = append(append(m.text[:0], e.Tenant...), '/')
		m.tenant = len(m.text)
		to = m.append(to, e.Tenant)
	}
	for _, id := range [...][]byte{e.Actor, e.Subject} {
		if len(id) > 0 {
			m.text = append(m.text[:m.tenant], id...)
			to = m.append(to, m.text)
		}
	}
	return to
}

func (m *Members) append(to []SHA256, member []byte) []SHA256 {
	seen := &m.seen[maphash.Bytes(m.seed, member)%membersSeen]
	if bytes.Equal(*seen, member) {
		return to
	}
	*seen = append((*seen)[:0], member...)
	return append(to, sha256.Sum256(member))
}

// Add adds members.
func (p *People) Add(members ...SHA256) {
	mask := uint32(len(p.filter)*8 - 1) //nolint:gosec // at most 2^26
	for i := range members {
		added := false
		for n := range peopleHashes {
			bit := binary.BigEndian.Uint32(members[i][4*n:]) & mask
			if p.filter[bit/8]&(1<<(bit%8)) == 0 {
				p.filter[bit/8] |= 1 << (bit % 8)
				added = true
			}
		}
		if added {
			p.members++
		}
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
