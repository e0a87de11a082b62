package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ArchiveIndex lists what the archive got since the index before it, as a note that
// the log's signer signed:
//
//	<origin>/archive-index
//	<number, from 1>
//	<SHA-256 of the signed index before, in hexadecimal; 64 zeros for the first>
//	<time>
//	segment <key of the manifest> <version> <SHA-256 of the manifest>
//	expired <key of the manifest> <SHA-256 of its leaves as text: {[0,5),[7,9)}>
//	orphan <key> <version>
//
// with as many of the last three as there are. An orphan is a version that a writer
// left whom nobody waited for: it is under lock, and part of nothing.
type ArchiveIndex struct {
	Origin   string
	Number   int64
	Previous [sha256.Size]byte
	Time     time.Time // UTC, whole seconds
	Lines    []string
}

const archiveIndexSuffix = "/archive-index"

// ArchiveIndexPrefix is what the names of all indexes begin with.
const ArchiveIndexPrefix = "audit-archives/index/"

// ArchiveIndexKey is the object of one.
func ArchiveIndexKey(number int64) string {
	return fmt.Sprintf("%s%08d.note", ArchiveIndexPrefix, number)
}

// Text is what is signed.
func (i ArchiveIndex) Text() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s%s\n%d\n%x\n%s\n", i.Origin, archiveIndexSuffix, i.Number, i.Previous, i.Time.UTC().Format(time.RFC3339))
	for _, line := range i.Lines {
		fmt.Fprintln(&out, line)
	}
	return out.String()
}

func parseArchiveIndex(text string) (ArchiveIndex, error) {
	malformed := func(why string) (ArchiveIndex, error) {
		return ArchiveIndex{}, &Error{Op: "read", Object: "index of the archive", Kind: ErrMalformed, Err: errorString(why)}
	}
	lines := strings.Split(text, "\n")
	if len(lines) < 5 || lines[len(lines)-1] != "" {
		return malformed("it has not four lines")
	}
	var i ArchiveIndex
	var ok bool
	if i.Origin, ok = strings.CutSuffix(lines[0], archiveIndexSuffix); !ok || CheckOrigin(i.Origin) != nil {
		return malformed("line 1 is no origin of an index")
	}
	var err error
	if i.Number, err = strconv.ParseInt(lines[1], 10, 64); err != nil || i.Number < 1 {
		return malformed("line 2 is no number")
	}
	digest, err := hex.DecodeString(lines[2])
	if err != nil || copy(i.Previous[:], digest) != len(i.Previous) || len(digest) != len(i.Previous) {
		return malformed("line 3 is no SHA-256")
	}
	if i.Time, err = time.Parse(time.RFC3339, lines[3]); err != nil {
		return malformed("line 4 is no time")
	}
	if i.Lines = lines[4 : len(lines)-1]; i.Text() != text {
		return malformed("it is not written as it should be")
	}
	for _, line := range i.Lines {
		fields := strings.Fields(line)
		if len(fields) == 0 || len(fields) != map[string]int{"segment": 4, "expired": 3, "orphan": 3}[fields[0]] {
			return malformed("a line is none of an index")
		}
	}
	return i, nil
}

// SignArchiveIndex signs an index of the signer's log.
func (s *Signer) SignArchiveIndex(ctx context.Context, i ArchiveIndex) ([]byte, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.reload(); err != nil {
		return nil, err
	}
	i.Origin = s.Origin()
	if _, err := parseArchiveIndex(i.Text()); err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: i.Text()}, s.private...)
	if err != nil {
		return nil, fmt.Errorf("sign index %d of the archive: %w", i.Number, err)
	}
	return signed, nil
}

// OpenArchiveIndex reads a signed index of a log. It must bear the signature of one of
// the keys, which must have counted at the index's time.
func OpenArchiveIndex(signed []byte, origin string, keys []VerifierKey) (ArchiveIndex, error) {
	return openNote(signed, "index of the archive", origin, keys, parseArchiveIndex, func(i ArchiveIndex) (string, time.Time) { return i.Origin, i.Time })
}
