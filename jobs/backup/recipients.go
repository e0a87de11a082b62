package backup

import (
	"errors"
	"strings"

	"filippo.io/age"

	"pgcustody/jobs/agekeys"
)

// Recipients are who may open a backup.
type Recipients = agekeys.Recipients

// usage is an error about keys that were given as one of the command's.
func usage(err error) error {
	if wrong := new(agekeys.Error); errors.As(err, &wrong) {
		return &Error{Code: exitUsage, What: wrong.Place, Object: wrong.What, Err: wrong.Err}
	}
	return err
}

// ParseRecipients reads public keys of age, age1…, given one by one and in files,
// where each has a line and # begins a comment.
func ParseRecipients(given, files []string) (Recipients, error) {
	var r Recipients
	for _, text := range given {
		if err := r.Add("--recipient", strings.TrimSpace(text)); err != nil {
			return r, usage(err)
		}
	}
	for _, path := range files {
		if err := r.AddFile("--recipients-file", path); err != nil {
			return r, usage(err)
		}
	}
	if len(r.Keys) == 0 {
		return r, &Error{Code: exitUsage, What: "--recipient", Object: "required: a public key of age, age1…, whose identity is kept apart from this machine; age-keygen makes one"}
	}
	return r, usage(r.Check("--recipient"))
}

// ReadIdentities reads files with identities of age.
func ReadIdentities(paths []string) ([]age.Identity, error) {
	all, err := agekeys.ReadIdentities("--identity", paths...)
	if err == nil && len(all) == 0 {
		return nil, &Error{Code: exitUsage, What: "--identity", Object: "required: the file with the identity of one of the backup's recipients"}
	}
	return all, usage(err)
}
