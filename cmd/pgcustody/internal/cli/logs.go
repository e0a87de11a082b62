package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/logship"
	"pgcustody/jobs/serverlog"
)

func newLogsCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{Use: "logs", Short: "Ship the server's log to the store, and see what was shipped and found"}
	l := &logs{App: app}
	ship := &cobra.Command{
		Use:   "ship",
		Short: "Ship all that the server has logged by now",
		Long: `Ship all that the server has logged by now: into numbered batches in the store, locked and
encrypted to the archive's recipients, and into access_events. The daemon does the same every few
seconds. It wants --log-source, --store and --archive-recipients.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.Ship(cmd.Context()) },
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "Show how far each log was shipped, the newest batches and findings",
		RunE:  func(cmd *cobra.Command, _ []string) error { return l.List(cmd.Context()) },
	}
	list.Flags().Int32Var(&l.Limit, "limit", 20, "how many batches and findings")
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Hold the shipped batches against the store: presence, order, digests",
		Long: `Hold the shipped batches against the store: each is there, follows the one before it, and has its
digest; and nothing is there that no batch names, but for what killed runs left. What is found is
recorded; exit status 4 where anything is missing or altered.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return l.Verify(cmd.Context()) },
	}
	verify.Flags().BoolVar(&l.Quick, "quick", false, "look at manifests and sizes, and do not read the batches")
	cmd.AddCommand(ship, list, verify)
	return cmd
}

type logs struct {
	*App
	Limit int32
	Quick bool
}

var logName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// shipConfig is how the server's log is shipped.
func (a *App) shipConfig() (jobs.ShipConfig, error) {
	config := jobs.ShipConfig{
		Source: a.LogSource, Name: a.LogName, Accept: a.StoreAccept,
		Encoder: serverlog.EncoderOptions{AcceptPlausible: a.LogPlausible, KeepMessages: a.LogMessages},
	}
	// The database would refuse it after the first batch has been locked.
	if a.LogSource != "" && !logName.MatchString(a.LogName) {
		return config, a.wrong("log-name", a.LogName, "must begin with a letter or a digit and have no others than these and . _ : -, 128 at most")
	}
	switch a.LogLiterals {
	case "", "replace":
	case "drop":
		config.Encoder.Literals = serverlog.DropLiterals
	case "keep":
		config.Encoder.Literals = serverlog.KeepLiterals
	default:
		return config, a.wrong("log-literals", a.LogLiterals, "must be replace, drop or keep")
	}
	config.SinkTrail = a.LogSinkTrail
	var options logship.SinkOptions
	if a.LogSinkCA != "" {
		authorities, err := os.ReadFile(a.LogSinkCA)
		if err != nil {
			return config, a.wrong("log-sink-ca", a.LogSinkCA, "cannot be read")
		}
		options.TLS = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !options.TLS.RootCAs.AppendCertsFromPEM(authorities) {
			return config, a.wrong("log-sink-ca", a.LogSinkCA, "holds no certificate in PEM")
		}
	}
	if options.Token, _ = a.getenv("PGCUSTODY_LOG_SINK_TOKEN"); a.LogSinkTokenFile != "" {
		token, err := os.ReadFile(a.LogSinkTokenFile)
		if err != nil {
			return config, a.wrong("log-sink-token-file", a.LogSinkTokenFile, "cannot be read")
		}
		options.Token = strings.TrimSpace(string(token))
	}
	names := map[string]bool{}
	for _, address := range a.LogSinks {
		sink, err := logship.OpenSink(address, options)
		if err != nil {
			return config, a.wrong("log-sinks", address, err.Error())
		}
		if names[sink.Name()] {
			return config, a.wrong("log-sinks", address, "is named twice: a sink is known by its kind and host")
		}
		names[sink.Name()] = true
		config.Sinks = append(config.Sinks, sink)
	}
	return config, nil
}

func (l *logs) Ship(ctx context.Context) error {
	if l.LogSource == "" {
		return &ConfigError{Field: "--log-source", Problem: "required: the directory of the server's log, or server; or set PGCUSTODY_LOG_SOURCE"}
	}
	if len(l.recipients.Keys) == 0 {
		return &ConfigError{Field: "--archive-recipients", Problem: "required: batches are always encrypted; or set PGCUSTODY_ARCHIVE_RECIPIENTS"}
	}
	return l.runJobs(ctx, "ship", true, func(*pgxpool.Pool, *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.ShipArgs{}}, nil
	})
}

type listedLogs struct {
	Sources  []db.LogSourcesRow        `json:"sources"`
	Sinks    []db.LogSinksRow          `json:"sinks"`
	Batches  []listedBatch             `json:"batches"`
	Findings []db.RecentLogFindingsRow `json:"findings"`
}

