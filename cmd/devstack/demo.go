package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/jobs"
	"pgcustody/jobs/importer/sample"
	"pgcustody/jobs/keys"
)

// demoDataDir is where real records lie where they are at hand; their README
// names origins and licences.
const demoDataDir = "../shared/data"

// demoTables are the tables of record in the order in which they are reported.
var demoTables = []string{"user_profiles", "user_preferences", "consent_records", "conversations", "audit_logs"}

func demoCommand(cfg *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Run the main job on the stack: migrate, import, retention, archive, export, erase, prove, verify",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := stack.Start(cmd.Context(), stack.Options{Dir: cfg.dir, Log: cfg.log})
			if err != nil {
				return err
			}
			d := &demo{
				stack: s, out: cmd.OutOrStdout(), log: cmd.ErrOrStderr(),
				// A tenant of its own, so that the demonstration can be run again: what
				// an earlier one erased must not come back, what it locked stays.
				tenant: "demo-" + time.Now().UTC().Format("20060102-150405"),
			}
			return d.run(cmd.Context())
		},
	}
}

// demo drives bin/pgcustody as an operator would, and looks at the database and
// the bucket on its own to see whether each step did what it said.
type demo struct {
	stack  *stack.Stack
	out    io.Writer
	log    io.Writer
	tenant string
	person string
	event  string            // proved by step ledger, altered by step tampering
	files  map[string]string // path by table
	lines  map[string]int64  // lines by table
	origin string
	report []demoStep
}

type demoStep struct {
	name, result string
	took         time.Duration
	err          error
}

func (d *demo) run(ctx context.Context) error {
	steps := []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"migrate", d.migrate},
		{"import", d.importFiles},
		{"isolation", d.isolation},
		{"retention", d.retention},
		{"archive", d.archive},
		{"export", d.export},
		{"erase", d.erase},
		{"guards", d.guards},
		{"ledger", d.ledger},
		{"tampering", d.tampering},
	}
	var failed error
	for _, step := range steps {
		start := time.Now()
		result, err := step.do(ctx)
		d.report = append(d.report, demoStep{step.name, result, time.Since(start), err})
		if err != nil {
			failed = fmt.Errorf("demo: step %s: %w", step.name, err)
			break // what follows builds on it
		}
	}
	d.print()
	return failed
}

func (d *demo) print() {
	fmt.Fprintf(d.out, "\npgcustody, main job on %s, tenant %s\n\n", d.origin, d.tenant)
	w := tabwriter.NewWriter(d.out, 0, 4, 2, ' ', 0)
	for _, step := range d.report {
		mark, result := "ok", step.result
		if step.err != nil {
			mark, result = "FAILED", step.err.Error()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", step.name, mark, step.took.Round(10*time.Millisecond), result)
	}
	_ = w.Flush()
	fmt.Fprintf(d.out, "\nWhere to look:\n"+
		"  settings   source %s\n"+
		"  database   psql \"$DEVSTACK_DPO_URL\"   begin; select custody.set_context('%s', 'you'); select * from custody.holds; …\n"+
		"  archive    pgcustody archive list   bucket %s at %s\n"+
		"  ledger     PGCUSTODY_SIGNER=%s pgcustody signer show   … pgcustody verify --vkey KEY\n"+
		"  state      pgcustody status --tenant %s\n"+
		"  stop       make down\n", d.stack.EnvFile(), d.tenant, d.stack.Bucket, d.stack.Endpoint(), d.signer(), d.tenant)
}

// pgcustody runs the command line and returns what it printed as JSON.
func (d *demo) pgcustody(ctx context.Context, into any, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "pgcustody"), append(args, "--json")...)
	cmd.Env = os.Environ()
	for name, value := range d.stack.Env() {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "PGCUSTODY_TENANT="+d.tenant, "PGCUSTODY_ACTOR=demo", "PGCUSTODY_SIGNER="+d.signer())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, d.log
	// A check that fails says what it found all the same.
	failed := cmd.Run()
	if into != nil && (failed == nil || out.Len() > 0) {
		if err := json.Unmarshal(out.Bytes(), into); err != nil {
			return errors.Join(failed, fmt.Errorf("pgcustody %s: read its JSON: %w", args[0], err))
		}
	}
	if failed != nil {
		return fmt.Errorf("pgcustody %s: %w", args[0], failed)
	}
	return nil
}

