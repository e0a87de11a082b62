package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// The batch and the pause between two are those of the job.
const (
	retentionBatch = 2000
	retentionPause = 20 * time.Millisecond
)

// measureRetention deletes expired conversations in batches while an application
// saves new ones, and compares how long saving takes with and without.
func measureRetention(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "retention")
	if err != nil {
		return err
	}
	defer done()
	persons, expired, idle := 10_000, 1_000_000, 30*time.Second
	if b.quick {
		persons, expired, idle = 100, 10_000, time.Second
	}
	if err := d.load(ctx, people("person-", persons)); err != nil {
		return err
	}
	if err := d.load(ctx, expiredConversations(persons, expired)...); err != nil {
		return err
	}

	live := &saver{d: d, persons: persons}
	if err := live.start(ctx, 4, 10*time.Millisecond); err != nil {
		return err
	}
	defer func() { _ = live.stop() }()
	live.measure() // what came before warmed the sessions
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle):
	}
	quiet := live.measure()

	runner, err := pgx.Connect(ctx, d.stack.URL(runnerLogin, d.name))
	if err != nil {
		return err
	}
	defer runner.Close(context.WithoutCancel(ctx))
	started, rows, batches := time.Now(), 0, 0
	for {
		var n int
		if err := pgx.BeginFunc(ctx, runner, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "select custody.set_context($1, 'retention', 'benchmark')", tenant); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "select custody.enforce_retention('conversations', $1)", retentionBatch).Scan(&n)
		}); err != nil {
			return err
		}
		if n == 0 {
			break
		}
		rows, batches = rows+n, batches+1
		time.Sleep(retentionPause)
	}
	took := time.Since(started)
	busy := live.measure()
	if err := live.stop(); err != nil {
		return err
	}
	if rows != expired {
		return fmt.Errorf("retention deleted %d of %d expired conversations", rows, expired)
	}

	b.add(row{figure: "retention of expired conversations", target: "< 5 min", ratio: took.Round(time.Second).String(), verdict: atMost(took.Seconds(), 300),
		ours: perSecond(float64(rows) / took.Seconds()), note: fmt.Sprintf("%d rows of 1 kB in %d batches", rows, batches)})
	r := quantile(busy, 0.99) / quantile(quiet, 0.99)
	b.add(row{figure: "… live inserts meanwhile, p99", target: "≤ 1.50", ratio: fmt.Sprintf("%.2f", r), verdict: atMost(r, 1.5),
		ours: ms(quantile(busy, 0.99)), bare: ms(quantile(quiet, 0.99)),
		note: fmt.Sprintf("save_conversation, %d and %d calls, medians %s and %s", len(busy), len(quiet), ms(median(busy)), ms(median(quiet)))})
	return nil
}

// expiredConversations makes conversations that retention is due to delete.
func expiredConversations(persons, expired int) []string {
	return []string{
		triggersOff("conversations"),
		fmt.Sprintf(`insert into custody_data.conversations (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
			select '%s', md5('person-' || n %% %d + 1)::uuid, 'chat-' || n, bench.sealed('About ' || n),
			  bench.sealed(jsonb_build_array(jsonb_build_object('role', 'user', 'text', repeat(md5(n::text), 28), 'at', now() - interval '1 year'))::text), 1,
			  now() - interval '1 year', now() - interval '100 days' - random() * interval '200 days'
			from generate_series(1, %d) n`, tenant, persons, expired),
		triggersOn("conversations"),
		partitions("now()", "now()"),
		"vacuum (analyze) custody_data.conversations",
	}
}

// saver is an application that saves conversations at a steady pace, or does what
// call says.
type saver struct {
	d       *database
	persons int
	call    func(client, n int) (statement string, args []any)
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	mu      sync.Mutex
	took    []float64
	failed  error
}

func (s *saver) start(ctx context.Context, clients int, every time.Duration) error {
	call := s.call
	if call == nil {
		call = func(client, n int) (string, []any) {
			return "select custody.save_conversation($1, $2, $3)",
				[]any{fmt.Sprintf("person-%d", (n*clients+client)%s.persons+1), fmt.Sprintf("live-%d-%d", client, n), `[{"role":"user","text":"Hello, is the order on its way?"}]`}
		}
	}
	ctx, s.cancel = context.WithCancel(ctx)
	for client := range clients {
		conn, err := pgx.Connect(ctx, s.d.stack.URL(appLogin, s.d.name))
		if err != nil {
			return err
		}
		s.wait.Go(func() {
			defer conn.Close(context.WithoutCancel(ctx))
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				statement, args := call(client, n)
				took, err := s.d.inContext(ctx, conn, statement, args...)
				s.mu.Lock()
				if err != nil && ctx.Err() == nil {
					s.failed = err
				}
				s.took = append(s.took, took.Seconds())
				s.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return nil
}

// measure returns the seconds of the calls since the last time.
func (s *saver) measure() []float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	took := s.took
	s.took = nil
	return took
}

func (s *saver) stop() error {
	s.cancel()
	s.wait.Wait()
	return s.failed
}
