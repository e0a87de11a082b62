package db

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
)

// What the database refuses, class PC: one sentinel for each SQLSTATE that the
// functions and guards raise. Compare with errors.Is; errors.As with *Error
// gives message, detail and hint.
var (
	ErrNoContext           = errors.New("no context")
	ErrUnknownTenant       = errors.New("unknown tenant")
	ErrInvalidUserID       = errors.New("invalid user_id")
	ErrUnknownAction       = errors.New("unknown action")
	ErrUnknownResourceType = errors.New("unknown resource type")
	ErrMetadataKey         = errors.New("metadata key not allowed")
	ErrUnknownResult       = errors.New("unknown result")
	ErrUnknownLegalBasis   = errors.New("unknown legal basis")
	ErrTimeOutOfRange      = errors.New("time out of range")
	ErrDifferentContent    = errors.New("id was seen before with other content")
	ErrUnknownPerson       = errors.New("unknown person")
	ErrUnknownPolicy       = errors.New("unknown retention policy")
	ErrHoldExists          = errors.New("hold is already there")
	ErrStaleVersion        = errors.New("stale version")
	ErrNotForCaller        = errors.New("not permitted for this caller")
	ErrUnknownRequest      = errors.New("unknown request")
	ErrRequestUncommitted  = errors.New("request is not committed yet")
	ErrRequestState        = errors.New("request is in another state or of another kind")
	ErrResidue             = errors.New("residue found")
	ErrAppendOnly          = errors.New("append-only")
	ErrSubjectErased       = errors.New("subject erased")
	ErrExportTooLarge      = errors.New("export too large")
	ErrInvalidArgument     = errors.New("invalid argument")
	ErrUnknownHold         = errors.New("unknown hold")
	ErrUnknownHolder       = errors.New("unknown holder")
	ErrIsolationLevel      = errors.New("wrong isolation level")
	ErrUnknownConversation = errors.New("unknown conversation")
	ErrImportRefused       = errors.New("import refused")
	ErrArchiveMismatch     = errors.New("archive incomplete or not matching")
	ErrImmutableColumn     = errors.New("immutable column")
	ErrRoutineMissing      = errors.New("routine not installed")
	ErrUnderHold           = errors.New("under a legal hold")
	ErrLocked              = errors.New("locked: no key in this transaction")
	ErrWrongKey            = errors.New("wrong or weak key")
	ErrSealedValue         = errors.New("sealed value refused")
	ErrKeyExposed          = errors.New("key refused: it is exposed")
	ErrRotationUnderWay    = errors.New("key rotation is under way")
	ErrTaken               = errors.New("another person has the same e-mail address or telephone number")
	ErrNoSealing           = errors.New("nothing is sealed on this server")
	ErrNoCheckpoint        = errors.New("no signed checkpoint covers it yet")
	ErrLedgerMismatch      = errors.New("ledger does not match")
	ErrUnknownEvent        = errors.New("unknown event")
	ErrSecondPerson        = errors.New("needs the approval of a second person")
	ErrNoChange            = errors.New("no such retention change to decide")
	ErrTokenRefused        = errors.New("token refused")
	ErrNotForLogin         = errors.New("not a context of this login")
	ErrNoContextKey        = errors.New("no context key on this server yet")
	ErrUnrecordable        = errors.New("reading refused: its log line cannot be written")
	ErrLogMoved            = errors.New("log was shipped further by another run")
	ErrLogChain            = errors.New("batch of logs does not follow the one before")
	ErrLogBatch            = errors.New("batch of logs is not of this transaction")
	ErrLogNotDue           = errors.New("batch of logs is not due")
	ErrUnknownRule         = errors.New("unknown detection rule")
	ErrUnknownCanary       = errors.New("unknown canary")
	ErrUnknownAlert        = errors.New("unknown or closed alert")
	ErrAboutOneself        = errors.New("nobody settles an alert about themselves")
)

// What Postgres itself refuses and users meet.
var (
	ErrPermission   = errors.New("permission denied")
	ErrInvalidInput = errors.New("invalid JSON, text or number")
	ErrConflict     = errors.New("conflict with a concurrent transaction") // run the transaction again
	ErrLockTimeout  = errors.New("lock not available in time")
	ErrCanceled     = errors.New("statement canceled") // by a timeout or an operator
	ErrNotMigrated  = errors.New("object of the schema is missing")
	ErrUnreachable  = errors.New("database unreachable")
)

