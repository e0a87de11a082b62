package jobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"pgcustody/db"
)

// NotifyArgs asks for one holder to be told of one erasure. Whom to forget is
// read when the notice is sent: a job row names nobody.
type NotifyArgs struct {
	Tenant   string    `json:"tenant"`
	NoticeID uuid.UUID `json:"notice_id"`
}

func (NotifyArgs) Kind() string { return "notify" }

func (NotifyArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: QueueNotices, MaxAttempts: notifyAttempts, UniqueOpts: once()}
}

// With MaxBackoff's default these last about four weeks; after that the job
// `requests` starts over.
const notifyAttempts = 120

// NotifyConfig says how notices are sent.
type NotifyConfig struct {
	// Key signs notices; without it none is sent. At least 32 bytes.
	Key []byte
	// Timeout bounds one delivery; default 30 s.
	Timeout time.Duration
	// Backoff is the wait after the first failure, doubled each time up to
	// MaxBackoff; defaults 30 s and 6 h.
	Backoff, MaxBackoff time.Duration
	// RemindAfter sends a notice again that was taken so long ago and not
	// acknowledged, once a day from then on; default 7 days.
	RemindAfter time.Duration
}

func (c NotifyConfig) withDefaults() NotifyConfig {
	c.Timeout = cmp.Or(c.Timeout, 30*time.Second)
	c.Backoff = cmp.Or(c.Backoff, 30*time.Second)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 6*time.Hour)
	c.RemindAfter = cmp.Or(c.RemindAfter, 7*24*time.Hour)
	return c
}

// eachDueNotice calls add with the notices of the context's tenant that have to
// be sent, and whether it is a reminder; without a key there are none.
func eachDueNotice(ctx context.Context, d Deps, tx pgx.Tx, batch int32, add func(id uuid.UUID, reminder bool)) error {
	if len(d.Config.Notify.Key) == 0 {
		return nil
	}
	due, err := db.New().DueNotices(ctx, tx, db.DueNoticesParams{
		RemindBefore: time.Now().Add(-d.Config.Notify.withDefaults().RemindAfter), MaxRows: batch,
	})
	for _, notice := range due {
		add(notice.NoticeID, notice.SentAt != nil)
	}
	return err
}

// reminder is how a notice is inserted that was taken before: not more often than
// once a day, finished jobs counted.
func reminder() *river.InsertOpts {
	opts := once()
	opts.ByPeriod = 24 * time.Hour
	opts.ByState = append(opts.ByState, rivertype.JobStateCompleted)
	return &river.InsertOpts{UniqueOpts: opts}
}

// Notice is the body of a webhook, version 1.
type Notice struct {
	Version   int       `json:"version"`
	Type      string    `json:"type"` // erasure
	NoticeID  uuid.UUID `json:"notice_id"`
	Tenant    string    `json:"tenant"`
	Holder    string    `json:"holder"`
	RequestID uuid.UUID `json:"request_id"`
	UserID    string    `json:"user_id"`
	CreatedAt time.Time `json:"created_at"`
}

// Headers of a webhook. The signature is the HMAC-SHA256, in hexadecimal, of the
// timestamp, a dot and the body.
const (
	TimestampHeader = "Pgcustody-Timestamp" // seconds since 1970
	SignatureHeader = "Pgcustody-Signature" // sha256=…
	NoticeHeader    = "Pgcustody-Notice"    // notice_id: the same for each retry
)

