// Package sample writes made-up records in the import format, for the demonstration, the tests and the
// benchmarks: the same options always give the same files.
package sample

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Options say how much is written. Zero counts mean none of that kind, a zero time today's midnight in UTC.
type Options struct {
	Seed          uint64
	People        int // user_profiles and user_preferences have one row each
	Consents      int
	Conversations int
	Events        int
	// Until is where times end; Span is how far they reach back, a year unless it says otherwise.
	Until time.Time
	Span  time.Duration
	// MessageText is how many characters the messages of a conversation have together, about 1,000 unless it
	// says otherwise.
	MessageText int
}

// Files are the names of what Write writes.
var Files = []string{"user_profiles.jsonl", "user_preferences.jsonl", "consent_records.jsonl", "conversations.jsonl", "audit_logs.jsonl"}

// Write writes the five files into a folder, over what is there, and returns their paths.
func Write(dir string, o Options) ([]string, error) {
	if o.Until.IsZero() {
		o.Until = time.Now().UTC().Truncate(24 * time.Hour)
	}
	o.Span = cmp.Or(o.Span, 365*24*time.Hour)
	o.MessageText = cmp.Or(o.MessageText, 1000)
	o.People = max(o.People, 1)

	counts := []int{o.People, o.People, o.Consents, o.Conversations, o.Events}
	lines := []func(*generator, []byte, int) []byte{profile, preferences, consent, conversation, event}
	paths := make([]string, len(Files))
	for i, name := range Files {
		paths[i] = filepath.Join(dir, name)
		g := &generator{Options: o, Rand: rand.New(rand.NewPCG(o.Seed, uint64(i)))}
		if err := g.writeFile(paths[i], counts[i], lines[i]); err != nil {
			return nil, fmt.Errorf("write sample: %w", err)
		}
	}
	return paths, nil
}

type generator struct {
	Options
	*rand.Rand
}

func (g *generator) writeFile(path string, rows int, line func(*generator, []byte, int) []byte) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	err = g.write(file, rows, line)
	if closed := file.Close(); err == nil {
		err = closed
	}
	return err
}

func (g *generator) write(w io.Writer, rows int, line func(*generator, []byte, int) []byte) error {
	out := bufio.NewWriterSize(w, 1<<20)
	var buf []byte
	for i := range rows {
		buf = append(line(g, buf[:0], i), '\n')
		if _, err := out.Write(buf); err != nil {
			return err
		}
	}
	return out.Flush()
}

// UserID is the id of the nth person.
func UserID(n int) string { return fmt.Sprintf("person-%07d", n) }

func (g *generator) user() string { return UserID(g.IntN(g.People)) }

