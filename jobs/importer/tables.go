package importer

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"pgcustody/db"
)

type kind uint8

const (
	kindText kind = iota
	kindTime
	kindUUID
	kindBool
	kindObject
	kindArray
)

// A field is one member of a line's JSON object.
type field struct {
	name     string
	kind     kind
	required bool
	min, max int  // characters of a kindText
	notBlank bool // of a kindText: not spaces alone
}

// A table is one of the five tables of record, as import files know it.
type table struct {
	name    string
	fields  []field
	columns int // of the staging table, which begins with the line number
	rank    int // files are imported in this order, so that a known user_id is known to what refers to it
	encode  func(p *rowParser, dst []byte) ([]byte, *problem)
	// survey takes the place of encode in a first pass over the file, where encode seals: it notes user_ids, and refuses
	// what encode refuses.
	survey func(p *rowParser, dst []byte) ([]byte, *problem)
	// store takes the rows from the staging table into the table of record.
	store func(ctx context.Context, tx pgx.Tx, importID uuid.UUID, sum []byte, skipRefused bool) (json.RawMessage, error)
}

// recorded is as much of the path to a field as may be kept: what the table knows. A key that it does not know, or one of
// metadata, is the file's own word and may name somebody.
func (t *table) recorded(path string) string {
	for i := range t.fields {
		if name := t.fields[i].name; path == name || strings.HasPrefix(path, name+".") || strings.HasPrefix(path, name+"[") {
			return name
		}
	}
	return ""
}

// Lengths in characters, the same as those of the functions that applications call.
const (
	userIDMax   = 256
	nameMax     = 128
	resourceMax = 1024
	lineTextMax = 1000 // name, address and the like
	roleMax     = 64   // of who speaks in a conversation
)

const auditTable = "audit_logs"

func userField(name string, required bool) field {
	return field{name: name, required: required, min: 1, max: userIDMax, notBlank: true}
}

const (
	preferencesUser = iota
	preferencesObject
)

const (
	consentUser = iota
	consentID
	consentPurpose
	consentGranted
	consentPolicy
	consentBasis
	consentTime
	consentSource
	consentEvidence
)

const (
	conversationUser = iota
	conversationID
	conversationTitle
	conversationStarted
	conversationLast
	conversationMessages
)

const (
	auditID = iota
	auditTime
	auditUser
	auditSubject
	auditAction
	auditResourceType
	auditResourceID
	auditResult
	auditPurpose
	auditMetadata
	auditPersonal
)

// tables lists fields in the order of the constants above.
var tables = map[string]*table{
	"user_profiles": {
		name: "user_profiles", rank: 1, columns: 13, encode: encodeProfile, store: withoutID((*db.Queries).ImportProfiles),
		fields: []field{
			userField("user_id", true),
			{name: "full_name", max: lineTextMax},
			{name: "email", max: lineTextMax},
			{name: "phone", max: lineTextMax},
			{name: "organisation", max: lineTextMax},
			{name: "title", max: lineTextMax},
			{name: "address", max: lineTextMax},
			{name: "city", max: lineTextMax},
			{name: "region", max: lineTextMax},
			{name: "postal_code", max: lineTextMax},
			{name: "country", max: lineTextMax},
			{name: "attributes", kind: kindObject},
		},
	},
	"user_preferences": {
		name: "user_preferences", rank: 2, columns: 3, encode: encodePreferences, store: withoutID((*db.Queries).ImportPreferences),
		fields: []field{
			userField("user_id", true),
			{name: "preferences", kind: kindObject, required: true},
		},
	},
	"consent_records": {
		name: "consent_records", rank: 3, columns: 9, encode: encodeConsent, store: withoutID((*db.Queries).ImportConsents),
		fields: []field{
			userField("user_id", true),
			{name: "consent_id", kind: kindUUID},
			{name: "purpose", required: true, min: 1, max: nameMax, notBlank: true},
			{name: "granted", kind: kindBool, required: true},
			{name: "policy_version", required: true, min: 1, max: 64},
			{name: "legal_basis", required: true},
			{name: "timestamp", kind: kindTime, required: true},
			{name: "source", min: 1, max: lineTextMax},
			{name: "evidence", kind: kindObject},
		},
	},
	"conversations": {
		name: "conversations", rank: 4, columns: 8, encode: encodeConversation, survey: surveyConversation,
		store: withoutID((*db.Queries).ImportConversations),
		fields: []field{
			userField("user_id", true),
			{name: "conversation_id", required: true, min: 1, max: 256},
			{name: "title", max: lineTextMax},
			{name: "started_at", kind: kindTime, required: true},
			{name: "last_message_at", kind: kindTime, required: true},
			{name: "messages", kind: kindArray, required: true},
		},
	},
	auditTable: {
		name: auditTable, rank: 5, columns: 12, encode: encodeAuditEvent, store: storeAuditEvents,
		fields: []field{
			{name: "log_entry_id", kind: kindUUID, required: true},
			{name: "timestamp", kind: kindTime, required: true},
			userField("user_id", true),
			userField("subject_user_id", false),
			{name: "action", required: true, min: 1, max: nameMax},
			{name: "resource_type", min: 1, max: nameMax},
			{name: "resource_id", min: 1, max: resourceMax},
			{name: "result", required: true},
			{name: "purpose", min: 1, max: lineTextMax},
			{name: "metadata", kind: kindObject},
			{name: "personal", kind: kindObject},
		},
	},
}