// look runs a query of one row as a login, in the context of a tenant.
func (d *demo) look(ctx context.Context, login, tenant, query string, args []any, into ...any) error {
	return d.lookWith(ctx, nil, login, tenant, query, args, into...)
}

// lookUnlocked is look as the runner, with the key of the demonstration's tenant.
func (d *demo) lookUnlocked(ctx context.Context, query string, args []any, into ...any) error {
	provider, err := keys.Parse(ctx, d.stack.Env()["PGCUSTODY_KEYS"], false)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, d.stack.URL("custody_runner", stack.Database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	unlock := &jobs.Unlocker{Ring: jobs.Keyring{Pool: conn, Provider: provider, Actor: "demo"}}
	return d.lookWith(ctx, unlock, "custody_runner", d.tenant, query, args, into...)
}

func (d *demo) lookWith(ctx context.Context, unlock *jobs.Unlocker, login, tenant, query string, args []any, into ...any) error {
	conn, err := pgx.Connect(ctx, d.stack.URL(login, stack.Database))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return unlock.InContext(ctx, conn, jobs.Scope{Tenant: tenant, Actor: "demo", Purpose: "demonstration"}, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, query, args...).Scan(into...)
	})
}

func (d *demo) migrate(ctx context.Context) (_ string, err error) {
	if err := d.stack.OpenMigrator(ctx); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.stack.CloseMigrator(context.WithoutCancel(ctx))) }()
	const applied = `select (select count(*) from custody_data.schema_migrations), (select count(*) from custody_data.schema_steps)`
	var files, parts, filesAgain, partsAgain int64
	if err := d.pgcustody(ctx, nil, "migrate", "up"); err != nil {
		return "", err
	}
	if err := d.stack.PutLogins(ctx, stack.Database); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_audit", "", applied, nil, &files, &parts); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "migrate", "up"); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_audit", "", applied, nil, &filesAgain, &partsAgain); err != nil {
		return "", err
	}
	if files != filesAgain || parts != partsAgain {
		return "", errors.New("the second migration changed something")
	}
	return fmt.Sprintf("%d versioned files; a second time: no change", files), nil
}

func (d *demo) importFiles(ctx context.Context) (string, error) {
	if err := d.findFiles(); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "tenants", "register", d.tenant); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "keys", "create"); err != nil {
		return "", err
	}
	args := []string{"import", "--register-vocabulary", "--personal", "source_ip,user_agent,request_parameters"}
	for _, table := range demoTables {
		args = append(args, d.files[table])
	}
	for range 2 { // the second time must add nothing
		if err := d.pgcustody(ctx, nil, args...); err != nil {
			return "", err
		}
	}
	var parts []string
	for _, table := range demoTables {
		query, login, tenant := "select count(*) from custody_data."+table+" where tenant_id = $1", "custody_runner", d.tenant
		if table == "audit_logs" {
			// Those that came from the file; the import's own writes are events too.
			query += " and import_id is not null"
		}
		var rows int64
		if err := d.look(ctx, login, tenant, query, []any{d.tenant}, &rows); err != nil {
			return "", err
		}
		if rows != d.lines[table] {
			return "", fmt.Errorf("%s has %d rows, the file %d lines", table, rows, d.lines[table])
		}
		parts = append(parts, fmt.Sprintf("%d %s", rows, table))
	}
	return strings.Join(parts, ", ") + "; a second time: nothing added", nil
}

