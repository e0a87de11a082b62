package store

import (
	"bytes"
	"embed"
	"encoding/json"
	"net/url"
	"strings"
)

// The bucket's policy for S3, a file for each part: BUCKET, PREFIX and PRINCIPAL stand
// for what a deployment has. No part may bypass a lock, the worker may not delete at
// all, and the remover only what is not locked.
//
//go:embed policies/*.json
var policies embed.FS

// PolicyParts names the parts that Policy knows.
var PolicyParts = []string{"worker", "remover", "reader", "administrator"}

// Policy returns the policy of the bucket at an address, with the statements of each
// part that has principals. A bucket has one policy.
func Policy(rawURL string, principals map[string][]string) ([]byte, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "s3" || u.Host == "" {
		return nil, &Error{Op: "write policy", Object: redact(rawURL), Kind: ErrBadURL, Hint: "policies are for s3://bucket[/prefix]"}
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		prefix += "/"
	}
	whole := struct {
		Version   string
		Statement []json.RawMessage
	}{Statement: []json.RawMessage{}}
	for _, part := range PolicyParts {
		if len(principals[part]) == 0 {
			continue
		}
		text, err := policies.ReadFile("policies/" + part + ".json")
		if err != nil {
			return nil, err
		}
		quoted, err := json.Marshal(principals[part])
		if err != nil {
			return nil, err
		}
		text = bytes.ReplaceAll(text, []byte(`["PRINCIPAL"]`), quoted)
		text = []byte(strings.NewReplacer("BUCKET", u.Host, "PREFIX", prefix).Replace(string(text)))
		statements := whole.Statement
		whole.Statement = nil // or what it holds would be written over
		if err := json.Unmarshal(text, &whole); err != nil {
			return nil, err
		}
		whole.Statement = append(statements, whole.Statement...)
	}
	return json.MarshalIndent(whole, "", "  ")
}
