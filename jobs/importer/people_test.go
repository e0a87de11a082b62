package importer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"pgcustody/db"
	"pgcustody/jobs"
)

// oddMessages are written as no encoder writes them: names out of order and twice, numbers and escapes in every form.
const oddMessages = `[ {"text":"Planted\u0020Text \/ \u00e9\ud83d\ude00\n","role":"user","at":"2026-01-01T00:00:00Z"},` +
	`{"at":"2026-01-01T00:01:00Z","text":"Planted Text","role":"assistant","tokens":1.50e1,"cost":-0.0,"more":{"zz":[1E3,null],"a":true,"zz":[1e-3]}} ]`

func conversationLine(userID, id, title, messages string) string {
	return fmt.Sprintf(`{"user_id":%q,"conversation_id":%q,"title":%s,"started_at":"2026-01-01T00:00:00Z","last_message_at":"2026-01-01T00:01:00Z","messages":%s}`, userID, id, title, messages)
}

// A lastTx remembers the transaction that it began last.
type lastTx struct {
	jobs.Beginner
	tx pgx.Tx
}

func (l *lastTx) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	var err error
	l.tx, err = l.Beginner.BeginTx(ctx, options)
	return l.tx, err
}

// TestConversationsAreStagedSealed: what somebody said goes to the database sealed.
func TestConversationsAreStagedSealed(t *testing.T) {
	s := newSite(t)
	cfg := s.config()
	last := &lastTx{Beginner: s.runner}
	cfg.Database = last
	staged := ""
	cfg.Progress = func(p Progress) {
		if p.Storing > 0 {
			require.NoError(t, last.tx.QueryRow(t.Context(), `select string_agg(s::text || convert_from(convert_to(encode(s.messages, 'escape'), 'UTF8'), 'UTF8'), ' ')
				from pg_temp.staged_conversations s`).Scan(&staged))
		}
	}
	s.mustImport(cfg, s.file("conversations", conversationLine("u1", "c1", `"Planted Title"`, oddMessages), conversationLine("u2", "c1", "null", oddMessages)))
	require.Contains(t, staged, "c1")
	for _, planted := range []string{"Planted", "Text", "Title", "assistant", fmt.Sprintf("%x", "Planted")} {
		require.NotContains(t, staged, planted)
	}
	require.Equal(t, []string{"Planted Title Planted Text / é😀\n"}, opened[string](s, `select (c ->> 'title') || ' ' || (c #>> '{messages,0,text}') from custody.get_conversation('u1', 'c1') c`))
}

// TestRowsOfConversationsAreSealed: not in the rows that COPY gets either, and for each place in other bytes.
func TestRowsOfConversationsAreSealed(t *testing.T) {
	p := testParser("conversations")
	p.people = testPeople("u1", "u2")
	var messages [][]byte
	for _, line := range []string{conversationLine("u1", "c1", `"Planted Title"`, oddMessages), conversationLine("u1", "c2", `""`, oddMessages), conversationLine("u2", "c1", "null", oddMessages)} {
		row, prob := p.appendRow(nil, []byte(line), 1)
		require.Nil(t, prob)
		require.False(t, bytes.Contains(row, []byte("Planted")))
		values := decodeRow(t, row)
		messages = append(messages, values[4])
		again, _ := p.appendRow(nil, []byte(line), 1)
		require.Equal(t, row, again)
		if strings.Contains(line, "null,") && strings.Contains(line, "u2") {
			require.Nil(t, values[3], "no title")
		} else {
			require.NotNil(t, values[3], "a title, though an empty one")
		}
	}
	require.NotEqual(t, messages[0][20:], messages[1][20:])
	require.NotEqual(t, messages[0][20:], messages[2][20:])
}

