package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is the head of the log at one moment. Its text has four lines: the
// origin, the tree's size, its root in base64, and one extension line.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
	Anchored
}

// Anchored is what the extension line says: `pgcustody/v1 ` and this as compact
// JSON, in this order. It is signed like the rest, so who anchored and when, and
// how far the sealer had come, is as good as the signature.
type Anchored struct {
	Number           int64     `json:"number"`
	Time             time.Time `json:"time"` // UTC, whole seconds
	SystemIdentifier string    `json:"system_identifier"`
	Timeline         int64     `json:"timeline"`
	IncarnationID    uuid.UUID `json:"incarnation_id"`
	// SealedTo is the transaction up to which all events were sealed.
	SealedTo string `json:"sealed_to"`
	// NextXID is the first transaction that was not begun: an event of it or a later
	// one that says it is older than the checkpoint was backdated.
	NextXID string `json:"next_xid,omitempty"`
	// WaitingSince is the time of the oldest event that had no leaf yet; nil where all had.
	WaitingSince *time.Time `json:"waiting_since,omitempty"`
}

const extensionPrefix = "pgcustody/v1 "

// Tree is the checkpoint's size and root.
func (c Checkpoint) Tree() tlog.Tree { return tlog.Tree{N: c.Size, Hash: c.Root} }

// Text is what is signed.
func (c Checkpoint) Text() (string, error) {
	extension, err := json.Marshal(c.Anchored)
	if err != nil {
		return "", fmt.Errorf("write checkpoint %d: %w", c.Number, err)
	}
	return fmt.Sprintf("%s\n%d\n%s\n%s%s\n", c.Origin, c.Size, c.Root, extensionPrefix, extension), nil
}

// Parse reads a checkpoint's text. Of one checkpoint there is one text: another
// order, spacing or spelling is malformed.
func Parse(text string) (Checkpoint, error) {
	malformed := func(why string) (Checkpoint, error) {
		return Checkpoint{}, &Error{Op: "read", Object: "checkpoint", Kind: ErrMalformed, Err: errorString(why)}
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 5 || lines[4] != "" {
		return malformed("it has not four lines")
	}
	c := Checkpoint{Origin: lines[0]}
	if err := CheckOrigin(c.Origin); err != nil {
		return malformed("line 1 is no origin")
	}
	var err error
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 {
		return malformed("line 2 is no tree size")
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return malformed("line 3 is no root")
	}
	extension, ok := strings.CutPrefix(lines[3], extensionPrefix)
	if !ok || json.Unmarshal([]byte(extension), &c.Anchored) != nil {
		return malformed("line 4 is not " + strings.TrimSpace(extensionPrefix))
	}
	if c.Number < 1 || c.Time.IsZero() || c.Time.Location() != time.UTC {
		return malformed("line 4 has no number and time in UTC")
	}
	if again, err := c.Text(); err != nil || again != text {
		return malformed("it is not written as it should be")
	}
	return c, nil
}

// signedElsewhere tells whether a checkpoint bears a signature in the log's name by a key
// that is not among the keys.
func signedElsewhere(signed []byte, origin string, keys []VerifierKey) bool {
	var verifiers []note.Verifier
	for _, key := range keys {
		if key.Name() == origin {
			verifiers = append(verifiers, key.verifier)
		}
	}
	opened, err := note.Open(signed, note.VerifierList(verifiers...))
	return err == nil && slices.ContainsFunc(opened.UnverifiedSigs, func(s note.Signature) bool { return s.Name == origin })
}

// sigSplit stands between a note's text and its signatures.
const sigSplit = "\n\n"

// Unverified reads a signed checkpoint without looking at its signatures.
func Unverified(signed []byte) (Checkpoint, error) {
	text, _, ok := strings.Cut(string(signed), sigSplit)
	if !ok {
		return Checkpoint{}, &Error{Op: "read", Object: "checkpoint", Kind: ErrMalformed, Err: errorString("it has no signatures")}
	}
	return Parse(text + "\n")
}

// VerifierKey is a public key and the time for which its signatures count: from
// From on and before Until, where these are set, by the checkpoint's own time.
type VerifierKey struct {
	Key         string // as in example.com/custody+1234abcd+base64
	From, Until time.Time

	verifier note.Verifier
}

// ParseVerifierKey reads a line of `pgcustody signer show`: the key and, each may be
// left out or be -, since when and until when it counts.
func ParseVerifierKey(line string) (VerifierKey, error) {
	fields := strings.Fields(line)
	malformed := func(err error) (VerifierKey, error) {
		object := "verifier key"
		if len(fields) > 0 && !strings.HasPrefix(fields[0], "PRIVATE+") {
			object += " " + fields[0]
		}
		return VerifierKey{}, &Error{Op: "read", Object: object, Kind: ErrMalformed, Err: err,
			Hint: "give a line of pgcustody signer show: NAME+HASH+KEY [FROM [UNTIL]], times as in 2026-11-21T10:00:00Z or -"}
	}
	if len(fields) < 1 || len(fields) > 3 {
		return malformed(errorString("it has not one to three fields"))
	}
	key := VerifierKey{Key: fields[0]}
	var err error
	if key.verifier, err = note.NewVerifier(key.Key); err != nil {
		return malformed(err)
	}
	for i, at := range []*time.Time{&key.From, &key.Until} {
		if len(fields) <= i+1 || fields[i+1] == "-" {
			continue
		}
		if *at, err = time.Parse(time.RFC3339, fields[i+1]); err != nil {
			return malformed(errorString("a time is not as in 2026-11-21T10:00:00Z"))
		}
		*at = at.UTC()
	}
	return key, nil
}

// String is the line that [ParseVerifierKey] reads.
func (k VerifierKey) String() string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format(time.RFC3339)
	}
	return k.Key + " " + at(k.From) + " " + at(k.Until)
}

