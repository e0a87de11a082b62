package jobs

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"
)

func stringReader(text string) io.Reader { return strings.NewReader(text) }

// holder is a system outside Postgres: a real HTTP server that answers with what
// its list says, the last answer for good.
type holder struct {
	*httptest.Server
	mu       sync.Mutex
	answers  []answer
	received []delivery
}

type answer struct {
	status int
	body   string
	header http.Header
}

type delivery struct {
	header http.Header
	body   []byte
}

func newHolder(t *testing.T, answers ...answer) *holder {
	h := &holder{answers: answers}
	h.Server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		h.mu.Lock()
		h.received = append(h.received, delivery{request.Header.Clone(), body})
		a := h.answers[0]
		if len(h.answers) > 1 {
			h.answers = h.answers[1:]
		}
		h.mu.Unlock()
		for name, values := range a.header {
			out.Header()[name] = values
		}
		out.WriteHeader(a.status)
		_, _ = io.WriteString(out, a.body)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *holder) deliveries() []delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]delivery(nil), h.received...)
}

// eraseTold erases a person of whom a holder at endpoint has to be told.
func (b *bench) eraseTold(user, endpoint string) uuid.UUID {
	b.Helper()
	b.person(user)
	b.asRunner("select custody.register_holder('cache', $1)", endpoint)
	id := b.request("erasure", user)
	require.Equal(b, river.EventKindJobCompleted, b.work(EraseArgs{Tenant: tenant, RequestID: id}).Kind)
	return id
}

// until waits for the first completed job of a kind.
func (b *bench) until(kind string, schedule Schedule, also ...river.EventKind) *river.Event {
	b.Helper()
	client := b.client(b.deps, schedule)
	events, unsubscribe := client.Subscribe(append(also, river.EventKindJobCompleted)...)
	defer unsubscribe()
	require.NoError(b, client.Start(b.Context()))
	defer func() {
		stopping, cancel := b.stopping()
		defer cancel()
		require.NoError(b, client.StopAndCancel(stopping))
	}()
	for {
		if event := b.nextEvent(events); event.Job.Kind == kind {
			return event
		}
	}
}

func TestNoticeIsSignedRetriedAndAcknowledged(t *testing.T) {
	b := newBench(t)
	h := newHolder(t,
		answer{status: http.StatusServiceUnavailable},
		answer{status: http.StatusBadGateway},
		answer{status: http.StatusOK, body: `{"acknowledged": true, "evidence": {"ticket": "T-1"}}`})
	id := b.eraseTold("alice-4711", h.URL+"/forget")
	b.until("notify", Schedule{})

	deliveries := h.deliveries()
	require.GreaterOrEqual(t, len(deliveries), 3)
	for _, d := range deliveries {
		require.Equal(t, "application/json", d.header.Get("Content-Type"))
		require.Equal(t, Sign(b.deps.Config.Notify.Key, d.header.Get(TimestampHeader), d.body), d.header.Get(SignatureHeader))
		require.NotEqual(t, Sign(b.deps.Config.Notify.Key, "0", d.body), d.header.Get(SignatureHeader), "the time is signed too")
		require.Equal(t, deliveries[0].header.Get(NoticeHeader), d.header.Get(NoticeHeader), "a retry is the same notice")
		var notice Notice
		require.NoError(t, json.Unmarshal(d.body, &notice))
		require.Equal(t, "alice-4711", notice.UserID)
		require.Equal(t, id, notice.RequestID)
		require.Equal(t, []any{1, "erasure", tenant, "cache"}, []any{notice.Version, notice.Type, notice.Tenant, notice.Holder})
	}
	require.EqualValues(t, 1, b.number(tenant, `select count(*) from custody_data.erasure_notices
		where user_id is null and acknowledged_at is not null and sent_at is not null and attempts = $1 and evidence = '{"ticket": "T-1"}'`, len(deliveries)))
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from (select custody.get_certificate($1) c) x where c ->> 'status' = 'complete'", id))
	run := b.lastRun(tenant, "notify")
	require.EqualValues(t, 1, b.count(run, "sent"))
	require.EqualValues(t, 1, b.count(run, "acknowledged"))
	require.EqualValues(t, len(deliveries)-1, b.number(tenant, "select count(*) from custody_data.job_runs where job = 'notify' and status = 'failed' and error ~ '^send notice: status 50[23]$'"))
	b.silent("alice-4711")
}