// TestConversationOfTheApplication: one that the application has saved is the same in an import, however the file
// writes it; where the application has changed one, the import changes that back, and the trail says which columns.
func TestConversationOfTheApplication(t *testing.T) {
	s := newSite(t)
	file := s.file("conversations", conversationLine("u1", "c1", `"A \"title\""`, oddMessages))
	s.as("custody_app", "select custody.save_conversation('u1', 'c1', $1, 'A \"title\"')", oddMessages)
	updates := func() []string {
		return opened[string](s, `select metadata ->> 'columns' from custody_data.audit_logs where action = 'record.update' and actor_id =
			(select identity_id from custody_data.identities where user_id = 'tester') order by recorded_at, log_entry_id`)
	}
	cfg := s.config()
	cfg.Again = true
	require.Equal(t, int64(1), s.mustImport(cfg, file)[0].RowsUnchanged)
	require.Empty(t, updates())
	require.Equal(t, 1, value[int](s, "select version from custody_data.conversations"))

	for _, change := range []struct{ statement, columns string }{
		{`select custody.save_conversation('u1', 'c1', $1, 'A "title"')`, ""}, // the same once more
		{`select custody.append_message('u1', 'c1', $1)`, `["message_count", "messages"]`},
		{`select custody.update_conversation('u1', 'c1', $1)`, `["title"]`},
		{`select custody.update_conversation('u1', 'c1', null) from (select $1::text) x`, `["title"]`},
		{`select custody.save_conversation('u1', 'c1', $1, 'A "title"')`, `["last_message_at", "message_count", "messages"]`},
		{`select custody.delete_conversation('u1', 'c1') from (select $1::text) x`, ""},
	} {
		argument := oddMessages
		switch {
		case strings.Contains(change.statement, "append"):
			argument = `{"role":"user","text":"more","at":"2026-01-01T00:00:30Z"}`
		case strings.Contains(change.columns, "last"):
			argument = `[{"role":"user","text":"other","at":"2026-01-01T00:00:00Z"}]`
		}
		s.as("custody_app", change.statement, argument)
		before := updates()
		r := s.mustImport(cfg, file)[0]
		switch {
		case change.columns != "":
			require.Equal(t, int64(1), r.RowsChanged, change.statement)
			require.Equal(t, append(before, change.columns), updates())
		case strings.Contains(change.statement, "delete"):
			require.Equal(t, int64(1), r.RowsAdded)
		default:
			require.Equal(t, int64(1), r.RowsUnchanged, change.statement)
		}
		require.Equal(t, before, updates()[:len(before)])
	}
}

// TestConversationsAndRotations: in the middle of a rotation, and after one of data keys, an import goes on.
func TestConversationsAndRotations(t *testing.T) {
	s := newSite(t)
	file := s.file("conversations", conversationLine("u1", "c1", `"T"`, oddMessages), conversationLine("u2", "c1", "null", oddMessages))
	cfg := s.config()
	cfg.Again = true
	s.mustImport(cfg, file)
	const u1 = "select messages from custody_data.conversations join custody_data.identities using (tenant_id, identity_id) where user_id = 'u1'"
	older := value[[]byte](s, u1)
	_, err := s.unlock.Ring.Rotate(t.Context(), "acme", nil)
	require.NoError(t, err)
	require.Equal(t, int64(2), s.mustImport(cfg, file)[0].RowsUnchanged, "under the same data keys")

	s.in("acme", func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "select custody.rotate_data_keys(now() + interval '1 hour')")
		return err
	})
	require.Equal(t, int64(2), s.mustImport(cfg, file)[0].RowsUnchanged, "sealed anew by the rotation")

	// A value that is still under the older key is sealed anew by the import.
	s.in("acme", func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "update custody_data.conversations set messages = $1 where messages = $2", older, value[[]byte](s, u1))
		return err
	})
	r := s.mustImport(cfg, file)[0]
	require.Equal(t, []int64{1, 1}, []int64{r.RowsChanged, r.RowsUnchanged})
	require.Equal(t, byte(2), value[[]byte](s, u1)[4], "the version of its key")
	require.Len(t, opened[string](s, "select custody.get_conversation('u1', 'c1')::text"), 1)
}

// TestConversationsLocked: without a key the file is not even read.
func TestConversationsLocked(t *testing.T) {
	s := newSite(t)
	cfg := s.config()
	cfg.Unlock = nil
	before := s.state()
	_, err := Run(t.Context(), cfg, []string{s.file("conversations", "no JSON")})
	require.ErrorIs(t, db.FromPg(err), db.ErrLocked)
	require.Equal(t, before, s.state())
}

