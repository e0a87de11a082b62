package cli

import (
	"context"
	"errors"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/db"
	"pgcustody/jobs"
	"pgcustody/jobs/agekeys"
	"pgcustody/jobs/store"
	"pgcustody/sql"
)

// openDatabase opens the database as the runner's login and refuses one that this
// binary does not fit.
func (a *App) openDatabase(ctx context.Context, step string) (*pgxpool.Pool, error) {
	pool, err := a.Pool(ctx, step)
	if err != nil {
		return nil, err
	}
	if err := sql.Check(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// withDatabase opens the database for the time of work.
func (a *App) withDatabase(ctx context.Context, step string, work func(*pgxpool.Pool) error) error {
	pool, err := a.openDatabase(ctx, step)
	if err != nil {
		return err
	}
	defer pool.Close()
	return work(pool)
}

// inTenant runs work in one transaction in the context of the configured tenant.
func (a *App) inTenant(ctx context.Context, pool *pgxpool.Pool, purpose string, work func(pgx.Tx) error) error {
	tenant, err := a.NeedTenant()
	if err != nil {
		return err
	}
	return jobs.InContext(ctx, pool, jobs.Scope{Tenant: tenant, Actor: a.Actor, Purpose: purpose}, work)
}

// unlocker gives transactions the key of their tenant; it is nil where no provider is
// configured. A command has one database and one of them.
func (a *App) unlocker(pool *pgxpool.Pool) *jobs.Unlocker {
	if a.unlock == nil && a.provider != nil {
		a.unlock = &jobs.Unlocker{Ring: jobs.Keyring{Pool: pool, Provider: a.provider, Actor: a.Actor}}
	}
	return a.unlock
}

// inTenantUnlocked is inTenant with the tenant's key, where there is one and a provider
// for it. It may run work twice, the first time for nothing.
func (a *App) inTenantUnlocked(ctx context.Context, pool *pgxpool.Pool, purpose string, work func(pgx.Tx) error) error {
	tenant, err := a.NeedTenant()
	if err != nil {
		return err
	}
	return a.unlocker(pool).InContext(ctx, pool, jobs.Scope{Tenant: tenant, Actor: a.Actor, Purpose: purpose}, work)
}

// explainLocked says how to unlock what the database found locked.
func (a *App) explainLocked(err error) error {
	if !errors.Is(db.FromPg(err), db.ErrLocked) {
		return err
	}
	locked := &Failure{Code: ExitKeys, What: "locked: personal values are sealed, and this needs the tenant's key (PC033)", Object: "tenant " + a.Tenant, Err: err}
	if a.provider == nil {
		locked.Do = "name the key provider with --keys or PGCUSTODY_KEYS; a tenant that has no key yet gets one by pgcustody keys create --tenant " + a.Tenant
	} else {
		locked.Do = "it has no key yet: pgcustody keys create --tenant " + a.Tenant + " makes it"
	}
	return locked
}

// openStore opens the configured store and refuses one that is not fit.
// It is nil where none is configured and required is false.
func (a *App) openStore(ctx context.Context, required bool) (store.Store, error) {
	if a.Store == "" && !required {
		return nil, nil
	}
	opened, err := a.namedStore(ctx)
	if err != nil {
		return nil, err
	}
	// Before anything is erased or opened for the archive.
	findings, err := opened.CheckSettings(ctx)
	if err == nil {
		err = store.Accept(findings, a.StoreAccept)
	}
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// namedStore opens the configured store as it is.
func (a *App) namedStore(ctx context.Context) (store.Store, error) {
	address, err := a.NeedStore()
	if err != nil {
		return nil, err
	}
	opened, err := store.Open(ctx, address, a.StoreOptions)
	if errors.Is(err, store.ErrBadURL) {
		var wrong *store.Error
		errors.As(err, &wrong)
		return nil, a.wrong("store", wrong.Object, wrong.Hint)
	}
	return opened, err
}

// identities reads the files with identities of age that open the archive.
func (a *App) identities(files []string) ([]age.Identity, error) {
	identities, err := agekeys.ReadIdentities("--identity", files...)
	if wrong := new(agekeys.Error); errors.As(err, &wrong) {
		return nil, &ConfigError{Field: wrong.Place, Problem: wrong.What}
	}
	return identities, err
}

// deps is what workers in this process are built on.
func (a *App) deps(pool *pgxpool.Pool, s store.Store) (jobs.Deps, error) {
	key, err := a.WebhookKey()
	if err != nil {
		return jobs.Deps{}, err
	}
	ship, err := a.shipConfig()
	if err != nil {
		return jobs.Deps{}, err
	}
	return jobs.Deps{
		Pool: pool, Unlock: a.unlocker(pool), Store: s, Recipients: a.recipients, Log: a.Log, Actor: a.Actor,
		Config: jobs.Config{Notify: jobs.NotifyConfig{Key: key}, Archive: jobs.ArchiveConfig{Accept: a.StoreAccept}, Ship: ship, Detect: jobs.DetectConfig{Endpoint: a.AlertWebhook}},
	}, nil
}
