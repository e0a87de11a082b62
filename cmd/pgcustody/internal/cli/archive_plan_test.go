package cli

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The plan says what would go and how much, what would stay and why, and what there is.
func TestArchivePlan(t *testing.T) {
	c := newArchiveCommands(t)
	yesterday, old := c.events(1, 10), c.events(150, 5)
	c.runs(ExitOK, "hold", "place", "--all", "--reference", "case 7", "--reason", "litigation")

	out := c.runs(ExitOK, "archive", "run", "--dry-run")
	require.Regexp(t, `(?m)^`+yesterday.Format(time.DateOnly)+` +10 +- +2\d{3}-`, out, "how large it will be nobody knows yet")
	require.Regexp(t, `(?m)^`+old.Format("2006-01")+` +unarchived +5 +5 +\d+\.\d kB +case 7 +5 events are in no segment`, out)
	require.NotContains(t, out, "the archive holds")
	require.NotContains(t, out, "LOCK ENDED")
	require.Contains(t, c.runs(ExitOK, "retention", "due", "--tenant", "system"), "audit_logs_"+old.Format("2006_01"))
	require.Regexp(t, `(?m)^system +audit_hot +audit_logs_\S+ +0 +\d+ +\S+ kB .*case 7$`, c.runs(ExitOK, "retention", "due", "--tenant", "system"))

	c.runs(ExitOK, "archive", "run")
	c.events(2, 20)
	out = c.runs(ExitOK, "archive", "run", "--dry-run")
	require.Regexp(t, `(?m)^`+yesterday.AddDate(0, 0, -1).Format(time.DateOnly)+` +20 +\d+(\.\d)? k?B +2\d{3}-`, out, "as large as others were")
	require.Regexp(t, `the archive holds \d+ events in \d segments, \d objects: \S+ k?B stored, 1 to \d+\.\d of \S+ k?B`, out)

	var plan archivePlan
	require.NoError(t, json.Unmarshal([]byte(c.runs(ExitOK, "archive", "run", "--dry-run", "--json")), &plan))
	require.NotEmpty(t, plan.Segments)
	require.Positive(t, plan.Segments[0].StoredBytes)
	require.Positive(t, plan.Totals.Ratio)
	require.Equal(t, yesterday.AddDate(0, 0, -1).Format(time.DateOnly), plan.Totals.OldestUnarchivedDay)
	require.Empty(t, plan.Expired)
	require.Equal(t, 2*plan.Totals.Segments, plan.Totals.Objects)
}
