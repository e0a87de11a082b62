package importer

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// A problem is what is wrong with one line. Its text never quotes the line: it goes to terminals and logs.
type problem struct {
	line  int64
	code  string // SQLSTATE
	field string // dotted path, as in messages[2].at; empty when the line is not JSON at all
	text  string
}

// SQLSTATEs of what can be wrong with a line; the database uses them for the same.
const (
	badLineCode     = "PC028"
	userIDCode      = "PC003"
	actionCode      = "PC004"
	resourceCode    = "PC005"
	metadataKeyCode = "PC006"
	resultCode      = "PC007"
	legalBasisCode  = "PC008"
	timeCode        = "PC009"
)

func problemf(field, format string, args ...any) *problem {
	return codedProblemf(badLineCode, field, format, args...)
}

func codedProblemf(code, field, format string, args ...any) *problem {
	return &problem{code: code, field: field, text: fmt.Sprintf(format, args...)}
}

// maxFields is the size of the longest field list in tables.
const maxFields = 16

// rawField is a field as it stands in the line.
type rawField struct {
	value   []byte // the JSON literal; nil when the field is missing or null
	null    bool
	decoded []byte // memory for the text of a literal with escapes
}

// A rowParser turns lines of one table into rows of its staging table. It is not safe for concurrent use; the
// goroutines of an import have one each.
type rowParser struct {
	table    *table
	encode   func(p *rowParser, dst []byte) ([]byte, *problem)
	latest   int64 // microseconds since 1970 that no time may pass
	personal map[string]bool
	vocab    *vocabulary

	raw     [maxFields]rawField
	scratch []byte
	kept    []byte // metadata without the personal fields
	moved   []byte // the personal fields

	userIDs map[string]bool // what a survey finds
	people  *people         // whom rows are sealed for
	jsonb   jsonbWriter
	plain   []byte // what is sealed next
}

func newRowParser(t *table, now time.Time, personal []string, vocab *vocabulary) *rowParser {
	p := &rowParser{table: t, encode: t.encode, latest: now.Add(24 * time.Hour).UnixMicro(), vocab: vocab, scratch: make([]byte, 0, 256)}
	if len(personal) > 0 {
		p.personal = make(map[string]bool, len(personal))
		for _, name := range personal {
			p.personal[name] = true
		}
	}
	return p
}

// appendRow appends the row that a line makes in COPY's binary format. After a problem dst is as it was.
func (p *rowParser) appendRow(dst, line []byte, number int64) ([]byte, *problem) {
	if prob := p.split(line); prob != nil {
		prob.line = number
		return dst, prob
	}
	before := len(dst)
	dst = append(dst, byte(p.table.columns>>8), byte(p.table.columns))
	dst = appendInt8(dst, number)
	dst, prob := p.encode(p, dst)
	if prob != nil {
		prob.line = number
		return dst[:before], prob
	}
	return dst, nil
}

// split checks that a line is one JSON object of known fields, each once, and notes where they are.
func (p *rowParser) split(line []byte) *problem {
	for i := range p.table.fields {
		p.raw[i] = rawField{decoded: p.raw[i].decoded[:0]}
	}
	if at := firstInvalid(line); at >= 0 {
		return (&syntaxError{at, "not UTF-8"}).problem("")
	}
	start := skipSpace(line, 0)
	if start >= len(line) || line[start] != '{' {
		if start < len(line) && line[start] == 0 {
			return (&syntaxError{start, nulText}).problem("")
		}
		return problemf("", "not a JSON object")
	}
	m := members{b: line, i: start}
	m.open()
	for m.next() {
		name := m.name(p.scratch)
		i := p.table.field(name, m.index)
		if i < 0 {
			return problemf(shorten(name), "unknown field; %s has %s", p.table.name, p.table.fieldList())
		}
		f := &p.raw[i]
		if f.value != nil || f.null {
			return problemf(p.table.fields[i].name, "is there twice")
		}
		if m.value[0] == 'n' {
			f.null = true
			continue
		}
		f.value = m.value
	}
	if m.err != nil {
		field := ""
		if m.inValue {
			field = shorten(m.name(p.scratch))
		}
		return m.err.problem(field)
	}
	if end := skipSpace(line, m.i); end < len(line) {
		if line[end] == 0 {
			return (&syntaxError{end, nulText}).problem("")
		}
		return (&syntaxError{end, "more than one JSON value in the line, the second"}).problem("")
	}
	for i := range p.table.fields {
		f := &p.table.fields[i]
		if f.required && p.raw[i].value == nil {
			if p.raw[i].null {
				return problemf(f.name, "is null")
			}
			return problemf(f.name, "is missing")
		}
		if v := p.raw[i].value; v != nil {
			if prob := f.checkType(v); prob != nil {
				return prob
			}
		}
	}
	return nil
}

