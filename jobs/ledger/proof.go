package ledger

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// InclusionProof shows that an entry is in the log of a checkpoint. Its file is a
// C2SP tlog-proof:
//
//	c2sp.org/tlog-proof@v1
//	extra <base64 of the entry>
//	index <place of the leaf, from 0>
//	<base64 of a hash, from the leaf's sibling to the root's child>…
//
//	<the signed checkpoint>
//
// The extra line holds the entry's canonical bytes, so that one file is all that a
// checker needs besides the verifier keys. It is left out where the entry is no
// longer known; who has it gives it to [InclusionProof.Check].
type InclusionProof struct {
	Entry      []byte // nil where it is not in the file
	Index      int64
	Hashes     []tlog.Hash
	Checkpoint []byte // signed
}

const (
	inclusionHeader   = "c2sp.org/tlog-proof@v1"
	consistencyHeader = "pgcustody/tlog-consistency@v1"
)

// Marshal writes the file.
func (p InclusionProof) Marshal() []byte {
	var out bytes.Buffer
	fmt.Fprintln(&out, inclusionHeader)
	if p.Entry != nil {
		fmt.Fprintln(&out, "extra", base64.StdEncoding.EncodeToString(p.Entry))
	}
	fmt.Fprintln(&out, "index", p.Index)
	writeHashes(&out, p.Hashes)
	out.WriteByte('\n')
	out.Write(p.Checkpoint)
	return out.Bytes()
}

// ParseInclusion reads the file.
func ParseInclusion(file []byte) (InclusionProof, error) {
	malformed := malformedProof("proof of inclusion")
	head, checkpoint, ok := strings.Cut(string(file), "\n\n")
	if !ok || checkpoint == "" {
		return InclusionProof{}, malformed("it has no checkpoint")
	}
	lines := strings.Split(head, "\n")
	if lines[0] != inclusionHeader {
		return InclusionProof{}, malformed("its first line is not " + inclusionHeader)
	}
	lines = lines[1:]
	p := InclusionProof{Checkpoint: []byte(checkpoint)}
	var err error
	if len(lines) > 0 {
		if extra, ok := strings.CutPrefix(lines[0], "extra "); ok {
			if p.Entry, err = base64.StdEncoding.DecodeString(extra); err != nil || base64.StdEncoding.EncodeToString(p.Entry) != extra {
				return InclusionProof{}, malformed("its extra line is not base64")
			}
			lines = lines[1:]
		}
	}
	if len(lines) == 0 {
		return InclusionProof{}, malformed("it has no index")
	}
	index, ok := strings.CutPrefix(lines[0], "index ")
	if p.Index, err = strconv.ParseInt(index, 10, 64); !ok || err != nil || p.Index < 0 || strconv.FormatInt(p.Index, 10) != index {
		return InclusionProof{}, malformed("it has no index")
	}
	if p.Hashes, err = parseHashes(lines[1:]); err != nil {
		return InclusionProof{}, malformed(err.Error())
	}
	return p, nil
}

// Check tells whether the entry is in the log whose origin and keys these are, and
// by which checkpoint. entry is for proofs that have none in their file; where
// both are given they must be the same.
func (p InclusionProof) Check(origin string, keys []VerifierKey, entry []byte) (Checkpoint, error) {
	c, err := Open(p.Checkpoint, origin, keys)
	if err != nil {
		return Checkpoint{}, err
	}
	return c, p.CheckAgainst(c, entry)
}

// CheckAgainst is Check for a checkpoint that is trusted already.
func (p InclusionProof) CheckAgainst(c Checkpoint, entry []byte) error {
	failed := func(why string) error {
		return &Error{Op: "check", Object: fmt.Sprintf("proof of inclusion at %d of %d", p.Index, c.Size), Kind: ErrProof, Err: errorString(why)}
	}
	switch {
	case entry == nil && p.Entry == nil:
		return &Error{Op: "check", Object: "proof of inclusion", Kind: ErrMalformed, Err: errorString("it has no entry"),
			Hint: "give the entry's bytes as well: the event's line in the archive, without its end"}
	case entry == nil:
		entry = p.Entry
	case p.Entry != nil && !bytes.Equal(entry, p.Entry):
		return failed("it is of another entry")
	}
	return p.checkLeaf(c, tlog.RecordHash(entry))
}

func (p InclusionProof) checkLeaf(c Checkpoint, leaf tlog.Hash) error {
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, leaf); err != nil {
		return &Error{Op: "check", Object: fmt.Sprintf("proof of inclusion at %d of %d", p.Index, c.Size), Kind: ErrProof,
			Err: errorString("entry and hashes do not give the checkpoint's root")}
	}
	return nil
}

