-- What every database starts with: tenant system, the shared vocabulary, the shipped retention policies.
-- control: GDPR Art. 5(1)(e), 7(1), 30(1)(f); HIPAA 164.316(b)(2)(i)
-- reviewed by: privacy officer, DBA
--
-- Row-level security is forced on the owner too, so this runs in the context of tenant system, after the
-- policies and through their checks; the helper of 00001 is still the stub, hence the local policy switch.
-- locks: ACCESS EXCLUSIVE on three small tables, for an instant. rewrite cost: none.

-- +goose Up
alter table custody_data.tenants no force row level security;
alter table custody_data.audit_actions no force row level security;
alter table custody_data.audit_resource_types no force row level security;
alter table custody_data.retention_policies no force row level security;
-- Its guard is a stub still, and there is nothing that these could be shorter than.
alter table custody_data.retention_policies disable trigger a_require_approval;

insert into custody_data.tenants (tenant_id, name) values ('system', 'What belongs to no tenant')
on conflict do nothing;

insert into custody_data.audit_actions (tenant_id, action, metadata_keys, description) values
  ('system', 'account.create', '{source}', 'An account was opened.'),
  ('system', 'account.login', '{method,source,error_code}', 'Somebody signed in or tried to.'),
  ('system', 'account.logout', '{source}', 'Somebody signed out.'),
  ('system', 'account.erase', '{request_id,reason,deleted,kept,keys_destroyed,holders,holds,residue_basis,replayed}', 'A person was erased, or a hold kept the erasure back.'),
  ('system', 'account.export', '{request_id,counts,bytes}', 'Everything about a person was handed out.'),
  ('system', 'phi.access', '{count,fields,source}', 'Health or other sensitive data was read.'),
  ('system', 'phi.update', '{count,fields,source}', 'Health or other sensitive data was changed.'),
  ('system', 'phi.disclose', '{count,fields,recipient_class}', 'Health or other sensitive data was disclosed.'),
  ('system', 'consent.grant', '{purpose,policy_version}', 'Consent was given.'),
  ('system', 'consent.withdraw', '{purpose,policy_version}', 'Consent was withdrawn.'),
  ('system', 'record.insert', '{rows,row_ids}', 'Rows of a table of record were inserted.'),
  ('system', 'record.update', '{rows,row_ids,columns}', 'Rows of a table of record were changed; names of columns, no values.'),
  ('system', 'record.delete', '{rows,row_ids}', 'Rows of a table of record were deleted.'),
  ('system', 'record.import', '{table,rows,rows_added,rows_changed,rows_rejected,file_sha256,import_id,error_code}', 'A file was imported or refused.'),
  ('system', 'request.receive', '{request_id,kind,reason}', 'A data subject''s request was received.'),
  ('system', 'request.extend', '{request_id,kind}', 'The time for a request was extended.'),
  ('system', 'request.cancel', '{request_id,kind}', 'A request was cancelled.'),
  ('system', 'request.read', '{rows,status}', 'Requests were listed.'),
  ('system', 'request.search', '{request_id,findings,rows,searched_for}', 'Identifiers of a person were searched for where they must not stand.'),
  ('system', 'request.match', '{requests}', 'A user_id was compared with those of erased people.'),
  ('system', 'request.complete', '{request_id,kind,bytes}', 'A request was fulfilled.'),
  ('system', 'hold.place', '{hold_id,scope,table,until,reason}', 'A legal hold was placed.'),
  ('system', 'hold.release', '{hold_id,scope,requests_resumed,reason}', 'A legal hold was released.'),
  ('system', 'holder.register', '{holder}', 'A holder outside Postgres was registered.'),
  ('system', 'holder.acknowledge', '{request_id,holder}', 'A holder outside Postgres acknowledged an erasure.'),
  ('system', 'retention.policy', '{class,keep,keep_before,basis,change_id,replaces}', 'A retention policy was set.'),
  ('system', 'retention.propose', '{class,keep,keep_before,basis,change_id,replaces,expires_at}', 'A shorter retention policy was proposed; it waits for a second person.'),
  ('system', 'retention.approve', '{class,keep,keep_before,change_id}', 'A second person approved a shorter retention policy.'),
  ('system', 'retention.reject', '{class,change_id,reason}', 'A shorter retention policy was rejected.'),
  ('system', 'retention.withdraw', '{class,change_id,reason}', 'A shorter retention policy was withdrawn by who proposed it.'),
  ('system', 'retention.run', '{class,rows,as_of,keep,basis,errors}', 'Retention deleted what was due.'),
  ('system', 'archive.segment', '{day,part,rows,bytes,stored_bytes,manifest_sha256,retain_until}', 'A day of the trail was archived, read back and checked.'),
  ('system', 'archive.hold', '{day,part,on}', 'The objects of a segment were put under legal hold in the store, or freed from it.'),
  ('system', 'archive.expire', '{day,part,rows,manifest_sha256,leaves_sha256,retain_until}', 'The retention of a segment ended, and its objects were given free to be deleted.'),
  ('system', 'partition.create', '{partitions}', 'Partitions of the trail were made.'),
  ('system', 'partition.drop', '{partition,rows,rows_kept,range_from,range_to}', 'A month of the trail left Postgres after its archive was proved, but for what must stay.'),
  ('system', 'audit.read', '{from,to,rows,by_person,action}', 'The audit trail was read.'),
  ('system', 'record.read', '{columns,rows,line}', 'Sealed columns of a person''s record were opened.'),
  ('system', 'access.read', '{question,from,to,rows,by_person,by_actor}', 'It was asked who read what.'),
  ('system', 'alert.open', '{alert_id,rule,severity,tenant}', 'Detection opened an alert.'),
  ('system', 'alert.acknowledge', '{alert_id,rule}', 'Somebody looks after an alert.'),
  ('system', 'alert.close', '{alert_id,rule,reason}', 'An alert was closed.'),
  ('system', 'canary.plant', '{profile}', 'A canary, a person who does not exist, was made.'),
  ('system', 'canary.remove', '{}', 'The watch over a canary was ended.'),
  ('system', 'detection.configure', '{rule,threshold,look_back,severity,enabled,role,networks,time_zone,hours,days,everybody}', 'A rule of detection, or what it expects of roles and actors, was changed.'),
  ('system', 'archive.restore', '{restore_id,from,to,tenant,by_person,log_entry_id,action,reason,expires_at,rows,segments}', 'Events were fetched from the archive: once at the beginning, and with counts at the end.'),
  ('system', 'tenant.register', '{tenant}', 'A tenant was registered.'),
  ('system', 'tenant.configure', '{unique_fields,remember_erased}', 'A setting of the tenant was changed.'),
  ('system', 'login.register', '{login,purposes}', 'A person''s login was bound to its actor and purposes.'),
  ('system', 'login.retire', '{login}', 'A login was retired: it gets no context any more.'),
  ('system', 'login.tokens', '{login,required}', 'A login was put into token mode, or taken out of it.'),
  ('system', 'token_key.register', '{kid,tenant}', 'A key of tokens was made known.'),
  ('system', 'token_key.retire', '{kid}', 'A key of tokens was forgotten.'),
  ('system', 'context_key.rotate', '{kid,retired,line_kid}', 'The keys of contexts and of log lines were replaced.'),
  ('system', 'vocabulary.register', '{action,resource_type,metadata_keys}', 'The vocabulary of the trail was extended.'),
  ('system', 'incarnation.open', '{incarnation_id,system_identifier,timeline,observed}', 'The database was found in another cluster, on another timeline, or set back.'),
  ('system', 'ledger.adopt', '{rows,reason}', 'Events that came in behind the sealer were given leaves.'),
  ('system', 'ledger.take_over', '{kept,taken,found,lost,segments}', 'Leaves that the bucket has and the database had not were taken over.'),
  ('system', 'key.register', '{kek_version}', 'A key-encryption key was made known.'),
  ('system', 'key.rewrap', '{kek_version,keys}', 'Data keys were wrapped under a new key-encryption key.'),
  ('system', 'key.rotate', '{identities,values,index_key_version,keys_destroyed}', 'Data keys or the index key were replaced, and values sealed or indexed anew.'),
  ('system', 'key.expire', '{keys}', 'Data keys were destroyed because everything that they sealed has expired.'),
  ('system', 'key.destroy', '{kek_version}', 'A key-encryption key was forgotten by its provider.'),
  ('system', 'key.retire', '{kek_version,keys}', 'A key-encryption key was retired: nothing is wrapped by it any more.'),
  ('system', 'log.ship', '{batch,source,object_key,sha256,manifest_sha256,previous_sha256,lines,bytes,findings}', 'A batch of the server''s log was put into the store.'),
  ('system', 'log.expire', '{batch,object_key,sha256}', 'The objects of a batch of the server''s log were deleted after their time.'),
  ('system', 'log.reconcile', '{from,to,findings,rolled_back}', 'Log, trail and store were held against each other.'),
  ('system', 'job.fail', '{job,error_code}', 'A job failed.')
