package logship

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"pgcustody/db"
	"pgcustody/jobs/serverlog"
)

// RegionBytes is how much of a log a batch is made of.
const RegionBytes = 4 << 20

// Finding is something wrong, as custody.record_log_batch takes it.
type Finding struct {
	Kind    string            `json:"kind"`
	Batch   *int64            `json:"batch,omitempty"`
	Session string            `json:"session_id,omitempty"`
	From    int64             `json:"line_from"`
	To      int64             `json:"line_to"`
	N       int64             `json:"occurrences"`
	At      *time.Time        `json:"occurred_at,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// Options of a batch.
type Options struct {
	Encoder  serverlog.EncoderOptions
	Location *time.Location // log_timezone
	// Database is the one whose reads are looked for: what is logged of others is shipped,
	// and neither believed nor doubted.
	Database string
	// Ours tells which messages are lines of the schema, given the session that each
	// stands in, by a letter for each: t, f, and ? where nobody can tell any more.
	Ours func(messages, sessions []string) (string, error)
}

// Region is a stretch of a log.
type Region struct {
	Format   serverlog.Format
	Data     io.ReaderAt
	From, To int64
	// Complete says that nothing comes behind To.
	Complete bool
}

// Batch is what a region held.
type Batch struct {
	End         int64 // where to go on
	Lines       int64
	Bytes       int64 // of the log
	First, Last time.Time
	Counts      map[string]int64
	Findings    []Finding
	Rows        []*db.AddAccessEventsParams // pieces of at most piece rows
}

// piece is how many rows one statement inserts.
const piece = 8192

// sort is what many access events have in common.
type sort struct {
	tenant, kind, class, action, object, login, role, actor, purpose, client, application, session, state string
}

var ownPrefix = []byte("PGCUSTODY ")

// ownContext begins the context of a line that custody_data.write_line raised.
var ownContext = []byte("PL/pgSQL function custody_data.write_line(")

// maxOwn is longer than any line of the schema: 1000 people, and names.
const maxOwn = 128 << 10

// claims tells whether a record says to be one of the schema's lines.
func (b *builder) claims(r *serverlog.Record) bool {
	return bytes.HasPrefix(r.Message, ownPrefix) && !b.foreign(r)
}

// foreign tells whether a record is of a session of another database.
func (b *builder) foreign(r *serverlog.Record) bool {
	return len(r.DBName) > 0 && string(r.DBName) != b.o.Database
}

// candidate tells whether it could be.
func candidate(r *serverlog.Record) bool {
	return string(r.ErrorSeverity) == "LOG" && string(r.StateCode) == "00000" && bytes.HasPrefix(r.Context, ownContext) &&
		len(r.Message) <= maxOwn && utf8.Valid(r.Message) && bytes.IndexByte(r.Message, 0) < 0 && utf8.Valid(r.SessionID) && len(r.SessionID) <= 64
}

// Build reads a region, writes its events to out and moves the state on.
func Build(region Region, state *State, o Options, out func(lines []byte, n int64) error) (*Batch, error) {
	b := &builder{
		Batch: Batch{Counts: map[string]int64{}, End: region.From}, o: o, state: state, enc: serverlog.NewEncoder(o.Encoder),
		folded: map[foldKey]int{}, interned: map[string]string{}, clients: map[string]string{}, sorts: map[sort]int32{},
		seq: serverlog.NewSequence(serverlog.SequenceOptions{Since: state.Since, Latest: state.Latest}, state.Sessions...),
	}
	if err := b.look(region); err != nil {
		return nil, err
	}
	reader := serverlog.NewReader(io.NewSectionReader(region.Data, region.From, region.To-region.From), serverlog.Options{
		Format: region.Format, Offset: region.From, Complete: region.Complete, Location: o.Location, Unreadable: b.unreadable,
	})
	var lines []byte
	var n int64
	flush := func() error {
		if n == 0 {
			return nil
		}
		err := out(lines, n)
		lines, n = lines[:0], 0
		return err
	}
	var rec serverlog.Record
	for {
		err := reader.Next(&rec)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		lines = append(b.record(lines, &rec), '\n')
		if n++; len(lines) >= 256<<10 {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	b.End = reader.Offset()
	counts := reader.Counts()
	b.Bytes = counts.Bytes
	for name, n := range map[string]int64{"broken": counts.Broken, "too_long": counts.TooLong, "cut": counts.Cut, "bad_encoding": counts.BadEncoding, "unknown_zone": counts.UnknownZone} {
		if n > 0 {
			b.Counts[name] = n
		}
	}
	// Not every session says that it ends.
	for session := range state.Contexts {
		if !b.seq.Knows(session) {
			delete(state.Contexts, session)
		}
	}
	state.Sessions = b.seq.Places()
	state.Since, state.Latest = b.seq.Span()
	return &b.Batch, nil
}

type foldKey struct{ kind, session string }

type builder struct {
	Batch
	o        Options
	state    *State
	enc      *serverlog.Encoder
	seq      *serverlog.Sequence
	found    []serverlog.Finding
	claimed  []claimed // in the order of the log
	folded   map[foldKey]int
	interned map[string]string
	clients  map[string]string // addresses by remote_host, empty for names
	sorts    map[sort]int32    // of the last piece, from 1
}

// claimed is a record that says to be one of the schema's lines.
type claimed struct {
	message, session string
	ours             byte
}

// look finds the records that claim to be the schema's, and asks about them.
func (b *builder) look(region Region) error {
	var src io.Reader = io.NewSectionReader(region.Data, region.From, region.To-region.From)
	if memory, ok := region.Data.(*Memory); ok {
		all := memory.slice(region.From, region.To)
		if !bytes.Contains(all, ownPrefix) {
			return nil
		}
		if region.Format == serverlog.JSON {
			src = &linesWith{rest: all, tag: ownPrefix}
		}
	}
	reader := serverlog.NewReader(src, serverlog.Options{Format: region.Format, Complete: region.Complete, Location: b.o.Location})
	var rec serverlog.Record
	var messages, sessions []string
	var asked []int
	for {
		err := reader.Next(&rec)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if !b.claims(&rec) {
			continue
		}
		c := claimed{message: string(rec.Message), session: string(rec.SessionID)}
		if candidate(&rec) {
			asked = append(asked, len(b.claimed))
			messages, sessions = append(messages, c.message), append(sessions, c.session)
		}
		b.claimed = append(b.claimed, c)
	}
	if len(messages) == 0 {
		return nil
	}
	ours, err := b.o.Ours(messages, sessions)
	if err != nil {
		return err
	}
	if len(ours) != len(messages) {
		return errors.New("check of own lines: answers do not fit the questions")
	}
	for i, at := range asked {
		b.claimed[at].ours = ours[i]
	}
	return nil
}

// linesWith yields the lines that hold a tag, without copying them.
type linesWith struct{ rest, line, tag []byte }

func (l *linesWith) Read(p []byte) (int, error) {
	for len(l.line) == 0 {
		at := bytes.Index(l.rest, l.tag)
		if at < 0 {
			return 0, io.EOF
		}
		from := bytes.LastIndexByte(l.rest[:at], '\n') + 1
		to := len(l.rest)
		if end := bytes.IndexByte(l.rest[at:], '\n'); end >= 0 {
			to = at + end + 1
		}
		l.line, l.rest = l.rest[from:to], l.rest[to:]
	}
	n := copy(p, l.line)
	l.line = l.line[n:]
	return n, nil
}

// own is what a line of the schema says.
type own struct {
	What    string   `json:"what"`
	Tenant  string   `json:"tenant"`
	Actor   string   `json:"actor"`
	Purpose string   `json:"purpose"`
	Subject string   `json:"subject"`
	Role    string   `json:"role"`
	Xact    int64    `json:"xact"`
	Table   string   `json:"table"`
	People  []string `json:"people"`
	Rows    *int64   `json:"rows"`
	Event   string   `json:"event"`
}

// parse reads a line that was found to be the schema's.
func (c *claimed) parse() (o own, mac string, ok bool) {
	at := strings.IndexByte(c.message, '{')
	if at < 0 || json.Unmarshal([]byte(c.message[at:]), &o) != nil || o.What != "context" && o.What != "read" {
		return o, "", false
	}
	_, mac, ok = strings.Cut(strings.TrimSpace(c.message[len(ownPrefix):at]), ".")
	if len(mac) < 16 {
		return o, "", false
	}
	if o.Actor != "" && o.Actor[0] != '~' && uuid.Validate(o.Actor) != nil || o.Subject != "" && uuid.Validate(o.Subject) != nil {
		return o, "", false
	}
	for _, person := range o.People {
		if uuid.Validate(person) != nil {
			return o, "", false
		}
	}
	return o, mac[:16], ok
}

// kind says what it is, and reads it where it is the schema's.
func (c *claimed) kind(line *own, mac *string) serverlog.Kind {
	var ok bool
	switch c.ours {
	case '?':
		return serverlog.OwnUnverified
	case 't':
		if *line, *mac, ok = c.parse(); !ok {
			break
		}
		if line.What == "context" {
			return serverlog.OwnContext
		}
		return serverlog.OwnRead
	}
	return serverlog.Forgery
}

func (b *builder) record(dst []byte, r *serverlog.Record) []byte {
	b.Lines++
	kind := b.enc.Read(r)
	b.found = b.seq.Check(b.found[:0], r)
	for _, f := range b.found {
		b.sequence(f)
	}
	at := r.Time
	if at.IsZero() {
		at = cmp.Or(b.Last, b.state.Latest, time.Unix(0, 0).UTC())
		b.finding(r, "unknown_zone")
	} else {
		if b.First.IsZero() || at.Before(b.First) {
			b.First = at
		}
		if at.After(b.Last) {
			b.Last = at
		}
	}
	if r.BadEncoding {
		b.finding(r, "bad_encoding")
	}
	var line own
	var mac string
	if b.claims(r) {
		kind = serverlog.Forgery
		// Both passes meet them in the same order; the message says that they did.
		if len(b.claimed) > 0 {
			next := b.claimed[0]
			b.claimed = b.claimed[1:]
			if next.message == string(r.Message) && next.session == string(r.SessionID) {
				kind = next.kind(&line, &mac)
			}
		}
		b.enc.Claim(kind)
	}
	b.Counts[strings.ReplaceAll(kind.String(), " ", "_")]++

	var c *Context
	switch kind {
	case serverlog.OwnContext, serverlog.OwnRead:
		c = &Context{string(r.VXID), line.Tenant, line.Actor, line.Purpose, line.Subject, line.Role, line.Xact}
		b.state.Contexts[string(r.SessionID)] = c
	case serverlog.Logoff:
		delete(b.state.Contexts, string(r.SessionID))
		b.seq.Forget(r.SessionID)
	default:
		// A virtual transaction's number comes back after the session's: with the session it is one.
		if known := b.state.Contexts[string(r.SessionID)]; known != nil {
			if known.VXID == string(r.VXID) {
				c = known
			}
		}
	}
	b.row(r, kind, at, c, &line, mac)
	var said serverlog.Context
	if c != nil {
		said = serverlog.Context{Actor: c.Actor, Tenant: c.Tenant, Purpose: c.Purpose}
	}
	return b.enc.Append(dst, &said)
}

func (b *builder) intern(text []byte) string {
	if s, ok := b.interned[string(text)]; ok {
		return s
	}
	s := clean(string(text))
	if len(b.interned) < 10_000 {
		b.interned[string(text)] = s
	}
	return s
}

// clean makes a text that Postgres takes.
func clean(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "")
}

var parameterPrefix = []byte(`parameter "`)

// row adds what a record is to access_events, if it is anything there.
func (b *builder) row(r *serverlog.Record, kind serverlog.Kind, at time.Time, c *Context, line *own, mac string) {
	var class, action, object, what string
	rows, event := int64(-1), int64(0)
	if b.foreign(r) {
		switch kind {
		case serverlog.Connect, serverlog.Authenticated, serverlog.Logon, serverlog.LogonFailed, serverlog.Logoff:
		default:
			return
		}
	}
	switch kind {
	case serverlog.Statement:
		a := b.enc.Audit()
		what, class, action, object, rows = "statement", b.intern(a.Class), b.intern(a.Command), b.intern(a.Name), a.Rows
	case serverlog.Unproven, serverlog.OwnUnverified:
		b.finding(r, "unverified")
		return
	case serverlog.Forgery:
		what = "forged"
		b.finding(r, "forged")
	case serverlog.Connect:
		what = "connect"
	case serverlog.Authenticated:
		what = "authenticated"
	case serverlog.Logon:
		what = "logon"
	case serverlog.LogonFailed:
		what = "logon_failed"
	case serverlog.Logoff:
		what = "logoff"
	case serverlog.Failed:
		what = "message"
	case serverlog.OwnRead:
		what, class, action, object = "read", "READ", "record.read", line.Table
		if !strings.Contains(object, ".") {
			object = "custody_data." + object
		}
		if line.Rows != nil {
			rows = *line.Rows
		}
		switch {
		case line.Event == "" || line.Event == "read only" || line.Event == "standby":
			mac = line.Event
		default:
			var err error
			if event, err = strconv.ParseInt(line.Event, 10, 64); err != nil || event <= 0 {
				mac, event = "", 0
			}
		}
	case serverlog.Other:
		if !bytes.HasPrefix(r.Message, parameterPrefix) || string(r.BackendType) != "postmaster" {
			return
		}
		name, _, _ := bytes.Cut(r.Message[len(parameterPrefix):], []byte{'"'})
		what, class, action, object = "message", "SETTING", "changed", b.intern(name)
	default:
		return
	}
	tenant, actor, purpose, person, role := "", "", "", "", ""
	xact := int64(0)
	if c != nil {
		tenant, actor, purpose, person, role, xact = c.Tenant, c.Actor, c.Purpose, c.Subject, c.Role, c.Xact
	}
	client, known := b.clients[string(r.RemoteHost)]
	if !known {
		if ip, err := netip.ParseAddr(string(r.RemoteHost)); err == nil {
			client = ip.WithZone("").String()
		}
		b.clients[string(r.RemoteHost)] = client
	}
	state := ""
	if kind == serverlog.Failed || kind == serverlog.LogonFailed {
		state = b.intern(r.StateCode)
	}
	of := b.sort(&sort{tenant, what, class, action, object, b.intern(r.User), clean(role), actor, purpose, client, b.intern(r.ApplicationName), b.intern(r.SessionID), state})
	vxid := clean(string(r.VXID))
	if kind == serverlog.OwnRead && len(line.People) > 0 {
		for i, person := range line.People {
			b.add(of, int32(i), at, person, rows, vxid, xact, mac, event) //nolint:gosec // 1000 people at most
		}
		return
	}
	b.add(of, 0, at, person, rows, vxid, xact, mac, event)
}

// sort returns the number of a sort in the piece that takes the next rows.
func (b *builder) sort(s *sort) int32 {
	if n := len(b.Rows); n == 0 || len(b.Rows[n-1].Lines) >= piece {
		b.Rows = append(b.Rows, &db.AddAccessEventsParams{
			Sorts: make([]int32, 0, piece), Lines: make([]int32, 0, piece), OccurredAt: make([]time.Time, 0, piece), Vxids: make([]string, 0, piece),
		})
		clear(b.sorts)
	}
	of, ok := b.sorts[*s]
	if !ok {
		p := b.Rows[len(b.Rows)-1]
		p.Tenants, p.Kinds, p.Classes, p.Actions = append(p.Tenants, s.tenant), append(p.Kinds, s.kind), append(p.Classes, s.class), append(p.Actions, s.action)
		p.Objects, p.Logins, p.Roles, p.Actors = append(p.Objects, s.object), append(p.Logins, s.login), append(p.Roles, s.role), append(p.Actors, s.actor)
		p.Purposes, p.Clients, p.Applications = append(p.Purposes, s.purpose), append(p.Clients, s.client), append(p.Applications, s.application)
		p.Sessions, p.States = append(p.Sessions, s.session), append(p.States, s.state)
		of = int32(len(p.Tenants)) //nolint:gosec // a piece and the people of one line
		b.sorts[*s] = of
	}
	return of
}

// add adds a row to the last piece. What no row of it has anything of stays empty.
func (b *builder) add(of, part int32, at time.Time, person string, rows int64, vxid string, xact int64, mac string, event int64) {
	p := b.Rows[len(b.Rows)-1]
	n := len(p.Lines)
	p.Sorts, p.Lines, p.OccurredAt = append(p.Sorts, of), append(p.Lines, int32(b.Lines)), append(p.OccurredAt, at) //nolint:gosec // at most 8 Mi lines
	p.Parts, p.People, p.Counts = seldom(p.Parts, n, part, 0), seldom(p.People, n, person, ""), seldom(p.Counts, n, rows, -1)
	p.Vxids, p.Xacts = seldom(p.Vxids, n, vxid, ""), seldom(p.Xacts, n, xact, 0)
	p.EventLines, p.EventXids = seldom(p.EventLines, n, mac, ""), seldom(p.EventXids, n, event, 0)
}

// seldom appends the value of row n, and of those before it where it is the first of all.
func seldom[T comparable](to []T, n int, value, none T) []T {
	if value == none && len(to) == 0 {
		return to
	}
	for len(to) < n {
		to = append(to, none)
	}
	return append(to, value)
}

// finding adds what a record shows, or counts it to what the session showed before.
func (b *builder) finding(r *serverlog.Record, kind string) {
	b.fold(Finding{Kind: kind, Session: b.intern(r.SessionID), From: r.LineNum, To: r.LineNum, N: 1, At: when(r.Time)})
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (b *builder) fold(f Finding) {
	key := foldKey{f.Kind, f.Session}
	if len(b.folded) >= maxFindings && key.session != "" {
		if _, ok := b.folded[key]; !ok {
			key.session, f.Session = "", ""
		}
	}
	at, ok := b.folded[key]
	if !ok {
		b.folded[key] = len(b.Findings)
		b.Findings = append(b.Findings, f)
		return
	}
	known := &b.Findings[at]
	known.From, known.To, known.N = min(known.From, f.From), max(known.To, f.To), known.N+f.N
}

// maxFindings bounds what one batch may say of sessions one by one: what comes behind
// is counted by its kind.
const maxFindings = 1000

var kinds = map[serverlog.FindingKind]string{
	serverlog.Gap: "gap", serverlog.Repeat: "repeat", serverlog.Reordered: "reordered", serverlog.ClockBack: "clock_back",
}

func (b *builder) sequence(f serverlog.Finding) {
	kind := kinds[f.Kind]
	n := int64(1)
	if f.Kind == serverlog.Gap {
		n = max(f.To-f.From+1, 1)
	}
	var detail map[string]string
	if f.Kind == serverlog.ClockBack {
		detail = map[string]string{"back": f.Back.String()}
	}
	b.Counts[kind] += n
	b.fold(Finding{Kind: kind, Session: clean(f.SessionID), From: f.From, To: f.To, N: n, At: when(f.Time), Detail: detail})
}

func (b *builder) unreadable(u serverlog.Unreadable) {
	kind := map[serverlog.Reason]string{serverlog.Broken: "broken", serverlog.TooLong: "too_long", serverlog.Cut: "cut"}[u.Reason]
	b.fold(Finding{Kind: kind, From: u.Start, To: u.End, N: 1})
}

// Memory is a stretch of a file that was read.
type Memory struct {
	From int64
	Data []byte
}

// ReadAt reads from the stretch.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if off < m.From || off-m.From > int64(len(m.Data)) {
		return 0, io.EOF
	}
	n := copy(p, m.Data[off-m.From:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Memory) slice(from, to int64) []byte { return m.Data[from-m.From : to-m.From] }

// Load reads a stretch into memory, into the space of what was there where that is
// enough.
func (m *Memory) Load(file io.ReaderAt, from, to int64) error {
	m.From = from
	m.Data = slices.Grow(m.Data[:0], int(to-from))[:to-from]
	n, err := file.ReadAt(m.Data, from)
	m.Data = m.Data[:n]
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