// CheckLeaf is CheckAgainst for an entry of which only the hash is known.
func (p InclusionProof) CheckLeaf(c Checkpoint, leaf []byte) error {
	if len(leaf) != HashSize {
		return &Error{Op: "check", Object: "proof of inclusion", Kind: ErrMalformed, Err: errorString("its leaf is no hash")}
	}
	return p.checkLeaf(c, tlog.Hash(leaf))
}

// ConsistencyProof shows that the log of one checkpoint goes on from that of
// another: nothing that the old one covers was changed, removed or put elsewhere.
// Its file, for which C2SP has no form:
//
//	pgcustody/tlog-consistency@v1
//	<base64 of a hash, as RFC 6962, section 2.1.2 orders them>…
//
//	<the old signed checkpoint>
//
//	<the new signed checkpoint>
type ConsistencyProof struct {
	Hashes   []tlog.Hash
	Old, New []byte // signed checkpoints
}

// Marshal writes the file.
func (p ConsistencyProof) Marshal() []byte {
	var out bytes.Buffer
	fmt.Fprintln(&out, consistencyHeader)
	writeHashes(&out, p.Hashes)
	out.WriteByte('\n')
	out.Write(p.Old)
	out.WriteByte('\n')
	out.Write(p.New)
	return out.Bytes()
}

// ParseConsistency reads the file.
func ParseConsistency(file []byte) (ConsistencyProof, error) {
	malformed := malformedProof("proof of consistency")
	// A checkpoint is a text and its signatures, with an empty line between.
	parts := strings.Split(string(file), "\n\n")
	if len(parts) != 5 {
		return ConsistencyProof{}, malformed("it has not two signed checkpoints")
	}
	lines := strings.Split(parts[0], "\n")
	if lines[0] != consistencyHeader {
		return ConsistencyProof{}, malformed("its first line is not " + consistencyHeader)
	}
	hashes, err := parseHashes(lines[1:])
	if err != nil {
		return ConsistencyProof{}, malformed(err.Error())
	}
	return ConsistencyProof{Hashes: hashes, Old: []byte(parts[1] + "\n\n" + parts[2] + "\n"), New: []byte(parts[3] + "\n\n" + parts[4])}, nil
}

// Check tells whether the one checkpoint goes on from the other, both of the log
// whose origin and keys these are.
func (p ConsistencyProof) Check(origin string, keys []VerifierKey) (older, newer Checkpoint, err error) {
	if older, err = Open(p.Old, origin, keys); err == nil {
		newer, err = Open(p.New, origin, keys)
	}
	if err != nil {
		return older, newer, err
	}
	return older, newer, p.CheckAgainst(older, newer)
}

// CheckAgainst is Check for checkpoints that are trusted already.
func (p ConsistencyProof) CheckAgainst(older, newer Checkpoint) error {
	failed := func(why string) error {
		return &Error{Op: "check", Object: fmt.Sprintf("proof of consistency of %d and %d", older.Size, newer.Size), Kind: ErrProof, Err: errorString(why)}
	}
	switch {
	case older.Origin != newer.Origin:
		return failed("they are of two logs")
	case older.Size > newer.Size:
		return failed("the old checkpoint is of the larger tree")
	case older.Size == newer.Size || older.Size == 0:
		// Nothing to prove by hashes.
		if len(p.Hashes) > 0 || older.Size == newer.Size && older.Root != newer.Root || older.Size == 0 && older.Root != emptyRoot() {
			return failed("the roots do not fit")
		}
		return nil
	}
	if err := tlog.CheckTree(p.Hashes, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return failed("the hashes do not lead from the one root to the other")
	}
	return nil
}

// IsConsistency tells which of the two kinds of proof a file is of.
func IsConsistency(file []byte) bool {
	return bytes.HasPrefix(file, []byte(consistencyHeader+"\n"))
}

func malformedProof(object string) func(why string) error {
	return func(why string) error {
		return &Error{Op: "read", Object: object, Kind: ErrMalformed, Err: errorString(why)}
	}
}

func writeHashes(out *bytes.Buffer, hashes []tlog.Hash) {
	for _, hash := range hashes {
		fmt.Fprintln(out, hash)
	}
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil || hash.String() != line {
			return nil, errors.New("a line is no hash in base64")
		}
		hashes = append(hashes, hash)
	}
	return hashes, nil
}