// findFiles takes the real records where they are and makes some up otherwise.
func (d *demo) findFiles() error {
	d.files, d.lines, d.origin = map[string]string{}, map[string]int64{}, demoDataDir
	dir := demoDataDir
	if _, err := os.Stat(filepath.Join(dir, "user_profiles.jsonl")); err != nil {
		dir, d.origin = filepath.Join(d.stack.Dir, "sample"), "generated rows"
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if _, err := sample.Write(dir, sample.Options{
			People: 100, Consents: 300, Conversations: 500, Events: 3000, Span: 2 * 365 * 24 * time.Hour, Seed: uint64(time.Now().UnixNano()),
		}); err != nil {
			return err
		}
	}
	for _, table := range demoTables {
		path := filepath.Join(dir, table+".jsonl")
		first, lines, err := countLines(path)
		if err != nil {
			return err
		}
		d.files[table], d.lines[table] = path, lines
		if table == "user_profiles" {
			var profile struct {
				UserID string `json:"user_id"`
			}
			if err := json.Unmarshal(first, &profile); err != nil {
				return err
			}
			d.person = profile.UserID
		}
	}
	return nil
}

func countLines(path string) (first []byte, lines int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	reader := bufio.NewReader(file)
	for {
		line, err := reader.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			if lines++; lines == 1 {
				first = line
			}
		}
		if err == io.EOF {
			return first, lines, nil
		} else if err != nil {
			return nil, 0, err
		}
	}
}

func (d *demo) isolation(ctx context.Context) (string, error) {
	const query = `select (select count(*) from custody_data.user_profiles), (select count(*) from custody_data.conversations)`
	var profiles, conversations int64
	if err := d.look(ctx, "custody_app", "", query, nil, &profiles, &conversations); err != nil {
		return "", err
	}
	if profiles+conversations != 0 {
		return "", fmt.Errorf("an application without a context sees %d rows", profiles+conversations)
	}
	if err := d.look(ctx, "custody_app", d.tenant, query, nil, &profiles, &conversations); err != nil {
		return "", err
	}
	if profiles != d.lines["user_profiles"] {
		return "", fmt.Errorf("an application in its tenant sees %d of %d profiles", profiles, d.lines["user_profiles"])
	}
	return fmt.Sprintf("without a context 0 rows, in the tenant %d profiles and no other tenant's", profiles), nil
}

func (d *demo) retention(ctx context.Context) (string, error) {
	const due = `select coalesce(sum(due_rows) filter (where class = 'conversations'), 0)::bigint,
		coalesce(sum(due_rows) filter (where class = 'consent'), 0)::bigint from custody.retention_due`
	const left = `select (select count(*) from custody_data.conversations), (select count(*) from custody_data.consent_records)`
	var conversations, consents, conversationsLeft, consentsLeft, dueLeft, dueLeft2 int64
	if err := d.look(ctx, "custody_runner", d.tenant, due, nil, &conversations, &consents); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "run", "retention"); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_runner", d.tenant, left, nil, &conversationsLeft, &consentsLeft); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_runner", d.tenant, due, nil, &dueLeft, &dueLeft2); err != nil {
		return "", err
	}
	switch {
	case dueLeft+dueLeft2 != 0:
		return "", fmt.Errorf("%d rows are still due", dueLeft+dueLeft2)
	case conversationsLeft != d.lines["conversations"]-conversations, consentsLeft != d.lines["consent_records"]-consents:
		return "", errors.New("more or less went than was due")
	}
	return fmt.Sprintf("%d of %d conversations and %d of %d consents went",
		conversations, d.lines["conversations"], consents, d.lines["consent_records"]), nil
}