// TestFileChangesBetweenThePasses: a file that is another one when it is read the second time is not imported.
func TestFileChangesBetweenThePasses(t *testing.T) {
	s := newSite(t)
	first := conversationLine("u1", "c1", `"T"`, oddMessages)
	for name, second := range map[string]string{
		"another person": conversationLine("u2", "c1", `"T"`, oddMessages), "another title": conversationLine("u1", "c1", `"U"`, oddMessages),
		"a bad line": first + "\n{}", "nothing": "", "one more": first + "\n" + conversationLine("u1", "c2", `"T"`, oddMessages),
	} {
		for _, rejects := range []bool{false, true} {
			path := s.file("conversations", first, "bad")
			if !rejects {
				path = s.file("conversations", first)
			}
			cfg := s.config()
			if rejects {
				cfg.Rejects = s.rejects(uuid.NewString())
			}
			cfg.Progress = func(p Progress) {
				if p.Bytes*2 == p.Size {
					require.NoError(t, os.WriteFile(path, []byte(second+"\n"), 0o600))
				}
			}
			before := s.state()
			_, err := Run(t.Context(), cfg, []string{path})
			var file *FileError
			require.ErrorAs(t, err, &file, name)
			require.True(t, file.Changed, name)
			require.Equal(t, before, s.state(), name)
			require.Zero(t, cfg.Rejects.Lines(), name)
		}
	}
}

// TestRejectedConversations: each once, though the file is read twice, and nobody becomes known by one.
func TestRejectedConversations(t *testing.T) {
	s := newSite(t)
	cfg := s.config()
	cfg.Rejects = s.rejects("rejects.jsonl")
	var progress []int64
	cfg.Progress = func(p Progress) {
		require.LessOrEqual(t, p.Bytes, p.Size)
		progress = append(progress, p.Bytes)
	}
	good := conversationLine("u1", "c1", `"T"`, oddMessages)
	r := s.mustImport(cfg, s.file("conversations", good, conversationLine("u2", "c1", `"T"`, "[]"), "bad", good, conversationLine("u1", "c1", `"Other"`, oddMessages)))[0]
	require.Equal(t, []int64{5, 1, 1, 3}, []int64{r.RowsRead, r.RowsAdded, r.RowsUnchanged, r.RowsRejected})
	require.IsNonDecreasing(t, progress[:2])
	require.NoError(t, cfg.Rejects.Close())
	var lines []int64
	for _, rejected := range readRejects(t, s.dir+"/rejects.jsonl") {
		lines = append(lines, rejected.Line)
	}
	require.Equal(t, []int64{2, 3, 5}, lines)
	require.Zero(t, value[int](s, "select count(*) from custody_data.identities where user_id = 'u2'"))
}

// TestManyPeople: keys are made for all that are new, in one go, and wiped at the end.
func TestManyPeople(t *testing.T) {
	s := newSite(t)
	userIDs := map[string]bool{}
	for n := range 3000 {
		userIDs[fmt.Sprintf("person %d", n)] = true
	}
	require.NoError(t, s.unlock.With(t.Context(), "acme", func(kek []byte) error {
		return jobs.InContext(t.Context(), s.runner, jobs.Scope{Tenant: "acme", Actor: "tester", KEK: kek}, func(tx pgx.Tx) error {
			p, err := claimPeople(t.Context(), tx, "acme", kek, userIDs)
			require.NoError(t, err)
			require.Len(t, p.byID, len(userIDs))
			var sealed []byte
			row, prob := p.appendSealed(nil, p.byID["person 7"], "conversations", "title", "c", []byte("x"))
			require.Nil(t, prob)
			require.NoError(t, tx.QueryRow(t.Context(), "select custody.seal_value($1, 'conversations', 'title', 'c', 'x')", p.byID["person 7"].identity).Scan(&sealed))
			require.Equal(t, sealed, row[4:], "as the database seals")
			p.wipe()
			for _, one := range p.byID {
				require.Equal(t, make([]byte, 64), one.key)
			}
			return nil
		})
	}))
	require.Equal(t, 3000, value[int](s, "select count(*) from custody_keys.data_keys where tenant_id = 'acme'"))
}
