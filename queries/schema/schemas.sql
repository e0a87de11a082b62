-- What sqlc cannot read out of the DO blocks of bootstrap.sql.
create schema custody;
create schema custody_data;
create schema custody_keys;
create schema custody_check;
create schema river;
