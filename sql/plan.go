package sql

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Plan writes the SQL that Up would run on this database, for a DBA to read or
// to run: `psql -X -v ON_ERROR_STOP=1 -f FILE` as the migration login ends where
// Up ends. It reads the database's versions and changes nothing.
func Plan(ctx context.Context, cfg Config, w io.Writer) error {
	m, err := start(ctx, cfg, "migrate sql")
	if err != nil {
		return err
	}
	defer m.close()
	report, err := m.mayMigrate(ctx)
	if err != nil {
		return fmt.Errorf("migrate sql: %w", err)
	}
	river, err := riverVersion(ctx, m.pool)
	if err != nil {
		return fmt.Errorf("migrate sql: %w", err)
	}
	_, err = io.WriteString(w, m.plan(report, river))
	return err
}

func (m *migrator) plan(report *Report, river int) string {
	b := m.bundle
	var p planText
	pending := report.pending()
	apply := func(part string) bool {
		return len(pending) > 0 || m.cfg.Force || report.part(part).State != "applied"
	}

	p.title("pgcustody migrate up: from version %d to %d. Run with: psql -X -v ON_ERROR_STOP=1 -f FILE", report.Applied, report.Known)
	p.add(settings(m.cfg))
	p.title("one migration of a database at a time; the lock ends with the session")
	p.add(fmt.Sprintf("select pg_catalog.pg_advisory_lock(%d);", lockKey))

	p.title("%s, as the login itself", b.bootstrap.name)
	p.tx(b.bootstrap.text, createRiverSchema)

	p.title("from here on as the owner of the objects")
	p.add("set role " + owner + ";")
	if report.Relation == NotMigrated {
		p.title("%s", b.versions.name)
		p.tx(b.versions.text)
	}
	for _, v := range pending {
		f := b.find(v.Version)
		p.title("%s.sql", f.name)
		p.tx(f.up, bind(insertMigration, f.version, f.name, f.breaking, f.sha256))
	}

	if apply("routines") {
		texts := []string{}
		for _, r := range b.routines {
			texts = append(texts, "-- "+r.name+"\n"+r.text)
		}
		p.title("routines, all in one transaction")
		p.tx(append(texts, bind(insertStep, "routines", b.routinesDigest(), b.latest()))...)
	}

	if apply("river") {
		for _, r := range riverMigrations() {
			if r.Version <= river {
				continue
			}
			row := fmt.Sprintf("insert into river.river_migration (line, version) values ('main', %d)", r.Version)
			if r.Version < 5 { // before River's table had lines
				row = fmt.Sprintf("insert into river.river_migration (version) values (%d)", r.Version)
			}
			p.title("River's migration %d, %s", r.Version, r.Name)
			p.tx(riverSQL(r.SQLUp), row)
		}
		p.title("%s", b.river.name)
		p.tx(b.river.text, bind(insertStep, "river", b.riverDigest(), b.latest()))
	}

	if byHand := report.part("pgaudit").State == "by hand" && len(pending) == 0 && !m.cfg.Force; b.pgaudit.text != "" && apply("pgaudit") && !byHand {
		p.title("%s, as the login itself. Where the login lacks the right, migrate up leaves this out and says so:", b.pgaudit.name)
		p.WriteString("-- run it as a superuser then.\n")
		p.add("reset role;")
		p.tx(pgauditPath, b.pgaudit.text, bind(insertStep, "pgaudit", digest(b.pgaudit.text), b.latest()))
	}
	return p.String()
}

// planText collects SQL with a comment above each part.
type planText struct{ strings.Builder }

func (p *planText) title(format string, args ...any) {
	fmt.Fprintf(p, "\n-- "+format+"\n", args...)
}

func (p *planText) add(text string) {
	text = strings.TrimSpace(text)
	p.WriteString(text)
	// An end that may be a comment gets its semicolon on a line of its own; one
	// too many is an empty statement.
	if last := text[strings.LastIndexByte(text, '\n')+1:]; strings.Contains(last, "--") || !strings.HasSuffix(last, ";") {
		p.WriteString("\n;")
	}
	p.WriteByte('\n')
}

func (p *planText) tx(texts ...string) {
	p.add("begin;")
	for _, text := range texts {
		p.add(text)
	}
	p.add("commit;")
}

// bind writes a statement's parameters into its text. They are numbers, marks,
// digests and names of our own files.
func bind(text string, args ...any) string {
	for i, arg := range args {
		literal := fmt.Sprint(arg)
		if s, ok := arg.(string); ok {
			literal = "'" + strings.ReplaceAll(s, "'", "''") + "'"
		}
		text = strings.ReplaceAll(text, fmt.Sprintf("$%d", i+1), literal)
	}
	return text
}