func (f *field) checkType(v []byte) *problem {
	switch f.kind {
	case kindText, kindTime, kindUUID:
		if v[0] != '"' {
			return problemf(f.name, "is not a string")
		}
	case kindBool:
		if v[0] != 't' && v[0] != 'f' {
			return problemf(f.name, "is neither true nor false")
		}
	case kindObject:
		if v[0] != '{' {
			return problemf(f.name, "is not a JSON object")
		}
	case kindArray:
		if v[0] != '[' {
			return problemf(f.name, "is not a JSON array")
		}
	}
	return nil
}

// has says whether the line gives field i.
func (p *rowParser) has(i int) bool { return p.raw[i].value != nil }

// text returns a string field without quotes and escapes, after checking its length.
func (p *rowParser) text(i int) ([]byte, *problem) {
	f, raw := &p.table.fields[i], &p.raw[i]
	s := p.unescaped(raw)
	// A character has one byte or more, so most need no counting.
	if len(s) < f.min || len(s) > f.max && utf8.RuneCount(s) > f.max {
		return nil, codedProblemf(f.code(), f.name, "has %d characters; %d to %d are allowed", utf8.RuneCount(s), f.min, f.max)
	}
	if f.notBlank && len(bytes.Trim(s, " ")) == 0 {
		return nil, codedProblemf(f.code(), f.name, "is blank")
	}
	return s, nil
}

func (p *rowParser) unescaped(raw *rawField) []byte {
	s := raw.value[1 : len(raw.value)-1]
	if bytes.IndexByte(s, '\\') < 0 {
		return s
	}
	raw.decoded = unquote(raw.decoded[:0], raw.value)
	return raw.decoded
}

func (p *rowParser) appendText(dst []byte, i int) ([]byte, *problem) {
	if !p.has(i) {
		return appendNull(dst), nil
	}
	s, prob := p.text(i)
	if prob != nil {
		return dst, prob
	}
	return appendBytes(dst, s), nil
}

// appendName appends a text that must be one of known.
func (p *rowParser) appendName(dst []byte, i int, known map[string]bool, list, code string) ([]byte, *problem) {
	s := p.unescaped(&p.raw[i])
	if !known[string(s)] {
		return dst, codedProblemf(code, p.table.fields[i].name, "is unknown; it is one of %s", list)
	}
	return appendBytes(dst, s), nil
}

func (p *rowParser) time(name string, literal []byte) (int64, *problem) {
	t, ok := parseTime(literal[1 : len(literal)-1])
	if !ok && bytes.IndexByte(literal, '\\') >= 0 {
		t, ok = parseTime(unquote(p.scratch[:0], literal))
	}
	switch {
	case !ok:
		return 0, codedProblemf(timeCode, name, "is not a finite time in RFC 3339 form, as in 2026-01-31T12:00:00Z")
	case t < 0:
		return 0, codedProblemf(timeCode, name, "is before 1970")
	case t > p.latest:
		return 0, codedProblemf(timeCode, name, "is more than a day ahead")
	}
	return t, nil
}

func (p *rowParser) appendUUID(dst []byte, i int) ([]byte, *problem) {
	if !p.has(i) {
		return appendNull(dst), nil
	}
	u, ok := parseUUID(p.unescaped(&p.raw[i]))
	if !ok {
		return dst, problemf(p.table.fields[i].name, "is not a uuid")
	}
	return append(appendLength(dst, 16), u[:]...), nil
}

func (p *rowParser) appendObject(dst []byte, i int) []byte {
	if !p.has(i) {
		return appendNull(dst)
	}
	return appendJSON(dst, p.raw[i].value)
}

func encodeProfile(p *rowParser, dst []byte) ([]byte, *problem) {
	var prob *problem
	for i := range p.table.fields {
		if p.table.fields[i].kind == kindObject {
			dst = p.appendObject(dst, i)
		} else if dst, prob = p.appendText(dst, i); prob != nil {
			return dst, prob
		}
	}
	return dst, nil
}

func encodePreferences(p *rowParser, dst []byte) ([]byte, *problem) {
	dst, prob := p.appendText(dst, preferencesUser)
	if prob != nil {
		return dst, prob
	}
	return p.appendObject(dst, preferencesObject), nil
}

