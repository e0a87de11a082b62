package retrieve

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// Row is an event as analysts get it. The personal part is not among the columns: it is
// sealed, and no file of ours carries it further.
type Row struct {
	OccurredAt   time.Time `parquet:"occurred_at,timestamp(microsecond)"`
	RecordedAt   time.Time `parquet:"recorded_at,timestamp(microsecond)"`
	TenantID     string    `parquet:"tenant_id,dict"`
	LogEntryID   uuid.UUID `parquet:"log_entry_id,uuid"`
	ActorID      uuid.UUID `parquet:"actor_id,uuid,dict"`
	SubjectID    uuid.UUID `parquet:"subject_id,optional,uuid,dict"` // null where it is about nobody
	Action       string    `parquet:"action,dict"`
	ResourceType *string   `parquet:"resource_type,optional,dict"`
	ResourceID   *string   `parquet:"resource_id,optional"`
	Result       string    `parquet:"result,dict"`
	Purpose      *string   `parquet:"purpose,optional,dict"`
	// Metadata is the JSON object.
	Metadata string `parquet:"metadata,json"`
	// HasPersonal says that the event has a sealed personal part.
	HasPersonal bool      `parquet:"has_personal"`
	ImportID    uuid.UUID `parquet:"import_id,optional,uuid,dict"` // null where it was recorded live
	DBRole      string    `parquet:"db_role,dict"`
	XID         uint64    `parquet:"xid"`
	// LeafIndex is the event's in the ledger, RestoredFrom the object that it is from.
	LeafIndex    int64  `parquet:"leaf_index,delta"`
	RestoredFrom string `parquet:"restored_from,dict"`
}

// groupRows of a file are in memory at a time.
const groupRows = 50_000

// Parquet writes events to a file of columns.
type Parquet struct {
	out  *parquet.GenericWriter[Row]
	rows []Row
}

// NewParquet writes to w. Close ends the file.
func NewParquet(w io.Writer) *Parquet {
	return &Parquet{out: parquet.NewGenericWriter[Row](w, parquet.Compression(&zstd.Codec{}), parquet.MaxRowsPerRowGroup(groupRows),
		parquet.CreatedBy("pgcustody", "1", ""))}
}

// members of an entry that [segment.ParseEntry] does not read.
type members struct {
	RecordedAt   string          `json:"recorded_at"`
	ResourceType *string         `json:"resource_type"`
	ResourceID   *string         `json:"resource_id"`
	Action       string          `json:"action"`
	Result       string          `json:"result"`
	Purpose      *string         `json:"purpose"`
	Metadata     json.RawMessage `json:"metadata"`
	Personal     *string         `json:"personal"`
	ImportID     uuid.UUID       `json:"import_id"`
	DBRole       string          `json:"db_role"`
}

// Take adds an event.
func (p *Parquet) Take(e *Event) error {
	var m members
	if err := json.Unmarshal(e.Line, &m); err != nil {
		return fmt.Errorf("leaf %d: not JSON", e.Leaf) // the error would quote it
	}
	recorded, err := time.Parse(time.RFC3339Nano, m.RecordedAt)
	if err != nil {
		return fmt.Errorf("leaf %d: recorded_at is no time that a file of columns can hold", e.Leaf)
	}
	row := Row{
		OccurredAt: e.Entry.OccurredAt, RecordedAt: recorded, TenantID: string(e.Entry.Tenant), LogEntryID: e.Entry.ID,
		Action: m.Action, ResourceType: m.ResourceType, ResourceID: m.ResourceID, Result: m.Result, Purpose: m.Purpose,
		Metadata: string(m.Metadata), HasPersonal: m.Personal != nil, ImportID: m.ImportID, DBRole: m.DBRole, XID: e.Entry.XID,
		LeafIndex: e.Leaf, RestoredFrom: e.Object,
	}
	if row.ActorID, err = uuid.ParseBytes(e.Entry.Actor); err == nil && e.Entry.Subject != nil {
		row.SubjectID, err = uuid.ParseBytes(e.Entry.Subject)
	}
	if err != nil {
		return fmt.Errorf("leaf %d: an identity is no UUID", e.Leaf)
	}
	if p.rows = append(p.rows, row); len(p.rows) < 1000 {
		return nil
	}
	return p.write()
}

func (p *Parquet) write() error {
	_, err := p.out.Write(p.rows)
	p.rows = p.rows[:0]
	return err
}

// Close ends the file.
func (p *Parquet) Close() error {
	if err := p.write(); err != nil {
		return err
	}
	return p.out.Close()
}
