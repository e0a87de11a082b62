-- Reconciliation: log, trail and store held against each other.
-- control: HIPAA 164.312(b), 164.308(a)(1)(ii)(D); ISO 27001 A.8.15, A.8.16; SOC 2 CC7.2; GDPR Art. 5(2), 32
-- reviewed by: DBA, auditor
--
-- A read through our functions has a line in the log and, where its transaction could write, an event in the trail, which
-- names the line. A statement that pgaudit logged on a table of record has the line of its context in the same transaction.
-- What has one and not the other is a finding; so is a batch that the store does not have (pgcustody logs verify looks).
--
-- A line without its event was rolled back: that is no fault, and is noted on the row, once its transaction has ended: it may
-- be open for long, or prepared and committed a week later. The line has the transaction's id, and whether that ended before
-- the look at the trail the look's own snapshot says, of every session and of prepared ones, so what was noted stays true.
-- Lines from READ ONLY transactions and from standbys say so: there the line is all there is. An event without its line means
-- that lines were lost, or kept from the log. Lines come later than events: what is newer than the last line that was shipped is
-- not asked about.

create or replace view custody.log_reconciliation with (security_invoker = true) as
select e.tenant_id, 'statement_without_row'::text as kind, e.occurred_at, e.batch, e.line, e.session_id, e.login, e.object_name, null::uuid as log_entry_id
from custody_data.access_events e
where e.kind = 'statement' and e.actor_id is null and e.actor_pseudonym is null and e.class in ('READ', 'WRITE')
  and e.object_name in ('custody_data.user_profiles', 'custody_data.user_preferences', 'custody_data.consent_records', 'custody_data.conversations')
union all
select e.tenant_id, case when e.rolled_back then 'rolled_back' when e.event_xid is not null then 'open' when e.event_line = 'standby' then 'standby' else 'read_only' end,
  e.occurred_at, e.batch, e.line, e.session_id, e.login, e.object_name, null
from custody_data.access_events e
where e.rolled_back or e.rolled_back is null and e.event_line is not null;
grant select on custody.log_reconciliation to custody_worker, custody_privacy, custody_auditor;
comment on view custody.log_reconciliation is
'Of the tenant in context: statements on tables of record in whose transaction no context of ours was entered (statement_without_row: a superuser, or a login that goes past the functions), and reads of which the trail has no event: the transaction was rolled back (rolled_back), had not ended when it was last looked, or was not looked at yet (open), or could write none (read_only, standby: not to be verified, the line is the record). Events without their line, which only the worker may look for, are in log_findings (row_without_line). Readers: custody_worker, custody_privacy, custody_auditor.';