func encodeConsent(p *rowParser, dst []byte) ([]byte, *problem) {
	dst, prob := p.appendUUID(dst, consentID)
	if prob != nil {
		return dst, prob
	}
	for _, i := range [...]int{consentUser, consentPurpose} {
		if dst, prob = p.appendText(dst, i); prob != nil {
			return dst, prob
		}
	}
	dst = appendBool(dst, p.raw[consentGranted].value[0] == 't')
	if dst, prob = p.appendText(dst, consentPolicy); prob != nil {
		return dst, prob
	}
	if dst, prob = p.appendName(dst, consentBasis, legalBases, legalBasisList, legalBasisCode); prob != nil {
		return dst, prob
	}
	if dst, prob = p.appendEvidence(dst); prob != nil {
		return dst, prob
	}
	t, prob := p.time("timestamp", p.raw[consentTime].value)
	if prob != nil {
		return dst, prob
	}
	return appendTime(dst, t), nil
}

// appendEvidence puts the field source into the evidence, where the table keeps it.
func (p *rowParser) appendEvidence(dst []byte) ([]byte, *problem) {
	evidence, source := p.raw[consentEvidence].value, p.raw[consentSource].value
	switch {
	case source == nil:
		return p.appendObject(dst, consentEvidence), nil
	case evidence == nil:
		return appendJSON(dst, []byte(`{"source":`), source, []byte("}")), nil
	}
	m := members{b: evidence}
	m.open()
	for m.next() {
		if string(m.name(p.scratch)) == "source" {
			return dst, problemf("source", "is there twice: as a field and in evidence")
		}
	}
	if m.index < 0 {
		return appendJSON(dst, []byte(`{"source":`), source, []byte("}")), nil
	}
	return appendJSON(dst, []byte(`{"source":`), source, []byte(","), evidence[1:]), nil
}

// A conversation is a line that was found good.
type conversation struct {
	userID, id    []byte
	title         []byte // nil where it is null
	count         int
	started, last int64
}

func (p *rowParser) conversation() (c conversation, prob *problem) {
	if c.userID, prob = p.text(conversationUser); prob != nil {
		return c, prob
	}
	if c.id, prob = p.text(conversationID); prob != nil {
		return c, prob
	}
	if p.has(conversationTitle) {
		if c.title, prob = p.text(conversationTitle); prob != nil {
			return c, prob
		}
	}
	if c.count, prob = p.checkMessages(p.raw[conversationMessages].value); prob != nil {
		return c, prob
	}
	if c.started, prob = p.time("started_at", p.raw[conversationStarted].value); prob != nil {
		return c, prob
	}
	if c.last, prob = p.time("last_message_at", p.raw[conversationLast].value); prob != nil {
		return c, prob
	}
	if c.last < c.started {
		return c, problemf("last_message_at", "is before started_at")
	}
	return c, nil
}

func surveyConversation(p *rowParser, dst []byte) ([]byte, *problem) {
	c, prob := p.conversation()
	if prob == nil && !p.userIDs[string(c.userID)] {
		p.userIDs[string(c.userID)] = true
	}
	return dst, prob
}

func encodeConversation(p *rowParser, dst []byte) ([]byte, *problem) {
	c, prob := p.conversation()
	if prob != nil {
		return dst, prob
	}
	who := p.people.byID[string(c.userID)]
	if who == nil {
		return dst, problemf("user_id", "was not in the file before") // which is said of the file when it is read
	}
	dst = append(appendLength(dst, len(who.identity)), who.identity[:]...)
	dst = appendBytes(dst, c.id)
	if dst, prob = p.people.appendSealed(dst, who, p.table.name, "title", string(c.id), c.title); prob != nil {
		return dst, prob
	}
	p.plain, _ = p.jsonb.append(p.plain[:0], p.raw[conversationMessages].value, 0)
	if dst, prob = p.people.appendSealed(dst, who, p.table.name, "messages", string(c.id), p.plain); prob != nil {
		return dst, prob
	}
	dst = appendInt4(dst, int32(c.count))
	return appendTime(appendTime(dst, c.started), c.last), nil
}

// checkMessages checks that each message has a role, a text and a time, and counts them. What else a message has
// is the application's.
func (p *rowParser) checkMessages(array []byte) (int, *problem) {
	m := members{b: array}
	m.open()
	for m.next() {
		if m.value[0] != '{' {
			return 0, problemf(messageField(m.index, ""), "is not a JSON object")
		}
		var found [len(messageFields)][]byte
		in := members{b: m.value}
		in.open()
		for in.next() {
			i := messageFieldIndex(in.name(p.scratch))
			if i < 0 {
				continue
			}
			if found[i] != nil {
				return 0, problemf(messageField(m.index, messageFields[i]), "is there twice")
			}
			if in.value[0] != '"' {
				return 0, problemf(messageField(m.index, messageFields[i]), "is not a string")
			}
			found[i] = in.value
		}
		for i, name := range messageFields {
			if found[i] == nil {
				return 0, problemf(messageField(m.index, name), "is missing")
			}
		}
		role := found[0][1 : len(found[0])-1]
		if len(role) == 0 || len(role) > roleMax && utf8.RuneCount(unquote(nil, found[0])) > roleMax {
			return 0, problemf(messageField(m.index, "role"), "is empty or has more than %d characters", roleMax)
		}
		if _, prob := p.time("at", found[2]); prob != nil {
			prob.field = messageField(m.index, "at")
			return 0, prob
		}
	}
	if m.index < 0 {
		return 0, problemf("messages", "is empty")
	}
	return m.index + 1, nil
}

