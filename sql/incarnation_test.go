package sql_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/tlog"

	"pgcustody/cmd/devstack/stack"
)

// Lives of a database, in clusters of their own: whatever becomes of it, the next
// sealer notices where SQL can, every visible event gets exactly one leaf, and the
// tree that was anchored is the beginning of the tree that goes on.

// restart stops a cluster, does something to its files, and starts it again.
func restart(t *testing.T, s *stack.Stack, change func(data string)) *stack.Stack {
	t.Helper()
	require.NoError(t, s.Stop(t.Context()))
	if change != nil {
		change(filepath.Join(s.PGHome, "data"))
	}
	again, err := stack.Start(t.Context(), stack.Options{Dir: s.Dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	return again
}

// asServer runs a program as the account of the cluster's server.
func asServer(t *testing.T, program string, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), program, args...)
	command.Dir = "/"
	command.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: serverAccount(t)}
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s: %s", program, out)
}

// serverAccount is nil where the tests have it themselves.
func serverAccount(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	account, err := user.Lookup("postgres")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	require.NoError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// serverHome is a folder of the server's account, with a path that is short enough for a socket.
func serverHome(t *testing.T) string {
	t.Helper()
	home, err := stack.TempDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(home)) })
	if account := serverAccount(t); account != nil {
		require.NoError(t, os.Chown(home, int(account.Uid), int(account.Gid)))
	}
	return home
}

// baseBackup copies a running cluster.
func baseBackup(t *testing.T, s *stack.Stack) (data string) {
	t.Helper()
	address, err := url.Parse(s.URL(stack.Superuser, "postgres"))
	require.NoError(t, err)
	data = filepath.Join(serverHome(t), "data")
	asServer(t, filepath.Join(s.PGBin, "pg_basebackup"), "--dbname="+address.String(), "--pgdata="+data, "--checkpoint=fast", "--no-sync", "--write-recovery-conf")
	return data
}

// startCopy starts a copy of a cluster's files as a cluster of its own, after a change to them.
func startCopy(t *testing.T, s *stack.Stack, data string, change func(data string)) *stack.Stack {
	t.Helper()
	home := serverHome(t)
	asServer(t, "cp", "-a", data, filepath.Join(home, "data"))
	if change != nil {
		change(filepath.Join(home, "data"))
	}
	dir, err := stack.TempDir()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(s.Dir, "state.json"))
	require.NoError(t, err)
	var state map[string]any
	require.NoError(t, json.Unmarshal(text, &state))
	state["pg_home"], state["pg_port"], state["s3_port"] = home, 0, 0
	delete(state, "postgres")
	delete(state, "gateway")
	text, err = json.Marshal(state)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "state.json"), text, 0o600))
	ca, err := os.ReadFile(s.RootCert())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644))
	started, err := stack.Start(t.Context(), stack.Options{Dir: dir, NoFsync: true, Ephemeral: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, started.Destroy(context.Background())) })
	return started
}

// appendTo adds lines to a file of a cluster that is not running.
func appendTo(t *testing.T, path string, lines ...string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString(strings.Join(append(lines, ""), "\n"))
	require.NoError(t, err)
	if account := serverAccount(t); account != nil {
		require.NoError(t, os.Chown(path, int(account.Uid), int(account.Gid)))
	}
}

// inLife is a database in one of its lives.
type inLife struct {
	*bed
	app, runner *session
}

func lifeIn(t *testing.T, s *stack.Stack, name string) *inLife {
	t.Helper()
	b := bedOf(t, s, name)
	return &inLife{b, b.session(t, app), b.session(t, runner)}
}

// again is the same database for another test.
func (b *inLife) again(t *testing.T) *inLife {
	t.Helper()
	return lifeIn(t, b.Stack, b.Name)
}

// write records events, each in a transaction of its own.
func (b *inLife) write(t *testing.T, n int) {
	t.Helper()
	for range n {
		b.app.run(t, tenant, recordOne)
	}
}

// refuses tells that nothing is sealed here.
func (b *inLife) refuses(t *testing.T, code string) {
	t.Helper()
	_, err := sealOnce(t.Context(), b.runner.Conn, 10000)
	requireCode(t, err, code)
}

