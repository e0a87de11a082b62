package segment

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// peopleVector is a filter of sql/testdata/people.json, which custody.segment_may_hold
// is tried with as well.
type peopleVector struct {
	Name string `json:"name"`
	// Members are tenants, and people as TENANT/IDENTITY.
	Members []string `json:"members"`
	Filter  []byte   `json:"filter"`
	Asked   []struct {
		Tenant   string  `json:"tenant"`
		Identity *string `json:"identity"`
		Held     bool    `json:"held"`
	} `json:"asked"`
}

func person(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

// TestPeopleVectors makes the filters that the SQL function reads, bit for bit.
func TestPeopleVectors(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "sql", "testdata", "people.json"))
	require.NoError(t, err)
	var vectors []peopleVector
	require.NoError(t, json.Unmarshal(text, &vectors))
	require.NotEmpty(t, vectors)
	for _, v := range vectors {
		p, members := NewPeople(int64(len(v.Members))), NewMembers()
		for _, member := range v.Members {
			if tenant, identity, is := strings.Cut(member, "/"); is {
				p.Add(members.Append(nil, &Entry{Tenant: []byte(tenant), Actor: []byte(identity)})...)
			}
		}
		require.Equal(t, v.Filter, p.Bytes(), v.Name)
		for _, asked := range v.Asked {
			identity := ""
			if asked.Identity != nil {
				identity = *asked.Identity
			}
			require.Equal(t, asked.Held, MayHold(v.Filter, asked.Tenant, identity), "%s: %+v", v.Name, asked)
		}
	}
}

// TestPeopleFold gets the same filter whether many lines were expected or few.
func TestPeopleFold(t *testing.T) {
	for _, members := range []int{1, 28, 200, 5000} {
		var first []byte
		for _, lines := range []int64{int64(members), 100_000, 1 << 40} {
			p, made := NewPeople(lines), NewMembers()
			for i := range members {
				p.Add(made.Append(nil, &Entry{Tenant: []byte("acme"), Actor: []byte(person(i)), Subject: []byte(person(i))})...)
			}
			filter := p.Bytes()
			if first == nil {
				first = filter
			}
			require.Equal(t, first, filter)
			require.Equal(t, peopleSize(int64(members)+1), len(filter))
			wrong := 0
			for i := range 10_000 {
				if MayHold(filter, "acme", person(1_000_000+i)) {
					wrong++
				}
			}
			require.Less(t, wrong, 100, "of 10,000 strangers to %d members", members)
		}
	}
}

// TestPeopleAreMadeOnce leaves out who was made a moment ago, and nobody else.
func TestPeopleAreMadeOnce(t *testing.T) {
	made, all := NewMembers(), map[SHA256]bool{}
	want := map[SHA256]bool{}
	lines, appended := 0, 0
	for round := range 3 {
		for i := range 2 * membersSeen {
			e := &Entry{Tenant: []byte("acme"), Actor: []byte(person(i)), Subject: []byte(person(i / 64))}
			if i%1000 == round {
				e.Tenant, e.Subject = []byte("globex"), nil
			}
			want[sha256.Sum256(e.Tenant)] = true
			for _, id := range [][]byte{e.Actor, e.Subject} {
				if id != nil {
					want[sha256.Sum256(slices.Concat(e.Tenant, []byte("/"), id))] = true
				}
			}
			lines++
			for _, member := range made.Append(nil, e) {
				appended++
				all[member] = true
			}
		}
	}
	require.Equal(t, want, all)
	require.Less(t, appended, 2*lines, "the same people were hashed again and again")
}
