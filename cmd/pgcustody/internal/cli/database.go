package cli

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pgcustody/jobs"
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

// plaintextWarning is what commands say that handle personal columns, until these
// are sealed.
const plaintextWarning = "personal columns hold plaintext: no store but the private stack's is accepted"

// openStore opens the configured store and refuses all but the private stack's, and one
// without Object Lock.
// It is nil where none is configured and required is false.
func (a *App) openStore(ctx context.Context, required bool) (store.Store, error) {
	if a.Store == "" && !required {
		return nil, nil
	}
	address, err := a.NeedStore()
	if err != nil {
		return nil, err
	}
	opened, err := store.OpenURL(ctx, address)
	if errors.Is(err, store.ErrBadURL) {
		var wrong *store.Error
		errors.As(err, &wrong)
		return nil, a.wrong("store", wrong.Object, wrong.Hint)
	}
	if err != nil {
		return nil, err
	}
	if err := jobs.RequirePrivateStore(ctx, opened, a.PrivateStack); err != nil {
		return nil, err
	}
	// Before anything is erased or opened for the archive.
	if err := opened.CheckSettings(ctx); err != nil {
		return nil, err
	}
	return opened, nil
}

// deps is what workers in this process are built on.
func (a *App) deps(pool *pgxpool.Pool, s store.Store) (jobs.Deps, error) {
	key, err := a.WebhookKey()
	if err != nil {
		return jobs.Deps{}, err
	}
	return jobs.Deps{
		Pool: pool, Store: s, Log: a.Log, Actor: a.Actor,
		Config: jobs.Config{Notify: jobs.NotifyConfig{Key: key}},
	}, nil
}