func TestNoticeThatWasTakenWaitsForItsAcknowledgement(t *testing.T) {
	b := newBench(t)
	h := newHolder(t, answer{status: http.StatusAccepted, body: "thanks"})
	id := b.eraseTold("alice", h.URL)
	b.until("notify", Schedule{})
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from custody_data.erasure_notices where sent_at is not null and last_status = 'sent' and user_id is not null"))

	// It is not sent again while it is young, and once a day when it is old.
	b.work(RequestsArgs{})
	require.EqualValues(t, 1, b.number(tenant, "select count(*) from river.river_job where kind = 'notify'"))
	b.deps.Config.Notify.RemindAfter = time.Nanosecond
	b.until("notify", Schedule{Requests: time.Second})
	b.work(RequestsArgs{})
	require.Len(t, h.deliveries(), 2)

	b.asRunner("select custody.acknowledge_erasure($1, 'cache', '{}')", id)
	due, err := DueNotices(t.Context(), b.deps, "")
	require.NoError(t, err)
	require.Empty(t, due)
}

func TestNoticeGoesWhereItWasAddressedAlone(t *testing.T) {
	b := newBench(t)
	elsewhere := newHolder(t, answer{status: http.StatusOK})
	h := newHolder(t, answer{status: http.StatusTemporaryRedirect, header: http.Header{"Location": {elsewhere.URL}}})
	b.eraseTold("alice", h.URL)
	event := b.until("notify", Schedule{}, river.EventKindJobFailed)
	require.Equal(t, river.EventKindJobFailed, event.Kind)
	require.Equal(t, "send notice: status 307", event.Job.Errors[0].Error)
	require.Empty(t, elsewhere.deliveries())
}

func TestNoticeWaitsForTheOperator(t *testing.T) {
	t.Parallel()
	t.Run("without a key none is sent", func(t *testing.T) {
		b := newBench(t)
		b.deps.Config.Notify.Key = nil
		b.eraseTold("alice", "https://cache.invalid/")
		require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'notify'"))
		require.Equal(t, river.EventKindJobCompleted, b.work(RequestsArgs{}).Kind)
		require.Zero(t, b.number(tenant, "select count(*) from river.river_job where kind = 'notify'"))
	})
	t.Run("an endpoint in the clear", func(t *testing.T) {
		b := newBench(t)
		b.eraseTold("alice", "http://cache.invalid/")
		event := b.until("notify", Schedule{}, river.EventKindJobSnoozed)
		require.Equal(t, river.EventKindJobSnoozed, event.Kind)
		require.Equal(t, "send notice: endpoint is not https", *b.lastRun(tenant, "notify").Error)
	})
}

// A notice whose job was lost, or failed for the last time, is found again.
func TestLostNoticeIsFound(t *testing.T) {
	b := newBench(t)
	h := newHolder(t, answer{status: http.StatusOK, body: `{"acknowledged": true}`})
	b.eraseTold("alice", h.URL)
	b.context(b.database.Pool(t, "custody_runner"), tenant, dbExec(t, "update river.river_job set state = 'discarded', finalized_at = now() where kind = 'notify'"))
	b.until("notify", Schedule{Requests: time.Hour})
	require.Len(t, h.deliveries(), 1)
}

func TestSignature(t *testing.T) {
	key, err := hex.DecodeString(strings.Repeat("0b", 20))
	require.NoError(t, err)
	// printf '%s' '1767225600.{"a":1}' | openssl dgst -sha256 -mac hmac -macopt hexkey:0b0b…
	require.Equal(t, "sha256=6ee5cb6fa4fbb31fb07b65b614212b11d75e69bc8bee7decf889a302e1ed26fa", Sign(key, "1767225600", []byte(`{"a":1}`)))
}

func TestNoticeBackoff(t *testing.T) {
	w := NewNotifyWorker(Deps{})
	job := &river.Job[NotifyArgs]{JobRow: &rivertype.JobRow{}}
	for errors, want := range map[int]time.Duration{0: 30 * time.Second, 1: time.Minute, 5: 16 * time.Minute, 12: 6 * time.Hour, 100: 6 * time.Hour} {
		job.Errors = make([]rivertype.AttemptError, errors)
		wait := time.Until(w.NextRetry(job))
		require.InDelta(t, want.Seconds(), wait.Seconds(), want.Seconds()/10+1, fmt.Sprint(errors))
	}
}

func TestCheckEndpoint(t *testing.T) {
	for endpoint, problem := range map[string]string{
		"https://cache.example/forget": "",
		"http://127.0.0.1:8080/":       "",
		"http://[::1]:8080/":           "",
		"http://localhost/":            "",
		"http://cache.example/":        "endpoint is not https",
		"http://127.0.0.1.example/":    "endpoint is not https",
		"ftp://127.0.0.1/":             "endpoint is not https",
		"cache":                        "endpoint is no URL",
		"https://":                     "endpoint is no URL",
	} {
		require.Equal(t, problem, checkEndpoint(endpoint), endpoint)
	}
}