type listedBatch struct {
	Number      int64      `json:"number"`
	Source      string     `json:"source"`
	ObjectKey   string     `json:"object_key"`
	Lines       int64      `json:"lines"`
	Bytes       int64      `json:"bytes"`
	StoredBytes int64      `json:"stored_bytes"`
	RecordedAt  time.Time  `json:"recorded_at"`
	ExpiresAt   time.Time  `json:"expires_at"`
	DeletedAt   *time.Time `json:"deleted_at,omitempty"`
}

func (l *logs) List(ctx context.Context) error {
	if l.Limit < 1 || l.Limit > 10_000 {
		return &ConfigError{"--limit", fmt.Sprint(l.Limit), "must be 1 to 10000"}
	}
	return l.withDatabase(ctx, "list", func(pool *pgxpool.Pool) error {
		var listed listedLogs
		err := jobs.InContext(ctx, pool, jobs.Scope{Tenant: jobs.SystemTenant, Actor: l.Actor, Purpose: "list logs"}, func(tx pgx.Tx) (err error) {
			q := db.New()
			if listed.Sources, err = q.LogSources(ctx, tx); err != nil {
				return err
			}
			if listed.Sinks, err = q.LogSinks(ctx, tx); err != nil {
				return err
			}
			batches, err := q.RecentLogBatches(ctx, tx, l.Limit)
			if err != nil {
				return err
			}
			listed.Batches = []listedBatch{}
			for _, b := range batches {
				listed.Batches = append(listed.Batches, listedBatch{b.Number, b.Source, b.ObjectKey, b.Lines, b.Bytes, b.StoredBytes, b.RecordedAt.UTC(), b.ExpiresAt.UTC(), utc(b.DeletedAt)})
			}
			listed.Findings, err = q.RecentLogFindings(ctx, tx, l.Limit)
			return err
		})
		if err != nil {
			return err
		}
		return l.Print(listed, func(out io.Writer) { listed.write(out) })
	})
}

func (l *listedLogs) write(out io.Writer) {
	if len(l.Sources) == 0 {
		fmt.Fprintln(out, "no log has been shipped")
		return
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "SOURCE\tFORMAT\tFILE\tAT BYTE\tLAST LINE")
	for _, s := range l.Sources {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\n", s.Source, s.Format, s.FileName, s.FileOffset, timeText(s.LastLineAt))
	}
	if len(l.Sinks) > 0 {
		fmt.Fprintln(table, "\nSINK\tBATCH\tLINES SENT\tFAILURES\tERROR")
		for _, s := range l.Sinks {
			message := "-"
			if s.LastError != nil {
				message = *s.LastError
			}
			fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%s\n", s.Sink, s.Batch, s.SentLines, s.Failures, message)
		}
	}
	fmt.Fprintln(table, "\nBATCH\tSOURCE\tLINES\tOF LOG\tSTORED\tRECORDED\tLOCKED UNTIL")
	for _, b := range l.Batches {
		fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\t%s\t%s\n", b.Number, b.Source, b.Lines, sizeText(b.Bytes), sizeText(b.StoredBytes), timeText(&b.RecordedAt), timeText(&b.ExpiresAt))
	}
	if len(l.Findings) > 0 {
		fmt.Fprintln(table, "\nFOUND\tKIND\tSESSION\tLINES\tTIMES")
		for _, f := range l.Findings {
			session, lines := "-", "-"
			if f.SessionID != nil {
				session = *f.SessionID
			}
			if f.LineFrom != nil && f.LineTo != nil {
				lines = fmt.Sprintf("%d–%d", *f.LineFrom, *f.LineTo)
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\n", timeText(&f.FoundAt), f.Kind, session, lines, f.Occurrences)
		}
	}
	_ = table.Flush()
}

func (l *logs) Verify(ctx context.Context) error {
	return l.withDatabase(ctx, "verify", func(pool *pgxpool.Pool) error {
		opened, err := l.openStore(ctx, true)
		if err != nil {
			return err
		}
		deps, err := l.deps(pool, opened)
		if err != nil {
			return err
		}
		report, err := jobs.VerifyLogs(ctx, deps, !l.Quick)
		if err != nil {
			return err
		}
		bad := 0
		err = l.Print(report, func(out io.Writer) {
			for _, f := range report.Findings {
				fmt.Fprintf(out, "%s: %s: %s\n", f.Kind, f.Detail["object"], f.Detail["what"])
			}
			fmt.Fprintf(out, "%d batches, %d objects, %d findings\n", report.Batches, report.Objects, len(report.Findings))
		})
		for _, f := range report.Findings {
			if f.Kind != "orphan" {
				bad++
			}
		}
		if err == nil && bad > 0 {
			err = &Failure{Code: ExitCheck, What: fmt.Sprintf("%d batches are missing or altered", bad), Do: "see them above and in custody_data.log_findings; the store's own versions may have them"}
		}
		return err
	})
}
