package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"pgcustody/db"
)

func newAccessCmd(app *App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access",
		Short: "Ask who read what",
		Long: `Ask who read what. Each question is an event of the trail (access.read), under
--actor and with --purpose. A person is named by user_id, or by identity where the
user_id is gone.`,
	}
	a := &access{App: app}
	for _, question := range []struct {
		use, short, long string
		run              func(context.Context, string) error
	}{
		{"person PERSON", "Who read this person's records, when and for what purpose", "", a.person},
		{"actor ACTOR", "What this actor read, of whom and for what purpose", "", a.actor},
		{"own PERSON", "The list that a person is given of who read their records", `The list that a person is given (GDPR Art. 15): when and for what purpose which
records were opened, and whether by the person, the staff or a program; not by whom.`, a.own},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: question.use, Short: question.short, Long: cmp.Or(question.long, question.short), Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return question.run(cmd.Context(), args[0]) },
		})
	}
	cmd.AddCommand(&cobra.Command{
		Use: "summary", Short: "Reads by table, role and hour",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.summary(cmd.Context()) },
	})
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.From, "from", "", "reads from here on, as in 2027-01-31 or 2027-01-31T08:00:00Z; default a week before --to")
	flags.StringVar(&a.To, "to", "", "reads before; default now")
	flags.StringVar(&a.Purpose, "purpose", "access question", "why it is asked, for the trail; must name nobody")
	flags.Int32Var(&a.Limit, "limit", 1000, "at most so many rows, 1 to 10000, the newest first")
	return cmd
}

type access struct {
	*App
	From, To, Purpose string
	Limit             int32
}

// between is the time that a question is about.
func (a *access) between() (from, to time.Time, err error) {
	to = time.Now()
	if a.To != "" {
		if to, err = parseTime("--to", a.To); err != nil {
			return from, to, err
		}
	}
	from = to.AddDate(0, 0, -7)
	if a.From != "" {
		from, err = parseTime("--from", a.From)
	}
	return from, to, err
}

// party is whom a question names: an identity if it is one, else a user_id.
func party(name string) (userID *string, identity *uuid.UUID) {
	if id, err := uuid.Parse(name); err == nil && len(name) == 36 {
		return nil, &id
	}
	return &name, nil
}

// ask runs a question in the tenant's context.
func (a *access) ask(ctx context.Context, question func(tx pgx.Tx, from, to time.Time) error) error {
	from, to, err := a.between()
	if err != nil {
		return err
	}
	return a.withDatabase(ctx, "access", func(pool *pgxpool.Pool) error {
		return a.inTenant(ctx, pool, a.Purpose, func(tx pgx.Tx) error { return question(tx, from, to) })
	})
}

type accessRow struct {
	OccurredAt *time.Time  `json:"occurred_at"`
	Kind       string      `json:"kind"`
	Object     *string     `json:"object,omitempty"`
	Rows       *int64      `json:"rows,omitempty"`
	Purpose    *string     `json:"purpose,omitempty"`
	Actor      *string     `json:"actor,omitempty"`
	ActorID    *uuid.UUID  `json:"actor_id,omitempty"`
	Pseudonym  *string     `json:"actor_pseudonym,omitempty"`
	Login      *string     `json:"login,omitempty"`
	Role       *string     `json:"role,omitempty"`
	Subject    *string     `json:"subject,omitempty"`
	SubjectID  *uuid.UUID  `json:"subject_id,omitempty"`
	Client     *netip.Addr `json:"client,omitempty"`
	SessionID  string      `json:"session_id"`
	RolledBack *bool       `json:"rolled_back,omitempty"`
}

func (a *access) person(ctx context.Context, name string) error {
	rows := []accessRow{}
	if err := a.ask(ctx, func(tx pgx.Tx, from, to time.Time) error {
		userID, identity := party(name)
		found, err := db.New().AccessToPerson(ctx, tx, db.AccessToPersonParams{FromAt: from, ToAt: to, UserID: userID, IdentityID: identity, MaxRows: a.Limit})
		for _, r := range found {
			rows = append(rows, newAccessRow(db.AccessByActorRow(r)))
		}
		return err
	}); err != nil {
		return err
	}
	return a.print(rows)
}

