package jobs

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"pgcustody/db"
)

// Scope says for whom, by whom and why a transaction acts.
type Scope struct {
	// Tenant whose rows are seen. Empty: no context is set.
	Tenant string
	// Actor is the external id that the trail records.
	Actor string
	// Purpose is why; it names nobody.
	Purpose string
	// Subject confines the transaction to one person.
	Subject string
	// KEK is the tenant's key-encryption key; nil leaves the sealed columns locked.
	KEK []byte

	// LockTimeout is how long a statement waits for a lock, Timeout how long it
	// may run; 0 leaves the server's setting.
	LockTimeout, Timeout time.Duration
	// Isolation other than the server's default.
	Isolation pgx.TxIsoLevel
}

// Beginner is a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// InContext runs work in one transaction under the scope's context, which ends
// with it: commits when work returns nil, else rolls back.
func InContext(ctx context.Context, pool Beginner, scope Scope, work func(pgx.Tx) error) error {
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: scope.Isolation})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	// A connection that cannot be rolled back is closed by the pool.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	queries := db.New()
	if scope.LockTimeout > 0 || scope.Timeout > 0 {
		if err := queries.SetTimeouts(ctx, tx, db.SetTimeoutsParams{
			LockTimeout: milliseconds(scope.LockTimeout), StatementTimeout: milliseconds(scope.Timeout),
		}); err != nil {
			return fmt.Errorf("set timeouts: %w", err)
		}
	}
	if scope.Tenant != "" {
		if err := queries.SetContext(ctx, tx, db.SetContextParams{
			Tenant: scope.Tenant, Actor: scope.Actor, Purpose: optional(scope.Purpose), Subject: optional(scope.Subject),
		}); err != nil {
			return fmt.Errorf("set context: %w", err)
		}
	}
	if scope.KEK != nil {
		version, err := queries.Unlock(ctx, tx, scope.KEK)
		if err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
		if version == 0 {
			return fmt.Errorf("unlock: %w", errKeyLogged)
		}
	}
	if err := work(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// milliseconds writes a timeout for set_config, "" for one that is left alone.
func milliseconds(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return strconv.FormatInt(max(d.Milliseconds(), 1), 10) + "ms"
}

// optional is nil for the empty text.
func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