// Sign is the signature of a webhook's body.
func Sign(key []byte, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// statusError is an answer other than 2xx.
type statusError struct{ code int }

func (e *statusError) Error() string { return fmt.Sprintf("answered with status %d", e.code) }

// NotifyWorker posts erasure notices to the holders' webhooks.
type NotifyWorker struct {
	river.WorkerDefaults[NotifyArgs]
	Deps
	webhook
}

// webhook posts signed bodies.
type webhook struct{ client *http.Client }

// NewNotifyWorker makes the worker.
func NewNotifyWorker(d Deps) *NotifyWorker { return &NotifyWorker{Deps: d, webhook: newWebhook()} }

// newWebhook makes a client whose connections are not kept: messages are rare, and
// their receivers many.
func newWebhook() webhook {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	return webhook{&http.Client{
		Transport: transport,
		// The body may name a person: it goes where it was addressed to, nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// deliver posts a body once, signed, and returns what a receiver that took it
// answered. The header named idHeader says which message it is, in each retry.
func (w webhook) deliver(ctx context.Context, c NotifyConfig, endpoint, idHeader string, id uuid.UUID, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "pgcustody")
	request.Header.Set(idHeader, id.String())
	request.Header.Set(TimestampHeader, timestamp)
	request.Header.Set(SignatureHeader, Sign(c.Key, timestamp, body))
	response, err := w.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return nil, &statusError{response.StatusCode}
	}
	return io.ReadAll(io.LimitReader(response.Body, maxAnswer))
}

func (w *NotifyWorker) Timeout(*river.Job[NotifyArgs]) time.Duration {
	return w.Config.Notify.withDefaults().Timeout + time.Minute
}

// NextRetry doubles the wait from Backoff to MaxBackoff and spreads it a little.
func (w *NotifyWorker) NextRetry(job *river.Job[NotifyArgs]) time.Time {
	return w.Config.Notify.withDefaults().next(len(job.Errors))
}

func (c NotifyConfig) next(failures int) time.Time {
	wait := c.MaxBackoff
	if failures < 30 {
		wait = min(c.Backoff<<failures, c.MaxBackoff)
	}
	return time.Now().Add(wait + rand.N(wait/10+1))
}

// misconfigured is how long a notice waits for an operator.
const misconfigured = time.Hour

func (w *NotifyWorker) Work(ctx context.Context, job *river.Job[NotifyArgs]) error {
	config := w.Config.Notify.withDefaults()
	if len(config.Key) == 0 {
		return later(job, misconfigured, &Failure{Step: "send notice", Code: "no webhook key: set PGCUSTODY_WEBHOOK_KEY"})
	}
	return record(ctx, w.Deps, job, job.Args.Tenant, func(ctx context.Context, run *Run) error {
		scope := w.scope(job.Args.Tenant, "erasure notice")
		var notice db.NoticeRow
		err := InContext(ctx, w.Pool, scope, func(tx pgx.Tx) (err error) {
			notice, err = db.New().Notice(ctx, tx, job.Args.NoticeID)
			return err
		})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return &Failure{Step: "read notice", Code: "no such notice", Err: river.JobCancel(err)}
		case err != nil:
			return fail("read notice", err)
		case notice.AcknowledgedAt != nil || notice.UserID == nil:
			run.Count("acknowledged_before", 1)
			return nil
		case notice.Endpoint == nil || notice.RetiredAt != nil:
			run.Count("by_hand", 1) // people carry it, or nobody does any more
			return nil
		}
		if problem := checkEndpoint(*notice.Endpoint); problem != "" {
			return later(job, misconfigured, &Failure{Step: "send notice", Code: problem})
		}

		evidence, acknowledged, sendErr := w.post(ctx, config, job.Args, notice)
		status := "sent"
		if sendErr != nil && ctx.Err() == nil {
			// What the network said may name hosts, and is no failure of the database.
			sendErr = &Failure{Step: "send notice", Code: Code(sendErr)}
		}
		if sendErr != nil {
			status = Code(sendErr)
		}
		// What the holder was told is recorded although the job is being stopped.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := InContext(closing, w.Pool, scope, func(tx pgx.Tx) error {
			queries := db.New()
			if err := queries.MarkNoticeSent(closing, tx, db.MarkNoticeSentParams{NoticeID: job.Args.NoticeID, Status: status, Delivered: sendErr == nil}); err != nil {
				return err
			}
			if !acknowledged {
				return nil
			}
			return queries.AcknowledgeErasure(closing, tx, db.AcknowledgeErasureParams{
				RequestID: notice.RequestID, Holder: notice.Holder, Evidence: evidence,
			})
		}); err != nil {
			return fail("record notice", err)
		}
		if sendErr != nil {
			return fail("send notice", sendErr)
		}
		run.Count("sent", 1)
		if acknowledged {
			run.Count("acknowledged", 1)
		}
		return nil
	})
}

// maxAnswer is how much of a holder's answer is read.
const maxAnswer = 64 << 10

// post sends the notice once. An answer in 2xx took it; one with the body
// {"acknowledged": true, "evidence": {…}} has acted on it as well.
func (w *NotifyWorker) post(ctx context.Context, c NotifyConfig, args NotifyArgs, n db.NoticeRow) (evidence json.RawMessage, acknowledged bool, err error) {
	body, err := json.Marshal(Notice{
		Version: 1, Type: "erasure", NoticeID: args.NoticeID, Tenant: args.Tenant,
		Holder: n.Holder, RequestID: n.RequestID, UserID: *n.UserID, CreatedAt: n.CreatedAt.UTC(),
	})
	if err != nil {
		return nil, false, err
	}
	answer, err := w.deliver(ctx, c, *n.Endpoint, NoticeHeader, args.NoticeID, body)
	if err != nil {
		return nil, false, err
	}
	var said struct {
		Acknowledged bool            `json:"acknowledged"`
		Evidence     json.RawMessage `json:"evidence"`
	}
	// Another body than ours is an answer all the same.
	if json.Unmarshal(answer, &said) != nil || !said.Acknowledged {
		return nil, false, nil
	}
	if len(said.Evidence) == 0 || said.Evidence[0] != '{' {
		said.Evidence = json.RawMessage("{}")
	}
	return said.Evidence, true, nil
}

// checkEndpoint refuses to send a person's id in the clear, but to this machine.
func checkEndpoint(endpoint string) string {
	parsed, err := url.Parse(endpoint)
	if err != nil || parsed.Host == "" {
		return "endpoint is no URL"
	}
	if parsed.Scheme == "https" {
		return ""
	}
	if ip := net.ParseIP(parsed.Hostname()); parsed.Scheme == "http" && (ip != nil && ip.IsLoopback() || parsed.Hostname() == "localhost") {
		return ""
	}
	return "endpoint is not https"
}

// DueNotices lists the notices that wait, of one tenant or of all, as jobs.
func DueNotices(ctx context.Context, d Deps, tenant string) ([]river.JobArgs, error) {
	tenants, err := d.tenants(ctx, tenant)
	if err != nil {
		return nil, fail("list tenants", err)
	}
	var due []river.JobArgs
	for _, tenant := range tenants {
		if err := InContext(ctx, d.Pool, d.scope(tenant, "erasure notice"), func(tx pgx.Tx) error {
			return eachDueNotice(ctx, d, tx, 10000, func(id uuid.UUID, _ bool) { due = append(due, NotifyArgs{Tenant: tenant, NoticeID: id}) })
		}); err != nil {
			return nil, fail("look for notices", err)
		}
	}
	return due, nil
}
