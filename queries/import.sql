-- name: ClaimDataKeys :many
select k.identity_id, k.key_version, k.wrapped from custody.claim_data_keys(cast(@identity_ids::text[] as uuid[])) k;

-- name: ClaimIdentities :many
select i.user_id::text as user_id, i.identity_id from custody_data.claim_identities(@user_ids::text[]) i;

-- name: FinishImport :exec
select custody.finish_import(@import_id, @table_name, @file_sha256, @rows_read, @rows_added, @rows_changed, @rows_rejected, @run_id);

-- name: ImportAuditEvents :one
select custody.import_audit_events(@import_id, @file_sha256, @skip_refused)::jsonb as counts;

-- name: ImportConsents :one
select custody.import_consents(@skip_refused)::jsonb as counts;

-- name: ImportConversations :one
select custody.import_conversations(@skip_refused)::jsonb as counts;

-- name: ImportKnown :one
select custody.import_known(@table_name, @file_sha256)::boolean as known;

-- name: ImportPreferences :one
select custody.import_preferences(@skip_refused)::jsonb as counts;

-- name: ImportProfiles :one
select custody.import_profiles(@skip_refused)::jsonb as counts;

-- name: KnownActions :many
-- The tenant's own words come after the shared ones, which they replace.
select a.action, a.metadata_keys, a.description
from custody_data.audit_actions a
where a.tenant_id in (custody.current_tenant(), 'system')
order by a.tenant_id <> 'system', a.action;

-- name: KnownResourceTypes :many
select t.resource_type
from custody_data.audit_resource_types t
where t.tenant_id in (custody.current_tenant(), 'system');

-- name: PrepareImport :exec
select custody.prepare_import(@table_name);

-- name: RefuseImport :exec
select custody.refuse_import(@table_name, @error_code);

-- name: RegisterAction :exec
select custody.register_action(@action, @metadata_keys::text[], @description);

-- name: RegisterResourceType :exec
select custody.register_resource_type(@resource_type, @description);
