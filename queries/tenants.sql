-- name: ListTenants :many
select t.tenant_id, t.name, t.created_at from custody.list_tenants() t order by t.tenant_id;

-- name: RegisterTenant :one
select custody.register_tenant(@tenant, sqlc.narg(name))::text as tenant;
