// Package agekeys reads the keys of age: recipients, which are public, and
// identities, which open what was encrypted to them.
package agekeys

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
)

// Error says which key is wrong and what to give in its place. It never repeats
// a secret one.
type Error struct {
	Place, What string
	Err         error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %s", e.Place, e.What, e.Err)
	}
	return e.Place + ": " + e.What
}

func (e *Error) Unwrap() error { return e.Err }

// Recipients are whom something is encrypted to: parsed, and as they were written.
type Recipients struct {
	Keys []age.Recipient
	Text []string
}

// Add takes one recipient, age1…; place is where it was given.
func (r *Recipients) Add(place, text string) error {
	if strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY-") {
		return &Error{Place: place, What: "that is an identity, which is secret: give its recipient, age1…, as age-keygen -y prints it; and take an identity that others may have seen out of use"}
	}
	parsed, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(parsed) != 1 {
		return &Error{Place: place, What: "not a recipient of age: age1…, as age-keygen prints it"}
	}
	if !slices.Contains(r.Text, text) {
		r.Keys, r.Text = append(r.Keys, parsed[0]), append(r.Text, text)
	}
	return nil
}

// AddFile takes the recipients of a file: one a line, # begins a comment.
func (r *Recipients) AddFile(place, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return &Error{Place: place, What: path + " cannot be read"}
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	for line := 1; scanner.Scan(); line++ {
		text := strings.TrimSpace(scanner.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if err := r.Add(fmt.Sprintf("%s line %d", path, line), text); err != nil {
			return err
		}
	}
	if scanner.Err() != nil {
		return &Error{Place: place, What: path + " cannot be read"}
	}
	return nil
}

// Check tells whether something can be encrypted to them: post-quantum recipients
// go with no others.
func (r *Recipients) Check(place string) error {
	if len(r.Keys) == 0 {
		return nil
	}
	if _, err := age.Encrypt(io.Discard, r.Keys...); err != nil {
		return &Error{Place: place, What: "these recipients do not go together: post-quantum ones (age1pq1…) take no others beside them", Err: err}
	}
	return nil
}

// ParseSetting reads a setting: recipients with commas between them, or the name
// of a file of them. An empty one has none.
func ParseSetting(place, setting string) (Recipients, error) {
	var r Recipients
	setting = strings.TrimSpace(setting)
	upper := strings.ToUpper(setting)
	switch {
	case setting == "":
		return r, nil
	case strings.HasPrefix(upper, "AGE1"), strings.HasPrefix(upper, "AGE-SECRET-KEY-"):
		for text := range strings.SplitSeq(setting, ",") {
			if text = strings.TrimSpace(text); text == "" {
				continue
			}
			if err := r.Add(place, text); err != nil {
				return r, err
			}
		}
	default:
		if err := r.AddFile(place, setting); err != nil {
			return r, err
		}
		if len(r.Keys) == 0 {
			return r, &Error{Place: place, What: setting + " names no recipient: age1…, a line each"}
		}
	}
	return r, r.Check(place)
}

// ReadIdentities reads files with identities.
func ReadIdentities(place string, paths ...string) ([]age.Identity, error) {
	var all []age.Identity
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return nil, &Error{Place: place, What: path + " cannot be read"}
		}
		defer file.Close()
		// What the parser says may repeat a line.
		identities, err := age.ParseIdentities(file)
		if err != nil {
			return nil, &Error{Place: place, What: path + " holds no identity of age: AGE-SECRET-KEY-1…, a line each"}
		}
		all = append(all, identities...)
	}
	return all, nil
}
