package backup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
)

// Recipients are who may open a backup.
type Recipients struct {
	keys []age.Recipient
	text []string
}

// ParseRecipients reads public keys of age, age1…, given one by one and in files,
// where each has a line and # begins a comment.
func ParseRecipients(given, files []string) (Recipients, error) {
	var r Recipients
	add := func(place, text string) error {
		wrong := func(what string) error {
			return &Error{Code: exitUsage, What: place, Object: what}
		}
		if strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY-") {
			return wrong("that is an identity, which is secret: give its recipient, age1…, as age-keygen -y prints it; and take an identity that others may have seen out of use")
		}
		parsed, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(parsed) != 1 {
			return wrong("not a recipient of age: age1…, as age-keygen prints it")
		}
		if !slices.Contains(r.text, text) {
			r.keys, r.text = append(r.keys, parsed[0]), append(r.text, text)
		}
		return nil
	}
	for _, text := range given {
		if err := add("--recipient", strings.TrimSpace(text)); err != nil {
			return r, err
		}
	}
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			return r, &Error{Code: exitUsage, What: "--recipients-file", Object: path, Do: "cannot be read"}
		}
		defer file.Close()
		scanner := bufio.NewScanner(file)
		for line := 1; scanner.Scan(); line++ {
			text := strings.TrimSpace(scanner.Text())
			if text == "" || strings.HasPrefix(text, "#") {
				continue
			}
			if err := add(fmt.Sprintf("%s line %d", path, line), text); err != nil {
				return r, err
			}
		}
		if scanner.Err() != nil {
			return r, &Error{Code: exitUsage, What: "--recipients-file", Object: path, Do: "cannot be read"}
		}
	}
	if len(r.keys) == 0 {
		return r, &Error{Code: exitUsage, What: "--recipient", Object: "required: a public key of age, age1…, whose identity is kept apart from this machine; age-keygen makes one"}
	}
	if _, err := age.Encrypt(io.Discard, r.keys...); err != nil {
		return r, &Error{Code: exitUsage, What: "--recipient", Object: "these recipients do not go together: post-quantum ones (age1pq1…) take no others beside them", Err: err}
	}
	return r, nil
}

// ReadIdentities reads files with identities of age.
func ReadIdentities(paths []string) ([]age.Identity, error) {
	var all []age.Identity
	for _, path := range paths {
		wrong := func(what string) error {
			return &Error{Code: exitUsage, What: "--identity", Object: path, Do: what}
		}
		file, err := os.Open(path)
		if err != nil {
			return nil, wrong("cannot be read")
		}
		defer file.Close()
		// What the parser says may repeat a line.
		identities, err := age.ParseIdentities(file)
		if err != nil {
			return nil, wrong("holds no identity of age: AGE-SECRET-KEY-1…, a line each")
		}
		all = append(all, identities...)
	}
	if len(all) == 0 {
		return nil, &Error{Code: exitUsage, What: "--identity", Object: "required: the file with the identity of one of the backup's recipients"}
	}
	return all, nil
}