on conflict do nothing;

insert into custody_data.audit_resource_types (tenant_id, resource_type, description) values
  ('system', 'access_events', 'Who read what.'),
  ('system', 'account', 'An account of a person.'),
  ('system', 'alert', 'An alert of detection.'),
  ('system', 'detection', 'A rule of detection, and what it expects.'),
  ('system', 'key', 'A key-encryption key or data key.'),
  ('system', 'login', 'A login of the database.'),
  ('system', 'identity', 'An identity: a person, service or system.'),
  ('system', 'user_profiles', 'A row of user_profiles.'),
  ('system', 'user_preferences', 'A row of user_preferences.'),
  ('system', 'consent_records', 'A row of consent_records.'),
  ('system', 'conversations', 'A row of conversations.'),
  ('system', 'audit_logs', 'The audit trail, or an event of it.'),
  ('system', 'request', 'A data subject''s request.'),
  ('system', 'hold', 'A legal hold.'),
  ('system', 'holder', 'A holder outside Postgres.'),
  ('system', 'retention_policy', 'A retention policy.'),
  ('system', 'archive_segment', 'A day of the trail in the archive.'),
  ('system', 'partition', 'A partition of the trail or of access events.'),
  ('system', 'log_batch', 'A batch of the server''s log.'),
  ('system', 'document', 'A document of the application.'),
  ('system', 'health_record', 'A health record.')
