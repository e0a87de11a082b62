package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/jobs"
)

// measureSealing seals and opens short values, against pgcrypto's password encryption,
// and wraps data keys under a new key-encryption key.
func measureSealing(ctx context.Context, b *bench) error {
	d, done, err := b.database(ctx, "sealing")
	if err != nil {
		return err
	}
	defer done()
	values, slow, rounds, people := 5000, 100, 9, 1_000_000
	if b.quick {
		values, slow, rounds, people = 200, 20, 1, 2000
	}
	pool, err := d.pool(ctx, runnerLogin)
	if err != nil {
		return err
	}
	defer pool.Close()
	ring := jobs.Keyring{Pool: pool, Provider: b.provider, Actor: "officer"}
	kek := b.kek
	super, err := pgx.Connect(ctx, d.stack.SuperURL(d.name))
	if err != nil {
		return err
	}
	defer super.Close(context.WithoutCancel(ctx))

	// each is how long one turn of a loop in the database takes, in seconds.
	each := func(n int, declare, body string) (float64, error) {
		var took time.Duration
		err := jobs.InContext(ctx, super, jobs.Scope{Tenant: tenant, Actor: "officer", KEK: kek.Bytes()}, func(tx pgx.Tx) error {
			started := time.Now()
			_, err := tx.Exec(ctx, fmt.Sprintf("do $$ declare %s; begin for n in 1 .. %d loop %s end loop; end $$", declare, n, body))
			took = time.Since(started)
			return err
		})
		return took.Seconds() / float64(n), err
	}
	if err := d.load(ctx, peopleOf(1)); err != nil {
		return err
	}
	const identity = "v_id constant uuid := md5('person-1')::uuid; v_sealed bytea; v_text text"
	loops := []struct {
		n             int
		declare, body string
	}{
		{values, "v_key constant bytea := custody_data.random_bytes(64); v_sealed bytea; v_text text",
			`v_sealed := custody_data.seal_bytes(v_key, 1, custody_data.sealing_place('bench', '00000000-0000-4000-8000-000000000000', 't', 'c', n::text), convert_to('a short value', 'UTF8'));
			v_text := convert_from(custody_data.open_bytes(v_key, custody_data.sealing_place('bench', '00000000-0000-4000-8000-000000000000', 't', 'c', n::text), v_sealed), 'UTF8');`},
		{slow, "v_sealed bytea; v_text text", "v_sealed := public.pgp_sym_encrypt('a short value', 'a password of some length'); v_text := public.pgp_sym_decrypt(v_sealed, 'a password of some length');"},
		{values / 10, identity, "v_sealed := custody.seal_value(v_id, 't', 'c', n::text, 'a short value'); v_text := custody.open_value(v_id, 't', 'c', n::text, v_sealed);"},
		{values / 10, "v_id constant uuid := md5('person-1')::uuid; v_names constant text[] := array['a','b','c','d','e','f','g','h','i','j']; v_sealed constant bytea[] := custody_data.seal_values(v_id, 't', 'r', v_names, v_names); v_values text[]",
			"v_values := custody_data.open_values(v_id, 't', 'r', v_names, v_sealed);"},
	}
	took := make([][]float64, len(loops))
	for range rounds {
		for i, loop := range loops {
			seconds, err := each(loop.n, loop.declare, loop.body)
			if err != nil {
				return err
			}
			took[i] = append(took[i], seconds)
		}
	}
	pair, pgp := median(took[0]), median(took[1])
	r := pair / pgp
	b.add(row{figure: "sealing and opening a short value", target: "≤ 0.10", ratio: fmt.Sprintf("%.3f", r), verdict: atMost(r, 0.1), ours: us(pair), bare: us(pgp),
		note: fmt.Sprintf("in PL/pgSQL, against pgp_sym_encrypt and pgp_sym_decrypt; median of %d rounds", rounds)})
	b.add(row{figure: "… in µs", target: "≤ 25", ratio: fmt.Sprintf("%.1f", pair*1e6), verdict: atMost(pair*1e6, 25)})
	b.add(row{figure: "… by seal_value and open_value", ours: us(median(took[2])), note: "with two look-ups of the data key"})
	b.add(row{figure: "… opening the ten values of a row", ours: us(median(took[3])), note: "with one look-up"})

	// A tenant's data keys, made as claim_data_key makes them, all at once.
	if err := d.load(ctx, peopleOf(people)); err != nil {
		return err
	}
	started := time.Now()
	if err := jobs.InContext(ctx, super, jobs.Scope{Tenant: tenant, Actor: "officer", KEK: kek.Bytes()}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into custody_keys.data_keys (tenant_id, identity_id, key_version) select $1, md5('person-' || p)::uuid, 1 from generate_series(2, $2::int) p", tenant, people); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `insert into custody_keys.wrapped_keys (tenant_id, identity_id, key_version, kek_version, wrapped)
			select k.tenant_id, k.identity_id, 1, 1, custody_data.wrap_key(k.tenant_id, k.identity_id, 1, custody_data.random_bytes(64), $2, 1)
			from custody_keys.data_keys k where k.tenant_id = $1
			on conflict do nothing`, tenant, kek.Bytes())
		return err
	}); err != nil {
		return err
	}
	if err := d.load(ctx, "vacuum (analyze)", "checkpoint"); err != nil {
		return err
	}
	b.log.Info("data keys made", "count", people, "duration", time.Since(started).Round(time.Second))
	started = time.Now()
	rotation, err := ring.Rotate(ctx, tenant, nil)
	if err != nil {
		return err
	}
	if rotation.Rewrapped != int64(people) {
		return fmt.Errorf("%d data keys wrapped anew, expected %d", rotation.Rewrapped, people)
	}
	elapsed := time.Since(started)
	b.add(row{figure: "rotation of a key-encryption key", target: "< 2 min", ratio: elapsed.Round(time.Second).String(), verdict: atMost(elapsed.Seconds(), 120),
		ours: perSecond(float64(people) / elapsed.Seconds()), note: fmt.Sprintf("%d data keys wrapped anew on four connections, the old key retired", people)})
	return nil
}

func peopleOf(n int) string {
	return fmt.Sprintf("insert into custody_data.identities (tenant_id, identity_id, user_id) select '%s', md5('person-' || p)::uuid, 'person-' || p from generate_series(1, %d) p on conflict do nothing", tenant, n)
}

func us(d float64) string { return fmt.Sprintf("%.1f µs", d*1e6) }