var messageFields = [...]string{"role", "text", "at"}

func messageFieldIndex(name []byte) int {
	switch string(name) {
	case "role":
		return 0
	case "text":
		return 1
	case "at":
		return 2
	}
	return -1
}

func messageField(index int, name string) string {
	path := "messages[" + strconv.Itoa(index) + "]"
	if name != "" {
		path += "." + name
	}
	return path
}

func encodeAuditEvent(p *rowParser, dst []byte) ([]byte, *problem) {
	dst, prob := p.appendUUID(dst, auditID)
	if prob != nil {
		return dst, prob
	}
	t, prob := p.time("timestamp", p.raw[auditTime].value)
	if prob != nil {
		return dst, prob
	}
	dst = appendTime(dst, t)
	for _, i := range [...]int{auditUser, auditSubject, auditAction, auditResourceType, auditResourceID} {
		if dst, prob = p.appendText(dst, i); prob != nil {
			return dst, prob
		}
	}
	if dst, prob = p.appendName(dst, auditResult, results, resultList, resultCode); prob != nil {
		return dst, prob
	}
	if dst, prob = p.appendText(dst, auditPurpose); prob != nil {
		return dst, prob
	}
	known, prob := p.vocab.action(p.unescaped(&p.raw[auditAction]))
	if prob != nil {
		return dst, prob
	}
	if p.has(auditResourceType) {
		if prob := p.vocab.resourceType(p.unescaped(&p.raw[auditResourceType])); prob != nil {
			return dst, prob
		}
	}
	return p.appendMetadata(dst, known)
}

// appendMetadata appends metadata and personal, after moving to personal what --personal names, and checks the
// keys that stay.
func (p *rowParser) appendMetadata(dst []byte, known *action) ([]byte, *problem) {
	metadata, personal := p.raw[auditMetadata].value, p.raw[auditPersonal].value
	if metadata == nil {
		return p.appendObject(appendJSON(dst, []byte("{}")), auditPersonal), nil
	}
	p.moved = p.moved[:0]
	from := 0     // what of metadata is not yet in kept
	kept := false // something of metadata is in kept
	p.kept = append(p.kept[:0], '{')
	m := members{b: metadata}
	m.open()
	for m.next() {
		name := m.name(p.scratch)
		if !p.personal[string(name)] {
			if prob := p.vocab.key(known, name); prob != nil {
				return dst, prob
			}
			if from > 0 {
				p.kept = appendMember(p.kept, kept, m.key, m.value)
			}
			kept = true
			continue
		}
		if from == 0 {
			// The first one that moves: copy what came before.
			from = 1
			before := members{b: metadata}
			before.open()
			for i := 0; i < m.index && before.next(); i++ {
				p.kept = appendMember(p.kept, i > 0, before.key, before.value)
			}
		}
		p.moved = appendMember(p.moved, len(p.moved) > 0, m.key, m.value)
	}
	if from == 0 {
		return p.appendObject(appendJSON(dst, metadata), auditPersonal), nil
	}
	p.kept = append(p.kept, '}')
	dst = appendJSON(dst, p.kept)
	if personal == nil {
		return appendJSON(dst, []byte("{"), p.moved, []byte("}")), nil
	}
	m = members{b: personal}
	m.open()
	for m.next() {
		if name := m.name(p.scratch); p.personal[string(name)] && p.hasKey(metadata, string(name)) {
			return dst, problemf("personal."+shorten(name), "is also in metadata, from where it would be moved here")
		}
	}
	if m.index < 0 {
		return appendJSON(dst, []byte("{"), p.moved, []byte("}")), nil
	}
	return appendJSON(dst, []byte("{"), p.moved, []byte(","), personal[1:]), nil
}

func (p *rowParser) hasKey(object []byte, name string) bool {
	m := members{b: object}
	m.open()
	for m.next() {
		if string(m.name(nil)) == name {
			return true
		}
	}
	return false
}

func appendMember(dst []byte, comma bool, key, value []byte) []byte {
	if comma {
		dst = append(dst, ',')
	}
	dst = append(dst, key...)
	dst = append(dst, ':')
	return append(dst, value...)
}

// shorten makes a field's name fit for a message.
func shorten(name []byte) string {
	const most = 64
	if utf8.RuneCount(name) <= most {
		return string(name)
	}
	return string([]rune(string(name))[:most]) + "…"
}
