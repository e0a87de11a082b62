package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"pgcustody/jobs"
	"pgcustody/sql"
)

func newWorkCmd(app *App) *cobra.Command {
	w := &work{App: app}
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Run scheduled jobs and carry requests out, until SIGTERM",
		Long: `Run scheduled jobs and carry requests out, until SIGTERM or an interrupt.

Several may run at once: one of them leads and schedules. On SIGTERM no new job
begins, running ones have --stop-after to end, then they are interrupted; the
next worker goes on with them. A schedule of 0 switches a job off.

/healthz says that the process lives, /readyz that it works jobs on a database
that it fits and that the key provider gives the tenants' keys, /metrics is for
Prometheus.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return w.Run(cmd.Context()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&w.Listen, "listen", "127.0.0.1:9187", "address of the HTTP endpoints")
	fromEnv(flags, "listen", "PGCUSTODY_LISTEN")
	for _, every := range []struct {
		name, env, what string
		at              *time.Duration
		by              time.Duration
	}{
		{"retention-every", "PGCUSTODY_RETENTION_EVERY", "how often retention deletes what is due", &w.Schedule.Retention, time.Hour},
		{"archive-every", "PGCUSTODY_ARCHIVE_EVERY", "how often closed days are archived", &w.Schedule.Archive, 24 * time.Hour},
		{"archive-verify-every", "PGCUSTODY_ARCHIVE_VERIFY_EVERY", "how often a sample of the archive is read back", &w.Schedule.ArchiveVerify, 7 * 24 * time.Hour},
		{"partitions-every", "PGCUSTODY_PARTITIONS_EVERY", "how often partitions are made ahead", &w.Schedule.Partitions, 24 * time.Hour},
		{"requests-every", "PGCUSTODY_REQUESTS_EVERY", "how often due requests and notices are looked for", &w.Schedule.Requests, time.Minute},
		{"seal-every", "PGCUSTODY_SEAL_EVERY", "how often events are sealed into the audit ledger", &w.Schedule.Seal, time.Second},
		{"ship-every", "PGCUSTODY_SHIP_EVERY", "how often what the server has logged is shipped", &w.Schedule.Ship, 5 * time.Second},
		{"reconcile-every", "PGCUSTODY_RECONCILE_EVERY", "how often the log, the trail and the store are held against each other", &w.Schedule.Reconcile, 24 * time.Hour},
		{"anchor-every", "PGCUSTODY_ANCHOR_EVERY", "how often the audit ledger is anchored in the store, where it grew", &w.Schedule.Anchor, time.Minute},
		{"verify-every", "PGCUSTODY_VERIFY_EVERY", "how often the audit ledger is verified: what came since, and once a day all of it", &w.Schedule.Verify, time.Hour},
		{"detect-every", "PGCUSTODY_DETECT_EVERY", "how often the rules of detection look at what was shipped", &w.Schedule.Detect, time.Minute},
		{"keys-every", "PGCUSTODY_KEYS_EVERY", "how often keys are rotated, destroyed and expired as the policies for them say", &w.Schedule.Keys, time.Hour},
		{"erasure-grace", "PGCUSTODY_ERASURE_GRACE", "how long an erasure request rests, and may be cancelled, before it is carried out", &w.ErasureGrace, 0},
		{"stop-after", "PGCUSTODY_STOP_AFTER", "how long running jobs may go on after SIGTERM", &w.StopAfter, 30 * time.Second},
	} {
		flags.DurationVar(every.at, every.name, every.by, every.what)
		fromEnv(flags, every.name, every.env)
	}
	addKnownLost(flags, &w.KnownLost)
	return cmd
}

type work struct {
	*App
	Listen       string
	Schedule     jobs.Schedule
	ErasureGrace time.Duration
	StopAfter    time.Duration
	KnownLost    []string

	// onReady is told the address that was bound, by tests.
	onReady func(address string)
}

// hardStop is what interrupted jobs have to write down that they were.
const hardStop = 15 * time.Second

func (w *work) check() error {
	for _, d := range []struct {
		flag string
		d    time.Duration
		min  time.Duration
	}{
		{"retention-every", w.Schedule.Retention, time.Second}, {"archive-every", w.Schedule.Archive, time.Second}, {"archive-verify-every", w.Schedule.ArchiveVerify, time.Second},
		{"partitions-every", w.Schedule.Partitions, time.Second}, {"requests-every", w.Schedule.Requests, time.Second},
		{"detect-every", w.Schedule.Detect, time.Second},
		{"keys-every", w.Schedule.Keys, time.Second}, {"seal-every", w.Schedule.Seal, 100 * time.Millisecond},
		{"ship-every", w.Schedule.Ship, 100 * time.Millisecond},
		{"reconcile-every", w.Schedule.Reconcile, time.Second},
		{"anchor-every", w.Schedule.Anchor, time.Second}, {"verify-every", w.Schedule.Verify, time.Second},
		{"erasure-grace", w.ErasureGrace, 0}, {"stop-after", w.StopAfter, time.Second},
	} {
		off := d.d == 0 && d.flag != "stop-after"
		if d.d < d.min && !off {
			return w.wrong(d.flag, d.d.String(), "must be "+d.min.String()+" or more")
		}
	}
	return nil
}

func (w *work) Run(ctx context.Context) error {
	if err := w.check(); err != nil {
		return err
	}
	runtime.GOMAXPROCS(coresAtWork(os.Getenv("GOMAXPROCS"), runtime.GOMAXPROCS(0)))
	known, err := w.knownLost(w.KnownLost)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", w.Listen)
	if err != nil {
		return w.wrong("listen", w.Listen, "cannot be listened on: "+err.Error())
	}
	defer listener.Close()
	return w.withDatabase(ctx, "work", func(pool *pgxpool.Pool) error {
		opened, err := w.openStore(ctx, false)
		if err != nil {
			return err
		}
		if opened == nil {
			w.Schedule.ArchiveVerify = 0
			w.Log.Warn("no store: nothing is archived or anchored, certificates are not put under lock, exports wait")
		}
		if opened != nil && len(w.recipients.Keys) == 0 {
			w.Log.Warn("no archive recipients: nothing is archived")
			w.Schedule.Archive = 0
		}
		if w.LogSource == "" || opened == nil || len(w.recipients.Keys) == 0 {
			w.Log.Warn("no log source, or no store or recipients for it: the server's log is not shipped")
			w.Schedule.Ship, w.Schedule.Reconcile = 0, 0
		}
		if w.provider == nil {
			w.Log.Warn("no key provider: exports wait, erasures do not search what is sealed, and nobody looks after keys")
			w.Schedule.Keys = 0
		}
		deps, err := w.deps(pool, opened)
		if err != nil {
			return err
		}
		switch {
		case w.Signer == "":
			w.Log.Warn("no signer: events are sealed, and nothing is anchored")
			w.Schedule.Anchor, w.Schedule.Verify = 0, 0
		case opened == nil:
			w.Schedule.Anchor, w.Schedule.Verify = 0, 0 // it was said that there is no store
		default:
			if deps.Signer, err = w.needSigner(); err != nil {
				return err
			}
			defer deps.Signer.Close()
			deps.Config.Verify.KnownLost = known
			deps.Config.Verify.ProgressFile = filepath.Join(w.Signer, "verified.json")
		}
		deps.Stopping = ctx.Done()
		if len(deps.Config.Notify.Key) == 0 {
			w.Log.Warn("no webhook key: erasure notices wait, and no alert is posted")
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		deps.Metrics = jobs.NewMetrics(registry, pool)
		deps.Config.Schedule = w.Schedule
		deps.Config.Requests.ErasureGrace = w.ErasureGrace
		return w.serve(ctx, listener, pool, deps, registry)
	})
}

// serve works jobs and answers HTTP until ctx ends or one of them fails.
// coresAtWork is how many cores the daemon uses at once: a quarter of those that it may
// use, so that the others are free for a database on the same machine, unless the
// environment says how many.
func coresAtWork(said string, cores int) int {
	if said != "" {
		return cores
	}
	return max(cores/4, 1)
}

func (w *work) serve(ctx context.Context, listener net.Listener, pool *pgxpool.Pool, deps jobs.Deps, registry *prometheus.Registry) error {
	client, err := jobs.NewClient(deps, jobs.ClientOptions{PollOnly: w.Pooler == "transaction", SoftStop: w.StopAfter})
	if err != nil {
		return err
	}
	var ready atomic.Bool
	keys := &keyWatch{unlock: deps.Unlock, log: w.Log}
	if w.provider != nil {
		keys.provider = w.provider.String()
	}
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { keys.run(watching) })
	defer func() { unwatch(); watch.Wait() }()
	server := &http.Server{
		Handler:           w.handler(&ready, keys, pool, registry),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	defer server.Close()

	// The client ends by its own steps, not with the signal's context.
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	ready.Store(true)
	w.Log.Info("working", "listen", listener.Addr().String(), "actor", w.Actor,
		"retention_every", w.Schedule.Retention, "archive_every", w.Schedule.Archive, "archive_verify_every", w.Schedule.ArchiveVerify,
		"partitions_every", w.Schedule.Partitions, "requests_every", w.Schedule.Requests, "keys_every", w.Schedule.Keys,
		"seal_every", w.Schedule.Seal, "anchor_every", w.Schedule.Anchor, "verify_every", w.Schedule.Verify, "detect_every", w.Schedule.Detect, "erasure_grace", w.ErasureGrace)
	if w.onReady != nil {
		w.onReady(listener.Addr().String())
	}

	var serveErr error
	select {
	case <-ctx.Done():
	case <-client.Stopped():
		serveErr = errors.New("the job client stopped by itself")
	case serveErr = <-failed:
		serveErr = fmt.Errorf("serve HTTP: %w", serveErr)
	}
	ready.Store(false)
	w.Log.Info("stopping", "jobs_may_take", w.StopAfter)

	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.StopAfter+hardStop)
	defer cancel()
	// Running jobs go on; River interrupts them when StopAfter is over.
	if err := client.Stop(stopping); err != nil {
		return errors.Join(serveErr, fmt.Errorf("jobs did not stop when interrupted: %w", err))
	}
	if err := server.Shutdown(stopping); err != nil {
		return errors.Join(serveErr, fmt.Errorf("stop HTTP: %w", err))
	}
	w.Log.Info("stopped")
	return serveErr
}

// readyTimeout bounds what a probe may ask of the database.
const readyTimeout = 2 * time.Second

func (w *work) handler(ready *atomic.Bool, keys *keyWatch, pool *pgxpool.Pool, registry *prometheus.Registry) http.Handler {
	answer := func(out http.ResponseWriter, code int, state string) {
		out.Header().Set("Content-Type", "application/json")
		out.WriteHeader(code)
		_ = json.NewEncoder(out).Encode(map[string]string{"status": state})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(out http.ResponseWriter, _ *http.Request) { answer(out, http.StatusOK, "alive") })
	mux.HandleFunc("GET /readyz", func(out http.ResponseWriter, request *http.Request) {
		if !ready.Load() {
			answer(out, http.StatusServiceUnavailable, "not working jobs")
			return
		}
		ctx, cancel := context.WithTimeout(request.Context(), readyTimeout)
		defer cancel()
		err := sql.Check(ctx, pool)
		var state *sql.StateError
		switch {
		case err == nil && keys.problem() != "":
			answer(out, http.StatusServiceUnavailable, "key provider "+keys.provider+": "+keys.problem())
		case err == nil:
			answer(out, http.StatusOK, "ready")
		case errors.As(err, &state):
			answer(out, http.StatusServiceUnavailable, "database "+string(state.Relation))
		default:
			answer(out, http.StatusServiceUnavailable, "database unreachable")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	return mux
}
