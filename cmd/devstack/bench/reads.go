package main

import (
	"context"
	"fmt"
	"time"
)

// measureReads reads the same rows from a table under policies and from its copy
// without, in transactions that set the context on both sides.
func measureReads(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "reads")
	if err != nil {
		return err
	}
	defer done()
	persons, each, rounds, span := 10_000, 100, 9, 4*time.Second
	if b.quick {
		persons, each, rounds, span = 100, 10, 1, time.Second
	}
	if err := d.load(ctx,
		triggersOff("conversations"),
		people("person-", persons),
		fmt.Sprintf(`insert into custody_data.conversations (tenant_id, identity_id, conversation_id, title, messages, message_count, started_at, last_message_at)
			select '%s', md5('person-' || p)::uuid, 'chat-' || c, bench.sealed('About ' || c), bench.sealed('[]'), 2, now(), now()
			from generate_series(1, %d) p, generate_series(1, %d) c`, tenant, persons, each),
		triggersOn("conversations"),
		"create table bench.conversations (like custody_data.conversations including defaults including indexes)",
		"insert into bench.conversations select * from custody_data.conversations",
		"vacuum (analyze) custody_data.conversations",
		"vacuum (analyze) bench.conversations",
	); err != nil {
		return err
	}

	// The application knows its tenant: without policies it must say so itself.
	transaction := func(query string) string {
		return fmt.Sprintf("\\set p random(1, %d)\n\\set c random(1, %d)\nbegin;\nselect custody.set_context('%s', 'actor-1', 'care');\n%s;\ncommit;\n", persons, each, tenant, query)
	}
	const scan = "select count(*), sum(message_count) from %s.conversations where tenant_id = '" + tenant + "'"
	const point = "select title from %s.conversations where tenant_id = '" + tenant + "' and identity_id = md5('person-' || :p::text)::uuid and conversation_id = 'chat-' || :c::text"
	for _, m := range []struct {
		figure, query string
		clients       int
		target        float64
	}{
		{"reads under RLS, scans", scan, 1, 0.95},
		{"reads under RLS, point reads", point, 4, 0.90},
	} {
		tps, err := d.race(ctx, []script{
			{name: "policies", login: appLogin, text: transaction(fmt.Sprintf(m.query, "custody_data"))},
			{name: "bare", login: appLogin, text: transaction(fmt.Sprintf(m.query, "bench"))},
		}, m.clients, rounds, span)
		if err != nil {
			return err
		}
		r := median(ratios(tps[0], tps[1]))
		b.add(row{figure: m.figure, target: fmt.Sprintf("≥ %.2f", m.target), ratio: fmt.Sprintf("%.2f", r), verdict: atLeast(r, m.target),
			ours: perSecond(median(tps[0])), bare: perSecond(median(tps[1])),
			note: fmt.Sprintf("transactions with set_context on both sides, %d rows, %d clients, median of %d rounds", persons*each, m.clients, rounds)})
	}
	return nil
}
