-- name: Findings :many
select f.id::text as id, f.title::text as title, f.level::text as level, f.control::text as control, f.object::text as object,
  f.detail::text as detail, f.remediation::text as remediation
from custody_check.findings f;