func withoutID(store func(*db.Queries, context.Context, db.DBTX, bool) (json.RawMessage, error)) func(context.Context, pgx.Tx, uuid.UUID, []byte, bool) (json.RawMessage, error) {
	return func(ctx context.Context, tx pgx.Tx, _ uuid.UUID, _ []byte, skipRefused bool) (json.RawMessage, error) {
		return store(db.New(), ctx, tx, skipRefused)
	}
}

func storeAuditEvents(ctx context.Context, tx pgx.Tx, importID uuid.UUID, sum []byte, skipRefused bool) (json.RawMessage, error) {
	return db.New().ImportAuditEvents(ctx, tx, db.ImportAuditEventsParams{ImportID: importID, FileSha256: sum, SkipRefused: skipRefused})
}

// Tables lists the tables that a file may be imported into, in the order in which files are.
func Tables() []string {
	return slices.SortedFunc(maps.Keys(tables), func(a, b string) int { return tables[a].rank - tables[b].rank })
}

// TableOf tells the table from a file's name: audit_logs.jsonl, audit_logs-2026-01.jsonl and audit_logs.1.ndjson
// are all audit_logs. It is empty for a name that begins with no table.
func TableOf(path string) string {
	base := filepath.Base(path)
	for name := range tables {
		if rest, ok := strings.CutPrefix(base, name); ok && (rest == "" || strings.ContainsAny(rest[:1], ".-_")) {
			return name
		}
	}
	return ""
}

// code is the SQLSTATE of a field that has the wrong length.
func (f *field) code() string {
	switch f.name {
	case "user_id", "subject_user_id":
		return userIDCode
	case "action":
		return actionCode
	case "resource_type":
		return resourceCode
	}
	return badLineCode
}

// field returns the index of a field. Lines of a file mostly have their fields in one order, so the guess is the
// place where the field before it would have it.
func (t *table) field(name []byte, guess int) int {
	if guess >= 0 && guess < len(t.fields) && t.fields[guess].name == string(name) {
		return guess
	}
	for i := range t.fields {
		if t.fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

func (t *table) fieldList() string {
	names := make([]string, len(t.fields))
	for i := range t.fields {
		names[i] = t.fields[i].name
	}
	return strings.Join(names, ", ")
}

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

const (
	legalBasisList = "consent, contract, legal_obligation, vital_interests, public_task, legitimate_interests"
	resultList     = "success, failure, denied, partial"
)

var (
	legalBases = set(strings.Split(legalBasisList, ", ")...)
	results    = set(strings.Split(resultList, ", ")...)
)
