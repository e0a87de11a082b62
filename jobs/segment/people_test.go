package segment

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the vectors anew")

// peopleVector is a filter that custody.segment_may_hold reads as this package does.
type peopleVector struct {
	Name   string `json:"name"`
	Lines  int64  `json:"lines"`
	Filter []byte `json:"filter"`
	// In are members, each a tenant and, where it is not empty, an identity in it.
	// Out are such as the filter rules out.
	In  [][2]string `json:"in"`
	Out [][2]string `json:"out"`
}

func person(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

// TestPeopleVectors holds the filters against sql/testdata/people.json, which the
// tests of the SQL function read as well.
func TestPeopleVectors(t *testing.T) {
	path := filepath.Join("..", "..", "sql", "testdata", "people.json")
	var made []peopleVector
	for _, v := range []struct {
		name   string
		lines  int64
		actors int
	}{{"one", 1, 1}, {"folded", 5000, 150}, {"full", 400, 400}} {
		p := NewPeople(v.lines)
		vector := peopleVector{Name: v.name, Lines: v.lines}
		for i := range v.lines {
			tenant := []string{"acme", "other"}[i%2]
			actor, subject := person(int(i)%v.actors), ""
			if i%3 == 0 {
				subject = person(1_000_000 + int(i)%v.actors)
			}
			p.Add(&Entry{Tenant: []byte(tenant), Actor: []byte(actor), Subject: []byte(subject)})
			if i < 12 {
				vector.In = append(vector.In, [2]string{tenant, ""}, [2]string{tenant, actor})
				if subject != "" {
					vector.In = append(vector.In, [2]string{tenant, subject})
				}
			}
		}
		vector.Filter = p.Bytes()
		for i := 0; len(vector.Out) < 20; i++ {
			who := [2]string{"acme", person(2_000_000 + i)}
			if i == 0 {
				who = [2]string{"nobody", ""}
			}
			if !MayHold(vector.Filter, who[0], who[1]) {
				vector.Out = append(vector.Out, who)
			}
			require.Less(t, i, 30, "the filter rules out too little")
		}
		for _, in := range vector.In {
			require.True(t, MayHold(vector.Filter, in[0], in[1]), in)
		}
		made = append(made, vector)
	}
	text, err := json.MarshalIndent(made, "", " ")
	require.NoError(t, err)
	text = append(text, '\n')
	if *update {
		require.NoError(t, os.WriteFile(path, text, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(text))
	require.Len(t, made[0].Filter, 128)
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