// anchor seals everything and records a checkpoint, as the anchoring job does after the
// bucket has it; it returns what is in the bucket then.
func (b *inLife) anchor(t *testing.T) []tlog.Hash {
	t.Helper()
	sealAll(t, b.runner.Conn)
	l := requireLedger(t, b.admin, 0, b.lost(t))
	b.runner.run(t, "system", fmt.Sprintf(`select custody.record_checkpoint((select coalesce(max(number), 0) + 1 from custody.ledger_checkpoints), %d, '\x%x', 'note', 'key', null, now())`, l.size, l.root[:]))
	return l.leaves
}

func (b *inLife) lost(t *testing.T) int {
	t.Helper()
	return ask[int](t, b.bed, `select count(*) from custody_data.leaves_between(0, 0)`)
}

// lives are the incarnations on record, oldest first.
func (b *inLife) lives(t *testing.T) (lives []incarnation) {
	t.Helper()
	return collect[incarnation](t, b.admin, `select incarnation_id, system_identifier, timeline, observed from custody_data.incarnations order by opened_at`)
}

type incarnation struct {
	ID       uuid.UUID
	System   int64
	Timeline int
	Observed map[string]any
}

// requireOpened seals, by which a new life must be noticed and recorded, and goes on
// sealing in it.
func (b *inLife) requireOpened(t *testing.T, guess string) incarnation {
	t.Helper()
	before := b.lives(t)
	first := sealAll(t, b.runner.Conn)
	require.True(t, first.Opened)
	lives := b.lives(t)
	require.Len(t, lives, len(before)+1)
	now := lives[len(lives)-1]
	require.Equal(t, guess, now.Observed["guess"], now.Observed)
	require.Equal(t, ask[int64](t, b.bed, `select system_identifier from pg_control_system()`), now.System)
	if len(before) > 0 {
		require.Equal(t, strconv.FormatInt(before[len(before)-1].System, 10), now.Observed["system_identifier_before"])
		require.EqualValues(t, before[len(before)-1].Timeline, now.Observed["timeline_before"])
	}
	require.Equal(t, 1, ask[int](t, b.bed, `select count(*) from custody_data.audit_logs where action = 'incarnation.open' and metadata ->> 'incarnation_id' = $1`, now.ID.String()))
	b.requireGoesOn(t, now.ID)
	return now
}

// requireGoesOn seals events of now in a life that is open.
func (b *inLife) requireGoesOn(t *testing.T, life uuid.UUID) {
	t.Helper()
	before := requireLedger(t, b.admin, 0, b.lost(t))
	b.write(t, 5)
	s := sealAll(t, b.runner.Conn)
	require.False(t, s.Opened)
	require.EqualValues(t, 5, s.Sealed)
	after := requireLedger(t, b.admin, 0, b.lost(t))
	require.Equal(t, life, after.life)
	require.Equal(t, stretch{before.size, "sealed", life}, lastOf(t, after, before))
	requireBegins(t, after, before.leaves)
}

// lastOf is the stretch in which the last leaves stand; where it began before, it is
// cut to begin there.
func lastOf(t *testing.T, after, before *ledger) stretch {
	t.Helper()
	last := after.stretches[len(after.stretches)-1]
	last.First = max(last.First, before.size)
	return last
}

// requireBegins tells that a tree begins with leaves that were anchored.
func requireBegins(t *testing.T, l *ledger, anchored []tlog.Hash) {
	t.Helper()
	require.GreaterOrEqual(t, len(l.leaves), len(anchored))
	require.Equal(t, anchored, l.leaves[:len(anchored)], "the old tree is the beginning of the new one")
}