// time is one within the span, never after Until.
func (g *generator) time() time.Time {
	return g.Until.Add(-time.Duration(1 + g.Int64N(int64(g.Span)))).Truncate(time.Millisecond)
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

var (
	givenNames  = []string{"Ada", "Blaise", "Chioma", "Dmitri", "Emmy", "Fatima", "Grace", "Hồng", "Inés", "Jürgen", "Katsuko", "Łucja"}
	familyNames = []string{"Abebe", "Bauer", "Castillo", "Dubois", "Eriksen", "Fischer", "García", "Haddad", "Ito", "Jensen", "Kowalski", "Öztürk"}
	cities      = []string{"Aarhus", "Bilbao", "Cork", "Dresden", "Évora", "Fukuoka", "Graz", "Helsinki"}
	countries   = []string{"Denmark", "Spain", "Ireland", "Germany", "Portugal", "Japan", "Austria", "Finland"}
	languages   = []string{"en", "de", "es", "pt", "fi", "ja"}
	purposes    = []string{"service", "marketing", "analytics"}
	sources     = []string{"web", "account-settings", "phone"}
	words       = []string{"account", "address", "again", "agree", "answer", "appointment", "before", "bill", "change", "check",
		"could", "date", "delivery", "does", "email", "form", "friday", "from", "have", "help", "invoice", "later", "letter", "my",
		"need", "not", "number", "order", "payment", "please", "question", "receive", "send", "should", "thank", "the", "today", "when",
		"with", "would", "yes", "your"}
	actions = []struct{ action, resourceType string }{
		{"order.create", "shop::order"}, {"order.read", "shop::order"}, {"invoice.read", "shop::invoice"},
		{"profile.read", "shop::customer"}, {"session.open", ""}, {"session.close", ""}, {"search.run", ""},
	}
	results = []string{"success", "success", "success", "success", "success", "success", "success", "failure", "denied"}
	agents  = []string{"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0", "shop-app/7.2 (Android 16)", "shop-batch/1.4"}
)

func profile(g *generator, b []byte, i int) []byte {
	place := g.IntN(len(cities))
	return fmt.Appendf(b, `{"user_id":"%s","full_name":"%s %s","organisation":null,"title":null,"address":"%d %s Street","city":"%s",`+
		`"region":null,"postal_code":"%05d","country":"%s","phone":"+%02d %d %d","email":"%s@example.com"}`,
		UserID(i), pick(g, givenNames), pick(g, familyNames), 1+g.IntN(200), pick(g, familyNames), cities[place],
		g.IntN(100_000), countries[place], 30+g.IntN(60), 100+g.IntN(900), 1_000_000+g.IntN(9_000_000), UserID(i))
}

func preferences(g *generator, b []byte, i int) []byte {
	return fmt.Appendf(b, `{"user_id":"%s","preferences":{"language":"%s","newsletter":%t,"theme":"%s"}}`,
		UserID(i), pick(g, languages), g.IntN(2) == 0, pick(g, []string{"light", "dark"}))
}

func consent(g *generator, b []byte, i int) []byte {
	return fmt.Appendf(b, `{"user_id":"%s","purpose":"%s","granted":%t,"policy_version":"2026-01","legal_basis":"consent","timestamp":"%s","source":"%s"}`,
		g.user(), pick(g, purposes), g.IntN(3) > 0, g.time().Format(time.RFC3339Nano), pick(g, sources))
}

func conversation(g *generator, b []byte, i int) []byte {
	at := g.time().Add(-time.Hour)
	turns := 2 + g.IntN(6)
	b = fmt.Appendf(b, `{"user_id":"%s","conversation_id":"chat-%s","started_at":"%s","last_message_at":"%s","messages":[`,
		g.user(), g.uuid(), at.Format(time.RFC3339Nano), at.Add(time.Duration(turns-1)*30*time.Second).Format(time.RFC3339Nano))
	for turn := range turns {
		if turn > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"role":"`...)
		b = append(b, [...]string{"user", "assistant"}[turn%2]...)
		b = append(b, `","text":"`...)
		for end := len(b) + g.MessageText/turns; ; b = append(b, ' ') {
			b = append(b, pick(g, words)...)
			if len(b) >= end {
				break
			}
		}
		b = append(b, `","at":"`...)
		b = at.Add(time.Duration(turn)*30*time.Second).AppendFormat(b, time.RFC3339Nano)
		b = append(b, `"}`...)
	}
	return append(b, "]}"...)
}

func event(g *generator, b []byte, i int) []byte {
	a := pick(g, actions)
	user := g.user()
	b = fmt.Appendf(b, `{"log_entry_id":"%s","timestamp":"%s","user_id":"%s","action":"%s",`, g.uuid(), g.time().Format(time.RFC3339Nano), user, a.action)
	switch {
	case a.resourceType == "":
		b = append(b, `"resource_type":null,"resource_id":null,`...)
	case a.resourceType == "shop::customer":
		b = fmt.Appendf(b, `"resource_type":"%s","resource_id":"%s",`, a.resourceType, g.user())
	default:
		b = fmt.Appendf(b, `"resource_type":"%s","resource_id":"%08d",`, a.resourceType, g.IntN(100_000_000))
	}
	return fmt.Appendf(b, `"result":"%s","metadata":{"source_ip":"10.%d.%d.%d","user_agent":"%s","region":"eu-%d","request_parameters":{"limit":%d,"order":"%s"}}}`,
		pick(g, results), g.IntN(256), g.IntN(256), g.IntN(256), pick(g, agents), 1+g.IntN(3), g.IntN(1000), strconv.FormatInt(g.Int64N(1<<40), 36))
}

// uuid draws a version 4 uuid from the seed.
func (g *generator) uuid() string {
	high, low := g.Uint64(), g.Uint64()
	high = high&^0xf000 | 0x4000
	low = low&^(3<<62) | 2<<62
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", high>>32, high>>16&0xffff, high&0xffff, low>>48, low&0xffff_ffff_ffff)
}
