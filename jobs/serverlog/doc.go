// Package serverlog reads the logs of a Postgres server (jsonlog, csvlog) in
// constant memory, tells which records pgaudit wrote, takes literals out of
// statements, writes OCSF events, and finds what is missing or out of order.
// It knows no database and keeps nothing: what to go on from is handed out.
//
// control: HIPAA § 164.312(b), ISO 27001 A.8.15, SOC 2 CC7.2 (logging).
//
// # Reading
//
// A Reader returns records with their place in the file, so that the next one goes
// on at Record.End or Reader.Offset, and passes over what is no record: broken, cut
// or longer than Options.MaxRecord. That is counted and reported with its place, and
// costs no other record. A record may come in any pieces. Two files that follow each
// other can be read as one (io.MultiReader): then a record that rotation split
// between them is whole. Records in another encoding than UTF-8 are returned as they
// are, with BadEncoding; in events their strange bytes become U+FFFD.
//
// A csvlog record may hold line breaks that a user wrote, and after damage the
// reader begins anew at the next line, which may be such a one. It cannot take that
// for a record: the server quotes every text, and within quotes each quote is
// doubled, so nobody can write there a field in quotes with anything but quotes in
// it, and every record needs one (backend_type). In the same way `{"timestamp":"`
// stands nowhere within a JSON text, whose quotes have a backslash. The server's
// third format, stderr, has no such rule; it is not read.
//
// jsonlog and csvlog number the lines of a process each for itself: a line number
// belongs to a format. Both give equal records but for that, if both were on when
// the process began.
//
// # Which records are pgaudit's
//
// Anybody who may call a function with RAISE LOG in it can log a message that
// begins with "AUDIT: ". What the real server (15, pgaudit 1.7) writes:
//
//	                             severity  context  statement     state_code  func_name, file_name (verbose)
//	pgaudit                      LOG       never    never         00000       log_audit_event, pgaudit.c
//	PL/pgSQL, raise log          LOG       always   yes (1)       any         exec_stmt_raise, pl_exec.c
//	PL/pgSQL, raise info … (2)   INFO …    always   yes           any         the same
//	PL/pgSQL, raise exception    ERROR     always   yes           any         the same
//	PL/Perl, elog                LOG       always   yes (1)       00000       plperl_util_elog, plperl.c
//	PL/Tcl, elog                 LOG       never    yes (1)       38000       pltcl_elog, pltcl.c
//
// (1) not with log_min_error_statement above error, (2) if log_min_messages lets it
// through. A client chooses application_name and the statement's text, never where
// they stand. All of these settings are a superuser's to change.
//
// So a record is believed (Genuine) if its severity is LOG, its SQLSTATE 00000, it
// has no context, statement, detail, hint or internal query, the server's source
// location is pgaudit's own, and the message has pgaudit's form to the letter,
// quoting included. Anything else with that prefix is Forged, or Malformed if only
// the form is wrong. The location needs
//
//	log_error_verbosity = verbose
//
// Without it a record that has the rest is Plausible: none of the languages above
// can write one, but another trusted language might. EncoderOptions.AcceptPlausible
// is for hosts where that setting cannot be had. Records about connections are
// believed by the same rules, without a location too. Needed besides:
// pgaudit.log_level = log (the default), log_connections, log_disconnections, and
// lc_messages in English for the messages about connections.
//
// What cannot be told from a genuine record:
//   - what code in C within the server writes, a superuser's own module for one, and
//     what is written into the file by whoever may write there (a superuser, through
//     COPY TO PROGRAM or lo_export);
//   - a statement, or a list of parameters, that is the very text <not logged>,
//     <previously logged> or <none>: it counts as not logged or as none;
//   - null and an empty text in parameters;
//   - with Plausible accepted: what a trusted language logs that gives neither a
//     context nor a statement nor an SQLSTATE. None is known.
//
// Nor does the log tell what was not logged: see pgaudit's own gaps (sql/pgaudit_test.go),
// among them SET pgaudit.log = none by a superuser, which is no record either.
//
// # Redaction
//
// AppendRedacted replaces every literal and comment. It lexes as the server does.
// Where that depends on a setting or on the server's version it gives up the rest of
// the statement rather than a part of a literal. Names stay, quoted ones too: who
// writes a value in double quotes has written a name. Messages, details, hints and
// contexts are no SQL and are dropped unless EncoderOptions.KeepMessages; those of
// the postmaster, the startup process and the checkpointer are passed on without the
// values that they quote. application_name, user and database names and the names of
// objects are passed on as they are.
//
// # OCSF
//
// Events are OCSF 1.6.0, one line of JSON each, with fields in one order: the same
// record, context and options give the same bytes.
//
//	class_uid      6005 Datastore Activity; 3002 Authentication for authenticated, logon, logon failed, logoff
//	category_uid   6; 3
//	activity_id    6005: READ 1 Read; WRITE: UPDATE 2, DELETE and TRUNCATE 7, others 5 Write;
//	               connection received 3 Connect; else 99 with activity_name DDL, Role, Function,
//	               Misc, Failed statement, Forged record, Unverified record, Message; Context; own reads 1 Read
//	               3002: logon and logon failed 1, logoff 2, authenticated 99
//	type_uid       class_uid × 100 + activity_id
//	severity_id    1; failed 2; logon failed 3; forged 4
//	status_id      1; failed and logon failed 2; forged and unverified 99 (status: Not believed)
//	status_code    SQLSTATE
//	time           of the record, ms since 1970; 0 if its zone is not known
//	message        the server's (see Redaction), not for statements
//	status_detail  detail, with KeepMessages
//	metadata       version, product; log_provider pgaudit for its statements;
//	               uid session_id/line_num; sequence line_num; original_time as logged;
//	               tenant_uid from the context
//	actor          6005: session.uid session_id; user.name the login, user.uid the actor of the
//	               context; app_name application_name. 3002: app_name only
//	user, session  3002: the same
//	service        3002: name PostgreSQL
//	is_remote      3002: not through a Unix socket
//	src_endpoint   ip or hostname, and port; name [local] for a Unix socket, or the backend's
//	               type where there is no client
//	database       6005: name, type PostgreSQL
//	table          6005: name of the object if it is a table or a view; type_id 3, else 1
//	query_info     6005: uid query_id, or that of metadata where there is none; query_string the
//	               statement, redacted
//	unmapped       kind, pid, backend_type, error_severity, session_start, vxid, txid, leader_pid;
//	               purpose from the context; line the message of an own line (Claim); audit: object, statement_id, substatement_id, class,
//	               command, object_type, object_name, parameters (KeepParameters), rows;
//	               internal_query redacted; hint and context (KeepMessages);
//	               func_name, file_name, file_line_num
//
// A field that has no value is left out.
//
// # Order
//
// A Sequence checks the line numbers of each session, and the clock. FilePlace tells
// by its content whether a file is still the one that was read, and whole.
package serverlog