-- definer: reads the trail of all tenants, and says of its own rows what was rolled back
create or replace function custody.reconcile_logs(p_since timestamptz, p_until timestamptz)
returns table (kind text, findings bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_shipped timestamptz;
  v_begun timestamptz;
  v_rolled_back bigint;
  v_statements bigint;
  v_lines bigint;
begin
  perform custody_data.require_all_tenants('reconciliation of logs');
  if p_since is null or p_until is null or not isfinite(p_since) or not isfinite(p_until) or p_until < p_since then
    raise exception using errcode = 'PC009', message = 'time out of range: p_since to p_until', hint = 'Give two finite times, the earlier one first.';
  end if;
  -- Of several logs the one that is furthest behind; one that has had no line for a day is none that somebody waits for.
  select coalesce(min(s.last_line_at) filter (where s.last_line_at > now() - interval '1 day'), max(s.last_line_at)) into v_shipped
  from custody_data.log_sources s where s.tenant_id = 'system';
  select min(b.first_occurred_at) into v_begun from custody_data.log_batches b where b.tenant_id = 'system';
  if v_shipped is null then
    return;
  end if;

  with reads as materialized (
    select e.tenant_id, e.recorded_at, e.batch, e.line, e.part, e.event_line, e.identity_id, e.occurred_at,
      -- The snapshot is the statement's own, so an event that came after it belongs to a transaction that had not ended. Months
      -- that may have left the trail say nothing.
      pg_visible_in_snapshot(e.event_xid, pg_current_snapshot()) and e.occurred_at > now() - custody_data.hot_period() as ended
    from custody_data.access_events e
    -- Also from before p_since: whose transaction had not ended then.
    where e.event_xid is not null and e.rolled_back is null and e.occurred_at < p_until
  ), known as (
    select r.*, exists (
        select from custody_data.audit_logs a
        where a.tenant_id = r.tenant_id and a.action = 'record.read' and a.subject_id = r.identity_id and a.metadata ->> 'line' = r.event_line
          and a.occurred_at >= r.occurred_at - interval '1 hour' and a.occurred_at <= r.occurred_at + interval '1 hour') as found
    from reads r
  )
  update custody_data.access_events e
  set rolled_back = not k.found
  from known k
  where (k.found or k.ended) and e.tenant_id = k.tenant_id and e.recorded_at = k.recorded_at and e.batch = k.batch and e.line = k.line and e.part = k.part;
  select count(*) into v_rolled_back from custody_data.access_events e where e.rolled_back and e.occurred_at >= p_since and e.occurred_at < p_until;

  v_statements := custody.add_log_findings('reconciliation', (
    select jsonb_agg(jsonb_build_object('kind', 'statement_without_row', 'session_id', f.session_id, 'occurrences', f.n, 'occurred_at', f.at, 'batch', f.batch,
      'detail', jsonb_build_object('login', f.login, 'table', f.object_name)))
    from (
      select e.session_id, e.login, e.object_name, min(e.batch) as batch, count(*) as n, min(e.occurred_at) as at
      from custody_data.access_events e
      where e.kind = 'statement' and e.actor_id is null and e.actor_pseudonym is null and e.class in ('READ', 'WRITE') and e.occurred_at >= p_since and e.occurred_at < p_until
        and e.object_name in ('custody_data.user_profiles', 'custody_data.user_preferences', 'custody_data.consent_records', 'custody_data.conversations')
      group by e.session_id, e.login, e.object_name
    ) f));

  -- By a minute: what a server logs and what it writes are not of one instant.
  v_lines := custody.add_log_findings('reconciliation', (
    select jsonb_agg(jsonb_build_object('kind', 'row_without_line', 'occurrences', f.n, 'occurred_at', f.at, 'detail', jsonb_build_object('tenant', f.tenant_id, 'table', f.resource_type, 'first_event', f.first_id)))
    from (
      select a.tenant_id, a.resource_type, count(*) as n, min(a.occurred_at) as at, min(a.log_entry_id::text) as first_id
      from custody_data.audit_logs a
      where a.action = 'record.read' and a.occurred_at >= greatest(p_since, v_begun + interval '1 minute') and a.occurred_at < least(p_until, v_shipped - interval '1 minute')
        and not exists (
          select from custody_data.access_events e
          where e.tenant_id = a.tenant_id and e.identity_id = a.subject_id and e.event_line = a.metadata ->> 'line'
            and e.occurred_at >= a.occurred_at - interval '1 hour' and e.occurred_at <= a.occurred_at + interval '1 hour')
      group by a.tenant_id, a.resource_type
    ) f));
  perform custody_data.append_event('log.reconcile', 'log_batch', null, 'success', jsonb_build_object(
    'from', custody_data.entry_time(p_since), 'to', custody_data.entry_time(p_until), 'findings', v_statements + v_lines, 'rolled_back', v_rolled_back), null);
  return query values ('statement_without_row'::text, v_statements), ('row_without_line', v_lines), ('rolled_back', v_rolled_back);
end
$$;
revoke all on function custody.reconcile_logs(timestamptz, timestamptz) from public;
grant execute on function custody.reconcile_logs(timestamptz, timestamptz) to custody_worker;
comment on function custody.reconcile_logs(timestamptz, timestamptz) is
'Holds reads and statements of p_since to p_until, and reads from before that nobody could decide, against the trail, as far as the log has been shipped: says on each read whose transaction has ended, prepared ones included, whether it was rolled back, and records findings: statement_without_row, row_without_line (once a day each). Returns how many findings are new, and how many reads were rolled back. It is an event (log.reconcile).
Errors: PC001, PC009, PC015 outside tenant system, PC026. Callers: custody_worker.';