// common is how many leaves two trees begin with in common.
func common(a, b []tlog.Hash) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// takeOver does what the anchoring job does where the bucket is no beginning of the tree.
func (b *inLife) takeOver(t *testing.T, bucket []tlog.Hash) (kept int, took map[string]int) {
	t.Helper()
	before := readLedger(t, b.admin)
	kept = common(before.leaves, bucket)
	require.Less(t, kept, len(bucket), "the bucket has more")
	var hashes []byte
	for _, leaf := range bucket[kept:] {
		hashes = append(hashes, leaf[:]...)
	}
	out := b.runner.run(t, "system", fmt.Sprintf(`select custody.take_over_leaves(%d, '\x%x', '{"anchored": %d}')`, kept, hashes, len(bucket)))
	require.NoError(t, json.Unmarshal([]byte(out), &took))
	require.Equal(t, kept, took["kept"])
	require.Equal(t, len(bucket)-kept, took["taken"])
	require.Equal(t, took["taken"], took["found"]+took["lost"])

	lives := b.lives(t)
	now := lives[len(lives)-1]
	for name, value := range map[string]any{"guess": "set_back_or_cloned", "anchored": float64(len(bucket)), "kept": float64(kept), "cut": float64(before.size) - float64(kept), "taken": float64(len(bucket) - kept)} {
		require.Equal(t, value, now.Observed[name], name)
	}
	sealAll(t, b.runner.Conn)
	l := requireLedger(t, b.admin, 0, took["lost"])
	requireBegins(t, l, bucket)
	b.requireGoesOn(t, now.ID)
	return kept, took
}