func (d *demo) archive(ctx context.Context) (string, error) {
	// Events of closed days that no segment covers yet.
	const open = `select count(*) from custody_data.audit_logs a
		where a.tenant_id = $1 and a.occurred_at < date_trunc('day', now() at time zone 'UTC') at time zone 'UTC'`
	const segments = `select count(*), coalesce(sum(events), 0)::bigint, coalesce(sum(stored_bytes), 0)::bigint, coalesce(max(object_key), '')
		from custody.archive_segments where recorded_at >= $1`
	var events, count, rows, bytes, dropped, unrecorded int64
	var key string
	began := time.Now()
	if err := d.look(ctx, "custody_runner", d.tenant, open, []any{d.tenant}, &events); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "archive", "run"); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_runner", "system", segments, []any{began}, &count, &rows, &bytes, &key); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_runner", "system", `select
			(select count(*) from custody_data.partition_drops where dropped_at >= $1),
			(select count(*) from custody.archive_segments where recorded_at is null)`, []any{began}, &dropped, &unrecorded); err != nil {
		return "", err
	}
	if rows < events || unrecorded != 0 {
		return "", fmt.Errorf("%d of %d events are in segments, %d segments are open", rows, events, unrecorded)
	}
	head, err := d.stack.S3().HeadObject(ctx, &s3.HeadObjectInput{Bucket: &d.stack.Bucket, Key: &key})
	if err != nil {
		return "", fmt.Errorf("object %s: %w", key, err)
	}
	until := aws.ToTime(head.ObjectLockRetainUntilDate)
	if head.ObjectLockMode != types.ObjectLockModeCompliance || until.Before(time.Now().Add(29*24*time.Hour)) {
		return "", fmt.Errorf("object %s is not locked: mode %q until %s", key, head.ObjectLockMode, until)
	}
	if err := d.pgcustody(ctx, nil, "archive", "verify"); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d events in %d segments, %d bytes, locked until %s, read back; %d months dropped; verified",
		rows, count, bytes, until.Format(time.DateOnly), dropped), nil
}

