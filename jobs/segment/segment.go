// Package segment is the archive's format: the audit events of one UTC day, or a
// late part of it, in one object, and a manifest beside it that says what the
// object holds.
//
// An object is JSON Lines in one zstd frame in one age file. Each line is exactly
// the canonical entry of one event, as custody.audit_entry writes it, ended by a
// line feed; the lines are in the order of their leaves in the ledger's tree. So
// `age -d | zstd -dc | sha256sum` gives the manifest's plain_sha256, and nothing of
// this program is needed to read one.
package segment

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Prefix is where the archive's objects are.
const Prefix = "audit-archives/"

const (
	objectSuffix   = ".jsonl.zst.age"
	manifestSuffix = ".manifest.json"
)

// ContentType of the objects and of their manifests.
const (
	ContentType         = "application/octet-stream"
	ManifestContentType = "application/json"
)

// Name of a segment: a day in UTC and the part of it, from 1.
type Name struct {
	Day  time.Time
	Part int
	// Branch is empty until a database has been restored: from then on it tells what
	// that one archives from what the one before it did after the backup. 8
	// hexadecimal digits.
	Branch string
}

// NewName takes the date of day, whatever its time and zone.
func NewName(day time.Time, part int) Name {
	y, m, d := day.Date()
	return Name{Day: time.Date(y, m, d, 0, 0, 0, 0, time.UTC), Part: part}
}

const branchLength = 8

// String is the day and the part, as in 2026-11-20.1.
func (n Name) String() string {
	return n.Day.Format(time.DateOnly) + "." + strconv.Itoa(n.Part)
}

func (n Name) stem() string {
	stem := Prefix + n.Day.Format("2006/01/") + "audit-logs-" + n.Day.Format(time.DateOnly)
	if n.Part > 1 {
		stem += "." + strconv.Itoa(n.Part)
	}
	if n.Branch != "" {
		stem += "-" + n.Branch
	}
	return stem
}

// ObjectKey is the key of the events.
func (n Name) ObjectKey() string { return n.stem() + objectSuffix }

// ManifestKey is the key of the manifest.
func (n Name) ManifestKey() string { return n.stem() + manifestSuffix }

// ParseKey reads a name back from the key of its object or manifest.
func ParseKey(key string) (Name, error) {
	bad := fmt.Errorf("%q is not the key of an archive segment", key)
	base := key[strings.LastIndexByte(key, '/')+1:]
	base, isObject := strings.CutSuffix(base, objectSuffix)
	base, isManifest := strings.CutSuffix(base, manifestSuffix)
	base, ok := strings.CutPrefix(base, "audit-logs-")
	if !ok || isObject == isManifest {
		return Name{}, bad
	}
	date := base[:min(len(base), len(time.DateOnly))]
	number, branch, _ := strings.Cut(base[len(date):], "-")
	number, hasPart := strings.CutPrefix(number, ".")
	day, err := time.Parse(time.DateOnly, date)
	if err != nil {
		return Name{}, bad
	}
	part := 1
	if hasPart {
		if part, err = strconv.Atoi(number); err != nil || part < 2 {
			return Name{}, bad
		}
	}
	// One segment has one key: no leading zeros, no other folder.
	n := Name{Day: day, Part: part, Branch: branch}
	if strings.Trim(branch, "0123456789abcdef") != "" || branch != "" && len(branch) != branchLength {
		return Name{}, bad
	}
	if key != n.ObjectKey() && key != n.ManifestKey() {
		return Name{}, bad
	}
	return n, nil
}
