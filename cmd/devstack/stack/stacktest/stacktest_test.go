package stacktest

import (
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"pgcustody/cmd/devstack/stack"
	"pgcustody/sql"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDatabaseIsMigratedAndAlone(t *testing.T) {
	t.Parallel()
	a, b := DB(t), DB(t)
	require.NotEqual(t, a.Name, b.Name)

	// Every login gets in, into the right database, and sees no schema by default.
	require.Contains(t, a.URLs, stack.Superuser)
	require.Contains(t, a.URLs, stack.MigratorLogin)
	require.Contains(t, a.URLs, "custody_app")
	for login := range a.URLs {
		var database, user, path string
		require.NoError(t, a.Conn(t, login).QueryRow(t.Context(),
			"select current_database(), session_user, current_setting('search_path')").Scan(&database, &user, &path), login)
		require.Equal(t, []string{a.Name, login, `""`}, []string{database, user, path})
	}

	// It is up to date: migrating it again changes nothing.
	result, err := sql.Up(t.Context(), sql.Config{URL: a.URLs[stack.MigratorLogin]})
	require.NoError(t, err)
	require.False(t, result.Changed(), "%+v", result)

	_, err = a.Conn(t, stack.Superuser).Exec(t.Context(), "create table public.only_in_a ()")
	require.NoError(t, err)
	var there bool
	require.NoError(t, b.Conn(t, stack.Superuser).QueryRow(t.Context(), "select to_regclass('public.only_in_a') is not null").Scan(&there))
	require.False(t, there)
}

func TestDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	var dropped string
	t.Run("a test", func(t *testing.T) { dropped = DB(t).Name })
	conn, err := pgx.Connect(t.Context(), Shared(t).SuperURL("postgres"))
	require.NoError(t, err)
	defer conn.Close(t.Context())
	var there bool
	require.NoError(t, conn.QueryRow(t.Context(), "select exists (select from pg_database where datname = $1)", dropped).Scan(&there))
	require.False(t, there)
}

// Several test programs come at the same moment and find no template.
func TestTemplateIsMadeOnce(t *testing.T) {
	t.Parallel()
	s := Shared(t)
	names := make([]string, 4)
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() {
			name, err := migratedTemplate(t.Context(), s)
			if err != nil {
				t.Error(err)
			}
			names[i] = name
		})
	}
	wg.Wait()
	for _, name := range names {
		require.Equal(t, names[0], name)
	}
}

func TestEmptyDB(t *testing.T) {
	t.Parallel()
	var there bool
	require.NoError(t, EmptyDB(t).Conn(t, stack.MigratorLogin).QueryRow(t.Context(), "select to_regnamespace('custody') is not null").Scan(&there))
	require.False(t, there)
}

func TestBucket(t *testing.T) {
	t.Parallel()
	bucket := Bucket(t)
	lock, err := Shared(t).S3().GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: &bucket})
	require.NoError(t, err)
	require.EqualValues(t, "Enabled", lock.ObjectLockConfiguration.ObjectLockEnabled)
}

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	d := DB(t)
	urls := PgBouncer(t, d)
	require.NotContains(t, urls, stack.Superuser)
	conn, err := pgx.Connect(t.Context(), urls["custody_app"])
	require.NoError(t, err)
	defer conn.Close(t.Context())
	var database, user string
	require.NoError(t, conn.QueryRow(t.Context(), "select current_database(), session_user where $1 = 1", 1).Scan(&database, &user))
	require.Equal(t, []string{d.Name, "custody_app"}, []string{database, user})
}