func (d *demo) export(ctx context.Context) (string, error) {
	path := filepath.Join(d.stack.Dir, "export-"+d.tenant+".json")
	if err := d.pgcustody(ctx, nil, "export", d.person, "-o", path); err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var document struct {
		UserID  string `json:"user_id"`
		Profile struct {
			Data map[string]any `json:"data"`
		} `json:"profile"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return "", err
	}
	if document.UserID != d.person || document.Profile.Data["full_name"] == nil {
		return "", errors.New("the export is not of the person")
	}
	return fmt.Sprintf("one person, %d bytes in %s", len(text), path), nil
}

func (d *demo) erase(ctx context.Context) (string, error) {
	var erased struct {
		RequestID string `json:"request_id"`
	}
	if err := d.pgcustody(ctx, &erased, "erase", d.person, "--reason", "demonstration of Art. 17"); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "requests", "verify", erased.RequestID); err != nil {
		return "", err
	}
	var known int64
	var profileGone bool
	if err := d.lookUnlocked(ctx, `select count(*), custody.get_profile($1) is null from custody_data.identities where user_id = $1`,
		[]any{d.person}, &known, &profileGone); err != nil {
		return "", err
	}
	if known != 0 || !profileGone {
		return "", errors.New("the person is still known")
	}
	var events int64
	if err := d.look(ctx, "custody_runner", d.tenant, `select count(*) from custody_data.audit_logs a
		join custody_data.identities i on i.tenant_id = a.tenant_id and i.identity_id = a.subject_id where i.erased_at is not null`, nil, &events); err != nil {
		return "", err
	}
	return fmt.Sprintf("person unknown, certificate of request %s; %d audit events stay, pseudonymous", erased.RequestID, events), nil
}

func (d *demo) guards(ctx context.Context) (string, error) {
	if err := d.pgcustody(ctx, nil, "run", "partitions"); err != nil {
		return "", err
	}
	var findings int64
	var list string
	if err := d.look(ctx, "custody_audit", d.tenant,
		`select count(*), coalesce(string_agg(id || ' ' || object, ', '), '') from custody_check.findings`, nil, &findings, &list); err != nil {
		return "", err
	}
	if findings != 0 {
		return "", fmt.Errorf("%d findings of custody_check: %s", findings, list)
	}
	return "partitions made three months ahead; custody_check.findings is empty", nil
}

// signer is the folder of the key that signs checkpoints of the stack's ledger.
func (d *demo) signer() string { return filepath.Join(d.stack.Dir, "signer") }

// vkey is the verifier key that an auditor would have.
func (d *demo) vkey() (string, error) {
	keys, err := os.ReadFile(filepath.Join(d.signer(), "vkeys"))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(keys))
	if len(fields) == 0 {
		return "", errors.New("the signer has no verifier key")
	}
	return fields[0], nil
}

// ledger seals, anchors, proves one event, and checks the proof with nothing but the
// verifier key.
func (d *demo) ledger(ctx context.Context) (string, error) {
	if _, err := os.Stat(d.signer()); errors.Is(err, os.ErrNotExist) {
		if err := d.pgcustody(ctx, nil, "signer", "init", "--origin", "demo.example/custody"); err != nil {
			return "", err
		}
	}
	if err := d.pgcustody(ctx, nil, "run", "seal"); err != nil {
		return "", err
	}
	var anchored struct {
		Number int64 `json:"number"`
		Size   int64 `json:"tree_size"`
	}
	if err := d.pgcustody(ctx, &anchored, "anchor"); err != nil {
		return "", err
	}
	if err := d.look(ctx, "custody_runner", d.tenant, `select a.log_entry_id::text from custody_data.audit_logs a
		where a.action = 'account.erase' order by a.xid limit 1`, nil, &d.event); err != nil {
		return "", err
	}
	key, err := d.vkey()
	if err != nil {
		return "", err
	}
	file := filepath.Join(d.stack.Dir, d.tenant+".tlog-proof")
	if err := d.pgcustody(ctx, nil, "proof", "inclusion", d.event, "-o", file); err != nil {
		return "", err
	}
	if err := d.pgcustody(ctx, nil, "proof", "check", file, "--vkey", key); err != nil {
		return "", err
	}
	if err := d.verify(ctx, key, 0); err != nil {
		return "", err
	}
	return fmt.Sprintf("checkpoint %d of %d events signed and locked; the erasure's proof %s checked offline; verified", anchored.Number, anchored.Size, file), nil
}

// verify runs the command and wants an exit status, and where that is 1 the altered
// event among its findings and no other.
func (d *demo) verify(ctx context.Context, key string, want int) error {
	var report struct {
		Findings []struct {
			Kind  string `json:"kind"`
			Event string `json:"log_entry_id"`
		} `json:"findings"`
	}
	err := d.pgcustody(ctx, &report, "verify", "--vkey", key)
	var exit *exec.ExitError
	switch {
	case want == 0:
		return err
	case !errors.As(err, &exit) || exit.ExitCode() != want:
		return fmt.Errorf("verify was to end with exit status %d: %w", want, cmp.Or(err, errors.New("exit status 0")))
	case len(report.Findings) != 1 || report.Findings[0].Kind != "row_changed" || report.Findings[0].Event != d.event:
		return fmt.Errorf("verify was to find event %s changed, and found %+v", d.event, report.Findings)
	}
	return nil
}

// tampering has a superuser alter the event behind every guard, sees that it is found
// and named, and puts it back.
func (d *demo) tampering(ctx context.Context) (string, error) {
	key, err := d.vkey()
	if err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, d.stack.SuperURL(stack.Database))
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	alter := func(from, to string) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(`do $$
		declare
		  v_month constant regclass := (select tableoid from custody_data.audit_logs where log_entry_id = '%[1]s');
		  v_rows bigint;
		begin
		  execute format('alter table %%s disable trigger all', v_month);
		  execute format('update %%s set result = %%L where log_entry_id = %%L and result = %%L', v_month, '%[3]s', '%[1]s', '%[2]s');
		  get diagnostics v_rows = row_count;
		  execute format('alter table %%s enable always trigger a_reject_mutation, enable always trigger a_reject_row_mutation', v_month);
		  if v_rows <> 1 then
		    raise exception 'altered %% events', v_rows;
		  end if;
		end $$`, d.event, from, to))
		return err
	}
	if err := alter("success", "denied"); err != nil {
		return "", err
	}
	found := d.verify(ctx, key, 1)
	if err := errors.Join(found, alter("denied", "success")); err != nil {
		return "", err
	}
	if err := d.verify(ctx, key, 0); err != nil {
		return "", err
	}
	return "a superuser turned the erasure's result into denied, guards off: verify named the event; put back, verified", nil
}
