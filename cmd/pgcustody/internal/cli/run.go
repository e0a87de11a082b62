package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/spf13/cobra"

	"pgcustody/db"
	"pgcustody/jobs"
)

type jobArgs = river.JobArgs

func newRunCmd(app *App) *cobra.Command {
	r := &runJob{App: app}
	cmd := &cobra.Command{
		Use:   "run JOB",
		Short: "Run one job now, through River, and wait for it",
		Long: `Run one job now, through River, and wait for it. The job goes to a queue of this
command's own and is worked in this process: no daemon is needed, and one that
runs is not disturbed. What the job inserts in turn is worked too.

Jobs: ` + strings.Join(slices.Sorted(maps.Keys(runnable)), ", ") + `.
erase and export want --tenant and --request; notify sends what waits, of
--tenant or of all.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return r.Run(cmd.Context(), args[0]) },
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "print what would be done, and do nothing")
	cmd.Flags().StringVar(&r.Request, "request", "", "request to carry out, for erase and export")
	return cmd
}

type runJob struct {
	*App
	Request string
	DryRun  bool
}

// runnable makes the arguments of each job that `run` knows.
var runnable = map[string]func(context.Context, *runJob, *pgxpool.Pool, *jobs.Deps) ([]jobArgs, error){
	"archive": func(_ context.Context, r *runJob, _ *pgxpool.Pool, deps *jobs.Deps) ([]jobArgs, error) {
		return r.archiveJob(deps)
	},
	"seal": func(context.Context, *runJob, *pgxpool.Pool, *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.SealArgs{}}, nil
	},
	"retention": func(_ context.Context, r *runJob, _ *pgxpool.Pool, _ *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.RetentionArgs{Tenant: r.Tenant}}, nil
	},
	"partitions": func(context.Context, *runJob, *pgxpool.Pool, *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.PartitionsArgs{}}, nil
	},
	"keys": func(_ context.Context, r *runJob, _ *pgxpool.Pool, _ *jobs.Deps) ([]jobArgs, error) {
		_, err := r.NeedKeys()
		return []jobArgs{jobs.KeysArgs{Tenant: r.Tenant}}, err
	},
	"requests": func(_ context.Context, r *runJob, _ *pgxpool.Pool, _ *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.RequestsArgs{Tenant: r.Tenant}}, nil
	},
	"detect": func(context.Context, *runJob, *pgxpool.Pool, *jobs.Deps) ([]jobArgs, error) {
		return []jobArgs{jobs.DetectArgs{}}, nil
	},
	"erase": func(_ context.Context, r *runJob, _ *pgxpool.Pool, _ *jobs.Deps) ([]jobArgs, error) {
		tenant, id, err := r.request()
		return []jobArgs{jobs.EraseArgs{Tenant: tenant, RequestID: id}}, err
	},
	"export": func(_ context.Context, r *runJob, _ *pgxpool.Pool, _ *jobs.Deps) ([]jobArgs, error) {
		tenant, id, err := r.request()
		return []jobArgs{jobs.ExportArgs{Tenant: tenant, RequestID: id}}, err
	},
	"notify": func(ctx context.Context, r *runJob, pool *pgxpool.Pool, deps *jobs.Deps) ([]jobArgs, error) {
		if len(deps.Config.Notify.Key) == 0 {
			return nil, &ConfigError{Field: "--webhook-key-file", Problem: "required: the key that signs notices, or set PGCUSTODY_WEBHOOK_KEY"}
		}
		return jobs.DueNotices(ctx, *deps, r.Tenant)
	},
}

// wantsStore are the jobs that cannot do without a store.
var wantsStore = map[string]bool{"archive": true, "export": true}

func (r *runJob) request() (string, uuid.UUID, error) {
	tenant, err := r.NeedTenant()
	if err != nil {
		return "", uuid.Nil, err
	}
	id, err := parseID("--request", r.Request)
	if err != nil {
		return "", uuid.Nil, err
	}
	if id == nil {
		return "", uuid.Nil, &ConfigError{Field: "--request", Problem: "required: the request to carry out"}
	}
	return tenant, *id, nil
}

func (r *runJob) Run(ctx context.Context, name string) error {
	build := runnable[name]
	if build == nil {
		return &ConfigError{"JOB", name, "must be one of " + strings.Join(slices.Sorted(maps.Keys(runnable)), ", ")}
	}
	if r.DryRun {
		switch name {
		case "archive":
			return (&archive{App: r.App}).plan(ctx)
		case "retention":
			return (&retention{App: r.App}).Due(ctx)
		case "erase":
			return r.planErasure(ctx)
		}
		return r.plan(ctx, name)
	}
	return r.runJobs(ctx, name, wantsStore[name], func(pool *pgxpool.Pool, deps *jobs.Deps) ([]jobArgs, error) {
		return build(ctx, r, pool, deps)
	})
}

// planErasure prints what the request would erase and keep.
func (r *runJob) planErasure(ctx context.Context) error {
	_, id, err := r.request()
	if err != nil {
		return err
	}
	return r.withDatabase(ctx, "erase", func(pool *pgxpool.Pool) error {
		var plan json.RawMessage
		err := r.inTenantUnlocked(ctx, pool, "erasure plan", func(tx pgx.Tx) (err error) {
			plan, err = db.New().ErasurePlanOfRequest(ctx, tx, id)
			return err
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return &Failure{Code: ExitRefused, What: "no open erasure request", Object: id.String(), Do: "see pgcustody requests list"}
		}
		if err != nil {
			return err
		}
		return r.Print(plan, func(out io.Writer) { fmt.Fprintln(out, indented(plan)) })
	})
}

// plan prints the jobs that would be inserted.
func (r *runJob) plan(ctx context.Context, name string) error {
	return r.withDatabase(ctx, name, func(pool *pgxpool.Pool) error {
		deps, err := r.deps(pool, nil)
		if err != nil {
			return err
		}
		list, err := runnable[name](ctx, r, pool, &deps)
		if err != nil {
			return err
		}
		type planned struct {
			Job  string  `json:"job"`
			Args jobArgs `json:"args"`
		}
		would := []planned{}
		for _, args := range list {
			would = append(would, planned{args.Kind(), args})
		}
		return r.Print(map[string]any{"would_run": would}, func(out io.Writer) {
			if len(would) == 0 {
				fmt.Fprintln(out, "nothing to do")
			}
			for _, job := range would {
				args, _ := json.Marshal(job.Args)
				fmt.Fprintf(out, "would run %s %s\n", job.Job, args)
			}
		})
	})
}

// runJobs opens what jobs need, works those that build names, and prints their
// run records.
func (a *App) runJobs(ctx context.Context, step string, storeRequired bool, build func(*pgxpool.Pool, *jobs.Deps) ([]jobArgs, error)) error {
	return a.withDatabase(ctx, step, func(pool *pgxpool.Pool) error {
		opened, err := a.openStore(ctx, storeRequired)
		if err != nil {
			return err
		}
		deps, err := a.deps(pool, opened)
		if err != nil {
			return err
		}
		list, err := build(pool, &deps)
		if err != nil {
			return err
		}
		reports := []jobs.Report{}
		var failed error
		if len(list) > 0 {
			reports, failed = a.workNow(ctx, deps, list...)
		}
		if err := a.Print(map[string]any{"runs": reports}, func(out io.Writer) { printReports(out, reports) }); err != nil {
			return err
		}
		return failed
	})
}
