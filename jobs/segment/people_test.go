package segment

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
		p := NewPeople(int64(len(v.Members)))
		for _, member := range v.Members {
			if tenant, identity, is := strings.Cut(member, "/"); is {
				p.Add(&Entry{Tenant: []byte(tenant), Actor: []byte(identity)})
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
			p := NewPeople(lines)
			for i := range members {
				p.Add(&Entry{Tenant: []byte("acme"), Actor: []byte(person(i)), Subject: []byte(person(i))})
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
