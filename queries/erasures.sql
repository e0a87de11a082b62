-- name: AcknowledgeErasure :exec
select custody.acknowledge_erasure(@request_id, @holder, sqlc.narg(evidence));

-- name: EraseSubject :one
-- The certificate, or {"status": "held", …}.
select custody.erase_subject(@request_id, sqlc.narg(residue_basis))::jsonb as certificate;

-- name: ExportsOfErased :many
select e::uuid as request_id from custody.exports_of_erased(@request_id) e;

-- name: GetCertificate :one
select custody.get_certificate(@request_id) as certificate;

-- name: PlanErasure :one
select custody.plan_erasure(@user_id)::jsonb as plan;

-- name: SearchResidue :one
select custody.search_residue(@request_id)::jsonb as residue;

-- name: VerifyErasure :one
select custody.verify_erasure(@request_id)::jsonb as verification;

-- name: MarkCertificateStored :exec
select custody.mark_certificate_stored(@request_id, @object_key);

-- name: UnstoredCertificates :many
select c::uuid as request_id from custody.unstored_certificates(@max_rows, pg_catalog.now() - pg_catalog.make_interval(secs => @grace_seconds)) c;