// Name is the origin whose checkpoints the key signs.
func (k VerifierKey) Name() string { return k.verifier.Name() }

func (k VerifierKey) covers(t time.Time) bool {
	return !t.Before(k.From) && (k.Until.IsZero() || t.Before(k.Until))
}

// Open reads a signed checkpoint of a log. It must bear the signature of one of the
// keys, which must have counted at the checkpoint's time.
func Open(signed []byte, origin string, keys []VerifierKey) (Checkpoint, error) {
	return openNote(signed, "checkpoint", origin, keys, Parse, func(c Checkpoint) (string, time.Time) { return c.Origin, c.Time })
}

// openNote reads what a log signed, of says of which log and time it is. It must bear the
// signature of one of the keys, which must have counted at that time.
func openNote[T any](signed []byte, what, origin string, keys []VerifierKey, parse func(string) (T, error), of func(T) (string, time.Time)) (T, error) {
	var nothing T
	unsigned := func(err error) (T, error) {
		return nothing, &Error{Op: "check", Object: what + " of " + origin, Kind: ErrUnsigned, Err: err,
			Hint: "check it against the log's verifier keys: pgcustody signer show lists them"}
	}
	given := map[string]bool{}
	var verifiers []note.Verifier
	for _, key := range keys {
		if key.Name() == origin && !given[key.Key] {
			given[key.Key] = true
			verifiers = append(verifiers, key.verifier)
		}
	}
	if len(verifiers) == 0 {
		return unsigned(errorString("no verifier key of this log was given"))
	}
	opened, err := note.Open(signed, note.VerifierList(verifiers...))
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unknown):
		return unsigned(errorString("no signature is by a key that was given"))
	case err != nil:
		return unsigned(err)
	}
	parsed, err := parse(opened.Text)
	if err != nil {
		return nothing, err
	}
	whose, at := of(parsed)
	if whose != origin {
		return unsigned(fmt.Errorf("it is of %s", whose))
	}
	for _, signature := range opened.Sigs {
		for _, key := range keys {
			if key.Name() == origin && key.verifier.KeyHash() == signature.Hash && key.covers(at) {
				return parsed, nil
			}
		}
	}
	return unsigned(fmt.Errorf("the key that signed it does not count at %s", at.Format(time.RFC3339)))
}
