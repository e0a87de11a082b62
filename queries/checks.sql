-- name: Findings :many
select f.id::text as id, f.title::text as title, f.level::text as level, f.control::text as control, f.object::text as object,
  f.detail::text as detail, f.remediation::text as remediation
from (select * from custody_check.findings union all select * from custody_check.log_findings) f
order by f.level, f.id, f.object, f.detail;