// A database dumped, copied, replicated, promoted, cloned, set back.
func TestLivesOfADatabase(t *testing.T) {
	t.Parallel()
	started := time.Now()
	took := func(what string) { t.Logf("%6.1f s: %s", time.Since(started).Seconds(), what) }
	primary := newCluster(t)
	bedOf(t, primary, stack.Database).must(t, "alter system set wal_level = 'logical'", "alter system set wal_keep_size = '1GB'")
	primary = restart(t, primary, nil)
	migrate(t, primary, stack.Database)
	p := lifeIn(t, primary, stack.Database)
	p.runner.run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.ensure_audit_partitions(now() - interval '2 days', now() + interval '1 month')`)
	p.burn(t, p.xid(t)+4000) // so that a new cluster's transactions have lower numbers
	p.write(t, 300)
	first := p.anchor(t)
	require.Equal(t, "initial", p.lives(t)[0].Observed["guess"])
	base := baseBackup(t, primary)
	p.write(t, 100)
	p.anchor(t)
	p.write(t, 20)
	p.must(t, "select pg_create_restore_point('here')")
	p.write(t, 50)
	bucket := p.anchor(t)
	p.must(t, "select pg_switch_wal()")
	require.Greater(t, len(bucket), len(first))
	p.write(t, 15)
	file := p.backup(t)
	took("the primary is there")

	t.Run("while the primary runs", func(t *testing.T) {
		t.Run("in another cluster", func(t *testing.T) {
			t.Parallel()
			other := newCluster(t)
			migrate(t, other, stack.Database) // for the roles
			took("the other cluster is there")
			c := &copies{p: p.again(t), other: other, ahead: true}
			c.p.must(t, "create publication trail for table custody_data.audit_logs with (publish_via_partition_root = true)")
			made := c.rows(t)
			took("copied ahead")
			c.restored(t, file, bucket, made)
			took("restored")
			c.ahead = false
			c.rows(t)
			took("copied behind")
		})
		t.Run("standbys", func(t *testing.T) {
			t.Parallel()
			promotedTwice(t, p.again(t), base)
			took("promoted")
		})
		t.Run("point in time", func(t *testing.T) {
			t.Parallel()
			recoveredTo(t, p.again(t), base, bucket)
			took("recovered")
		})
	})
	setBack(t, primary)
	took("set back")
}

// must runs statements as the superuser, each on its own.
func (b *bed) must(t *testing.T, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := b.admin.Exec(t.Context(), statement)
		require.NoError(t, err, statement)
	}
}

// restored brings a dump back where transactions have lower numbers, and goes on until
// they have passed those of the dump: here and in the databases that were copied to.
func (c *copies) restored(t *testing.T, file string, bucket []tlog.Hash, made []*inLife) {
	p, other := c.p, c.other
	require.NoError(t, other.CreateDatabase(t.Context(), "restored", ""))
	_, err := client(t, other, "pg_restore", "--exit-on-error", "--dbname="+other.SuperURL("restored"), file)
	require.NoError(t, err)
	migrate(t, other, "restored")
	b := lifeIn(t, other, "restored")
	least := ask[int64](t, b.bed, `select min(xid)::text::bigint from custody_data.audit_logs where tenant_id = 'acme'`)
	greatest := ask[int64](t, b.bed, `select max(xid)::text::bigint from custody_data.audit_logs`)
	require.Less(t, b.xid(t), least, "numbers begin anew")
	b.write(t, 3)
	life := b.requireOpened(t, "restored_or_copied")
	require.NotEqual(t, p.lives(t)[0].System, life.System)
	l := requireLedger(t, b.admin, 0, 0)
	requireBegins(t, l, bucket)
	require.Equal(t, []string{"sealed", "swept", "sealed"}, l.kinds())

	// Numbers that both lives have.
	for i := range made {
		made[i] = made[i].again(t)
	}
	b.burn(t, least-30)
	for b.xid(t) < greatest+30 {
		for _, b := range append(made, b) {
			b.write(t, 1+rand.IntN(10))
			_, err := sealOnce(t.Context(), b.runner.Conn, 25)
			require.NoError(t, err)
		}
	}
	for _, b := range made {
		sealAll(t, b.runner.Conn)
		requireLedger(t, b.admin, 0, 0)
	}
	sealAll(t, b.runner.Conn)
	l = requireLedger(t, b.admin, 0, 0)
	requireBegins(t, l, bucket)
	require.Equal(t, []string{"sealed", "swept", "sealed"}, l.kinds())
	require.Positive(t, ask[int](t, b.bed, `select count(*) from (select a.xid from custody_data.audit_logs a group by a.xid having count(distinct a.recorded_at) > 1 and max(a.recorded_at) - min(a.recorded_at) > '1 second') x`), "the test has numbers twice")
}

// copies are databases into which rows of the trail came.
type copies struct {
	p     *inLife
	other *stack.Stack
	ahead bool // the rows have numbers beyond those of the other cluster's transactions
}

// fresh is a migrated database of the other cluster.
func (c *copies) fresh(t *testing.T, name string) *inLife {
	t.Helper()
	require.NoError(t, c.other.CreateDatabase(t.Context(), name, stack.Database))
	b := lifeIn(t, c.other, name)
	b.runner.run(t, "system", `select custody.register_tenant('acme', 'Acme'), custody.ensure_audit_partitions(now() - interval '2 days', now() + interval '1 month')`)
	return b
}

// restore brings rows of some tables of the primary into a database.
func (c *copies) restore(t *testing.T, b *inLife, tables ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rows")
	args := []string{"--enable-row-security", "--no-unlogged-table-data", "--format=custom", "--data-only", "--file=" + file, "--dbname=" + c.p.URLs[dump]}
	for _, table := range tables {
		args = append(args, "--table="+table)
	}
	_, err := client(t, c.other, "pg_dump", args...)
	require.NoError(t, err)
	_, err = client(t, c.other, "pg_restore", "--exit-on-error", "--data-only", "--dbname="+b.URLs[stack.Superuser], file)
	require.NoError(t, err)
}

// guess is what a sealer takes a database for that was never sealed: numbers behind the
// server's own look like its own.
func (c *copies) guess() string {
	if c.ahead {
		return "restored_or_copied"
	}
	return "initial"
}

// requireAdopted tells that rows which came into a ledger's database by the side are
// reported and not sealed, until an administrator adopts them.
func (b *inLife) requireAdopted(t *testing.T, n int, anchored []tlog.Hash) {
	t.Helper()
	adopt := func() string {
		t.Helper()
		b.must(t, "begin", "set local role custody_admin", "select custody.set_context('system', 'dba')")
		adopted := ask[string](t, b.bed, `select custody.adopt_events('a test')::text`)
		b.must(t, "commit")
		return adopted
	}
	sealAll(t, b.runner.Conn)
	requireLedger(t, b.admin, n, 0)
	require.Equal(t, fmt.Sprint(n), b.runner.run(t, "system", `select count(*) from custody.verify_ledger() f where f.kind = 'event_unsealed'`))
	require.Equal(t, fmt.Sprint(n), adopt())
	sealAll(t, b.runner.Conn)
	l := requireLedger(t, b.admin, 0, 0)
	requireBegins(t, l, anchored)
	require.Equal(t, []string{"sealed", "adopted", "sealed"}, slices.Compact(l.kinds()))
	require.Equal(t, "0", adopt())
	b.requireGoesOn(t, l.life)
}

const trailAlone = "custody_data.audit_logs*"

// rows come by a data-only restore and by logical replication. Databases that were made
// are returned.
func (c *copies) rows(t *testing.T) (made []*inLife) {
	suffix := map[bool]string{true: "_ahead", false: "_behind"}[c.ahead]
	copied := ask[int](t, c.p.bed, `select count(*) from custody_data.audit_logs`)

	t.Run("the trail with its ledger, data only", func(t *testing.T) {
		b := c.fresh(t, "data_only"+suffix)
		c.restore(t, b, trailAlone, "custody_data.ledger_*", "custody_data.incarnations")
		before := readLedger(t, b.admin)
		b.requireOpened(t, "restored_or_copied")
		l := requireLedger(t, b.admin, 0, 0)
		requireBegins(t, l, before.leaves)
		require.Equal(t, []string{"sealed", "swept", "sealed"}, l.kinds())
		made = append(made, b)
	})

	t.Run("the trail alone, into a database without a ledger", func(t *testing.T) {
		b := c.fresh(t, "trail_only"+suffix)
		c.restore(t, b, trailAlone)
		b.requireOpened(t, c.guess())
		require.Greater(t, int(requireLedger(t, b.admin, 0, 0).size), copied)
		made = append(made, b)
	})

	t.Run("the trail alone, into a database with a ledger", func(t *testing.T) {
		b := c.fresh(t, "with_ledger"+suffix)
		b.write(t, 10)
		anchored := b.anchor(t)
		c.restore(t, b, trailAlone)
		b.requireAdopted(t, copied, anchored)
		made = append(made, b)
	})

	t.Run("logical replication", func(t *testing.T) {
		b := c.fresh(t, "replica"+suffix)
		var anchored []tlog.Hash
		if !c.ahead {
			b.write(t, 10)
			anchored = b.anchor(t)
		}
		own := ask[int](t, b.bed, `select count(*) from custody_data.audit_logs`)
		b.must(t, fmt.Sprintf("create subscription replica%s connection '%s' publication trail", suffix, c.p.Stack.URL(stack.Superuser, stack.Database)))
		c.p.write(t, 5)
		copied := ask[int](t, c.p.bed, `select count(*) from custody_data.audit_logs`)
		require.Eventually(t, func() bool {
			return ask[int](t, b.bed, `select count(*) from custody_data.audit_logs`) == copied+own
		}, time.Minute, 20*time.Millisecond)
		b.refuses(t, "PC039")
		b.must(t, "drop subscription replica"+suffix)
		if c.ahead {
			b.requireOpened(t, "restored_or_copied")
			requireLedger(t, b.admin, 0, 0)
		} else {
			b.requireAdopted(t, copied, anchored)
		}
		made = append(made, b)
	})
	return made
}

// promotedTwice promotes two standbys of one primary: they have the same identifier and
// the same timeline, and the bucket can take one of them.
func promotedTwice(t *testing.T, p *inLife, base string) {
	clones := make([]*inLife, 2)
	for i := range clones {
		clones[i] = lifeIn(t, startCopy(t, p.Stack, base, nil), stack.Database)
	}
	until := ask[string](t, p.bed, `select pg_current_wal_lsn()::text`)
	before := readLedger(t, p.admin)
	for i, b := range clones {
		require.Eventually(t, func() bool {
			return ask[bool](t, b.bed, `select pg_last_wal_replay_lsn() >= $1::pg_lsn`, until)
		}, time.Minute, 20*time.Millisecond)
		b.refuses(t, "PC039")
		b.must(t, "select pg_promote()")
		b.write(t, 10+i)
		require.Equal(t, 2, b.requireOpened(t, "promoted_or_recovered").Timeline)
		l := requireLedger(t, b.admin, 0, 0)
		requireBegins(t, l, before.leaves)
		require.Equal(t, []string{"sealed", "swept", "sealed"}, l.kinds())
	}
	one, other := clones[0].lives(t), clones[1].lives(t)
	require.Len(t, one, 2)
	require.Equal(t, [2]any{one[1].System, one[1].Timeline}, [2]any{other[1].System, other[1].Timeline})
	require.NotEqual(t, one[1].ID, other[1].ID, "which identifier and timeline do not tell")

	bucket := clones[0].anchor(t)
	kept, took := clones[1].takeOver(t, bucket)
	require.GreaterOrEqual(t, kept, int(before.size))
	require.Positive(t, took["lost"], "what only the other clone has")
	require.Zero(t, took["found"])
	clones[0].requireGoesOn(t, one[1].ID)
}

// recoveredTo brings the base backup to a point in time before events that were anchored.
func recoveredTo(t *testing.T, p *inLife, base string, bucket []tlog.Hash) {
	s := startCopy(t, p.Stack, base, func(data string) {
		require.NoError(t, os.Remove(filepath.Join(data, "standby.signal")))
		appendTo(t, filepath.Join(data, "recovery.signal"))
		appendTo(t, filepath.Join(data, "postgresql.auto.conf"), "primary_conninfo = ''", "recovery_target_name = 'here'", "recovery_target_action = 'promote'",
			fmt.Sprintf(`restore_command = 'cp "%s/pg_wal/%%f" "%%p"'`, filepath.Join(p.Stack.PGHome, "data")))
	})
	b := lifeIn(t, s, stack.Database)
	require.Eventually(t, func() bool { return !ask[bool](t, b.bed, `select pg_is_in_recovery()`) }, time.Minute, 20*time.Millisecond)
	before := readLedger(t, b.admin)
	requireLedger(t, b.admin, 20, 0)
	require.Less(t, int(before.size), len(bucket))
	require.Equal(t, bucket[:before.size], before.leaves)
	b.write(t, 7)
	require.Equal(t, 2, b.requireOpened(t, "promoted_or_recovered").Timeline)
	// The sealer went on where the bucket was further: the events that were not sealed then have
	// the same leaves, those of later are lost.
	kept, took := b.takeOver(t, bucket)
	require.Equal(t, int(before.size)+20, kept)
	require.Equal(t, map[string]int{"kept": kept, "taken": 50, "found": 0, "lost": 50, "tree_size": took["tree_size"]}, took)
}

// setBack puts a copy of the primary's files back: neither identifier nor timeline
// changes, and SQL alone notices nothing.
func setBack(t *testing.T, primary *stack.Stack) {
	p := lifeIn(t, primary, stack.Database)
	sealAll(t, p.runner.Conn)
	p.anchor(t)
	p.write(t, 12)
	copied := filepath.Join(serverHome(t), "data")
	primary = restart(t, primary, func(data string) { asServer(t, "cp", "-a", data, copied) })
	p = lifeIn(t, primary, stack.Database)
	before := readLedger(t, p.admin)
	p.write(t, 30)
	bucket := p.anchor(t)
	lives := p.lives(t)
	putBack := func() {
		primary = restart(t, primary, func(data string) {
			require.NoError(t, os.RemoveAll(data))
			asServer(t, "cp", "-a", copied, data)
		})
		p = lifeIn(t, primary, stack.Database)
	}

	// Before anything was sealed anew.
	putBack()
	kept, took := p.takeOver(t, bucket)
	require.Equal(t, int(before.size), kept)
	require.Equal(t, map[string]int{"kept": kept, "taken": 42, "found": 12, "lost": 30, "tree_size": took["tree_size"]}, took)

	// After: the tree has forked, with transaction numbers that the bucket's leaves had.
	putBack()
	p.write(t, 31)
	s := sealAll(t, p.runner.Conn)
	require.False(t, s.Opened, "SQL alone cannot tell")
	require.Equal(t, lives, p.lives(t))
	forked := requireLedger(t, p.admin, 0, 0)
	require.Greater(t, int(forked.size), len(bucket))
	require.NotEqual(t, bucket, forked.leaves[:len(bucket)], "a fork")
	kept, took = p.takeOver(t, bucket)
	require.Equal(t, int(before.size)+12, kept)
	require.Equal(t, 30, took["lost"])
}
