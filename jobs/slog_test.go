package jobs

import (
	"context"
	"log/slog"
)

// slogTo is a log that hands each message to a function: how a test waits for one.
func slogTo(hear func(message string)) *slog.Logger { return slog.New(hearing{hear}) }

type hearing struct{ hear func(string) }

func (hearing) Enabled(context.Context, slog.Level) bool        { return true }
func (h hearing) Handle(_ context.Context, r slog.Record) error { h.hear(r.Message); return nil }
func (h hearing) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h hearing) WithGroup(string) slog.Handler                 { return h }