on conflict do nothing;

insert into custody_data.retention_policies (tenant_id, class, keep, basis) values
  ('system', 'audit', interval '7 years', 'GDPR Art. 5(2) and 17(3)(b), HIPAA 45 CFR 164.316(b)(2)(i) (6 years) and the limitation periods that exceed it'),
  ('system', 'audit_hot', interval '90 days', 'Operational: time in Postgres before only the archive holds it'),
  ('system', 'consent', interval '7 years', 'GDPR Art. 7(1) and 17(3)(e): proof of consent for as long as claims may be raised after it ended'),
  ('system', 'conversations', interval '90 days', 'GDPR Art. 5(1)(e): not longer than the service needs after the last message'),
  ('system', 'entry_ids', interval '90 days', 'Operational: how long a retried log_entry_id is recognised'),
  ('system', 'erased_ids', interval '1 year', 'GDPR Art. 17(3)(e): to recognise a later claim of somebody who was erased, where the tenant keeps keyed hashes of their ids'),
  ('system', 'restored', interval '30 days', 'GDPR Art. 5(1)(e): copies out of the archive, for as long as an enquiry needs them'),
  ('system', 'key_age', interval '1 year', 'NIST SP 800-57 part 1, 5.3.6: how long a key seals before it is overdue for rotation'),
  ('system', 'kek_generation', interval '7 days', 'GDPR Art. 17: how long a key-encryption key wraps; a physical backup that is older than this and the backups of keys opens nothing'),
  ('system', 'key_backup', interval '7 days', 'GDPR Art. 17, 32(1)(c): how long a backup of wrapped keys is kept'),
  ('system', 'access', interval '12 months', 'HIPAA 45 CFR 164.308(a)(1)(ii)(D), PCI DSS 10.5.1: access events in Postgres, to be reviewed and asked about'),
  ('system', 'shipped_logs', interval '3 years', 'GDPR Art. 5(2), 32(1): the server''s log in the store, for the limitation period; deployments under HIPAA 6 years (45 CFR 164.316(b)(2)(i))'),
  ('system', 'alerts', interval '6 years', 'HIPAA 45 CFR 164.308(a)(6)(ii), 164.316(b)(2)(i), GDPR Art. 33(5): what was found and what became of it, after it was closed')
on conflict do nothing;

alter table custody_data.tenants force row level security;
alter table custody_data.audit_actions force row level security;
alter table custody_data.audit_resource_types force row level security;
alter table custody_data.retention_policies force row level security;
alter table custody_data.retention_policies enable always trigger a_require_approval;

-- +goose Down
-- The rows go with their tables; until then Up leaves them as they are.
select 1;