// codes maps SQLSTATEs to sentinels. README lists those of class PC.
var codes = map[string]error{
	"PC001": ErrNoContext,
	"PC002": ErrUnknownTenant,
	"PC003": ErrInvalidUserID,
	"PC004": ErrUnknownAction,
	"PC005": ErrUnknownResourceType,
	"PC006": ErrMetadataKey,
	"PC007": ErrUnknownResult,
	"PC008": ErrUnknownLegalBasis,
	"PC009": ErrTimeOutOfRange,
	"PC010": ErrDifferentContent,
	"PC011": ErrUnknownPerson,
	"PC012": ErrUnknownPolicy,
	"PC013": ErrHoldExists,
	"PC014": ErrStaleVersion,
	"PC015": ErrNotForCaller,
	"PC016": ErrUnknownRequest,
	"PC017": ErrRequestUncommitted,
	"PC018": ErrRequestState,
	"PC019": ErrResidue,
	"PC020": ErrAppendOnly,
	"PC021": ErrSubjectErased,
	"PC022": ErrExportTooLarge,
	"PC023": ErrInvalidArgument,
	"PC024": ErrUnknownHold,
	"PC025": ErrUnknownHolder,
	"PC026": ErrIsolationLevel,
	"PC027": ErrUnknownConversation,
	"PC028": ErrImportRefused,
	"PC029": ErrArchiveMismatch,
	"PC030": ErrImmutableColumn,
	"PC031": ErrRoutineMissing,
	"PC032": ErrUnderHold,
	"PC033": ErrLocked,
	"PC034": ErrWrongKey,
	"PC035": ErrSealedValue,
	"PC036": ErrKeyExposed,
	"PC037": ErrRotationUnderWay,
	"PC038": ErrTaken,
	"PC039": ErrNoSealing,
	"PC040": ErrNoCheckpoint,
	"PC041": ErrLedgerMismatch,
	"PC042": ErrUnknownEvent,
	"PC043": ErrSecondPerson,
	"PC044": ErrNoChange,
	"PC060": ErrTokenRefused,
	"PC061": ErrNotForLogin,
	"PC062": ErrNoContextKey,
	"PC063": ErrUnrecordable,
	"PC070": ErrLogMoved,
	"PC071": ErrLogChain,
	"PC072": ErrLogBatch,
	"PC073": ErrLogNotDue,
	"PC075": ErrUnknownRule,
	"PC076": ErrUnknownCanary,
	"PC077": ErrUnknownAlert,
	"PC078": ErrAboutOneself,

	"42501": ErrPermission,   // insufficient_privilege
	"22P02": ErrInvalidInput, // invalid_text_representation: JSON, uuid, number, time
	"22P05": ErrInvalidInput, // untranslatable_character: \u0000 in jsonb
	"22021": ErrInvalidInput, // character_not_in_repertoire: NUL, broken UTF-8
	"22007": ErrInvalidInput, // invalid_datetime_format
	"22008": ErrInvalidInput, // datetime_field_overflow
	"40001": ErrConflict,     // serialization_failure
	"40P01": ErrConflict,     // deadlock_detected
	"55P03": ErrLockTimeout,  // lock_not_available
	"57014": ErrCanceled,     // query_canceled
	"3F000": ErrNotMigrated,  // invalid_schema_name
	"42P01": ErrNotMigrated,  // undefined_table
	"42883": ErrNotMigrated,  // undefined_function
	"3D000": ErrUnreachable,  // invalid_catalog_name: no such database
	"53300": ErrUnreachable,  // too_many_connections
	"57P01": ErrUnreachable,  // admin_shutdown
	"57P02": ErrUnreachable,  // crash_shutdown
	"57P03": ErrUnreachable,  // cannot_connect_now
}

// classes are looked at where the code itself is not listed.
var classes = map[string]error{
	"08": ErrUnreachable, // connection exception
	"28": ErrUnreachable, // invalid authorization: no session at all
}

// Error is a refusal of the database. Detail of class PC is written to be shown;
// that of Postgres's own errors may quote rows, and belongs in no log.
type Error struct {
	Code, Message, Detail, Hint       string
	Schema, Table, Column, Constraint string

	kind, cause error
}

func (e *Error) Error() string {
	if _, direct := e.cause.(*pgconn.PgError); direct {
		return fmt.Sprintf("%s (%s)", e.Message, e.Code)
	}
	return e.cause.Error()
}

// Unwrap leads to the sentinel and to the driver's error.
func (e *Error) Unwrap() []error {
	if e.kind == nil {
		return []error{e.cause}
	}
	return []error{e.kind, e.cause}
}

// FromPg gives an error of the driver its sentinel, going by SQLSTATE and type,
// never by text. Other errors, nil and what is mapped already stay as they are.
func FromPg(err error) error {
	var mapped *Error
	if err == nil || errors.As(err, &mapped) {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		kind := codes[pg.Code]
		if kind == nil && len(pg.Code) == 5 {
			kind = classes[pg.Code[:2]]
		}
		return &Error{
			Code: pg.Code, Message: pg.Message, Detail: pg.Detail, Hint: pg.Hint,
			Schema: pg.SchemaName, Table: pg.TableName, Column: pg.ColumnName, Constraint: pg.ConstraintName,
			kind: kind, cause: err,
		}
	}
	if broken(err) {
		return &Error{Message: ErrUnreachable.Error(), kind: ErrUnreachable, cause: err}
	}
	return err
}

// Wrap is FromPg with what was tried in front: Wrap("erase subject", err).
func Wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, FromPg(err))
}

// broken tells whether the connection, not the statement, failed.
func broken(err error) bool {
	var connect *pgconn.ConnectError
	var network *net.OpError
	return errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}