func (a *access) actor(ctx context.Context, name string) error {
	rows := []accessRow{}
	if err := a.ask(ctx, func(tx pgx.Tx, from, to time.Time) error {
		userID, identity := party(name)
		found, err := db.New().AccessByActor(ctx, tx, db.AccessByActorParams{FromAt: from, ToAt: to, UserID: userID, IdentityID: identity, MaxRows: a.Limit})
		for _, r := range found {
			rows = append(rows, newAccessRow(r))
		}
		return err
	}); err != nil {
		return err
	}
	return a.print(rows)
}

func newAccessRow(r db.AccessByActorRow) accessRow {
	return accessRow{utc(r.OccurredAt), r.Kind, r.ObjectName, r.Rows, r.Purpose, r.Actor, r.ActorID, r.ActorPseudonym, r.Login, r.Role, r.Subject, r.SubjectID, r.Client, r.SessionID, r.RolledBack}
}

func (a *access) print(rows []accessRow) error {
	return a.Print(rows, func(out io.Writer) {
		if len(rows) == 0 {
			fmt.Fprintln(out, "no reads")
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "TIME\tACTOR\tLOGIN\tPERSON\tOBJECT\tROWS\tPURPOSE\tKIND")
		for _, r := range rows {
			count := "-"
			if r.Rows != nil {
				count = strconv.FormatInt(*r.Rows, 10)
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", timeText(r.OccurredAt), who(r.Actor, r.ActorID, r.Pseudonym), textOr(r.Login), who(r.Subject, r.SubjectID, nil),
				textOr(r.Object), count, textOr(r.Purpose), r.Kind)
		}
		_ = table.Flush()
	})
}

// who names an identity by what is there of it.
func who(userID *string, identity *uuid.UUID, pseudonym *string) string {
	switch {
	case userID != nil:
		return *userID
	case identity != nil:
		return identity.String()
	}
	return textOr(pseudonym)
}

func textOr(text *string) string {
	if text == nil || *text == "" {
		return "-"
	}
	return *text
}

func (a *access) own(ctx context.Context, name string) error {
	type row struct {
		OccurredAt *time.Time `json:"occurred_at"`
		Object     *string    `json:"object,omitempty"`
		Purpose    *string    `json:"purpose,omitempty"`
		By         string     `json:"by"`
	}
	rows := []row{}
	if err := a.ask(ctx, func(tx pgx.Tx, from, to time.Time) error {
		userID, identity := party(name)
		found, err := db.New().AccessOfSubject(ctx, tx, db.AccessOfSubjectParams{FromAt: from, ToAt: to, UserID: userID, IdentityID: identity, MaxRows: a.Limit})
		for _, r := range found {
			rows = append(rows, row{utc(r.OccurredAt), r.ObjectName, r.Purpose, r.ByWhom})
		}
		return err
	}); err != nil {
		return err
	}
	return a.Print(rows, func(out io.Writer) {
		if len(rows) == 0 {
			fmt.Fprintln(out, "no reads")
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "TIME\tBY\tOBJECT\tPURPOSE")
		for _, r := range rows {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", timeText(r.OccurredAt), r.By, textOr(r.Object), textOr(r.Purpose))
		}
		_ = table.Flush()
	})
}

func (a *access) summary(ctx context.Context) error {
	type row struct {
		Object string     `json:"object"`
		Role   string     `json:"role"`
		Hour   *time.Time `json:"hour"`
		Reads  int64      `json:"reads"`
		Rows   int64      `json:"rows"`
		People int64      `json:"people"`
		Actors int64      `json:"actors"`
	}
	rows := []row{}
	if err := a.ask(ctx, func(tx pgx.Tx, from, to time.Time) error {
		found, err := db.New().AccessSummary(ctx, tx, db.AccessSummaryParams{FromAt: from, ToAt: to})
		for _, r := range found {
			rows = append(rows, row{r.ObjectName, r.Role, utc(r.Hour), r.Reads, r.Rows, r.People, r.Actors})
		}
		return err
	}); err != nil {
		return err
	}
	return a.Print(rows, func(out io.Writer) {
		if len(rows) == 0 {
			fmt.Fprintln(out, "no reads")
			return
		}
		table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		fmt.Fprintln(table, "HOUR\tOBJECT\tROLE\tREADS\tROWS\tPEOPLE\tACTORS")
		for _, r := range rows {
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\n", timeText(r.Hour), r.Object, r.Role, r.Reads, r.Rows, r.People, r.Actors)
		}
		_ = table.Flush()
	})
}
