// Package logship makes batches of a Postgres server's log: it finds the files,
// follows rotation, joins pgaudit's lines with the context of their transaction, and
// writes OCSF events, rows for access_events and findings. It knows no database and
// decides nothing about the store; jobs/ship.go calls it.
//
// control: HIPAA § 164.312(b), ISO 27001 A.8.15, SOC 2 CC7.2 (logging).
//
// # A batch
//
// The lines of one stretch of one file, at most RegionBytes of it, in one object: JSON
// Lines (OCSF, see package serverlog) in one zstd frame in one age file, encrypted to
// the archive's recipients as segments are. What its lines are depends on the file, the
// place and the State before it alone, so a run that was killed ends with the same lines;
// the encryption is new each time, so the objects that such a run left are passed over,
// stay until their lock ends and are listed by `pgcustody logs verify`.
//
//	server-logs/000000000001.jsonl.zst.age        the lines
//	server-logs/000000000001.manifest.json        what it holds, and the digest of the manifest before
//
// Another object of the same number has -2, -3 … behind the number; which counts, the
// database and the trail say (event log.ship).
package logship
