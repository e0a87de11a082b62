-- Sealed values: authenticated encryption of one value, bound to the place where it stands.
-- control: GDPR Art. 32(1)(a); HIPAA 164.312(a)(2)(iv), (c)(2); ISO 27001 A.8.24
-- reviewed by: security, DBA
--
-- A256CBC-HS512 of RFC 7518 section 5.2.5, made of pgcrypto's AES-CBC and HMAC. A sealed value, version 1, is
--   1 byte    1, the version of this format
--   4 bytes   version of the key, unsigned, big-endian
--   16 bytes  initialisation vector: the first bytes of HMAC-SHA-512 over a byte 0, the associated data, a byte 0 and the value
--   n bytes   AES-256-CBC of the value in UTF-8 with PKCS #7 padding, a multiple of 16
--   32 bytes  tag: the first half of HMAC-SHA-512 over associated data, vector, ciphertext, and the length of the
--             associated data in bits (8 bytes, big-endian)
-- under a key of 64 bytes, of which the first 32 are for both HMACs and the last 32 for AES. The associated data are those
-- of a flattened JWE (RFC 7516 section 7.2.2): BASE64URL of {"alg":"dir","enc":"A256CBC-HS512"}, a dot, BASE64URL of the
-- place TENANT/IDENTITY/TABLE/COLUMN/ROW. So any JOSE library opens a value, given the key, and a value that was moved
-- to another place does not open. The same value at the same place under the same key has the same bytes, so that what did
-- not change is told without opening it; nothing needs random numbers, and all that it shows is that a cell has again a
-- value that it had before.
--
-- Keys are touched by expressions of PL/pgSQL alone (assignments, conditions), never by a statement: a statement has a
-- plan and parameters, which extensions log.

do $$
declare
  v_schema constant text := (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = 'pgcrypto');
begin
  -- Bound to pgcrypto where it is installed; the planner inlines them.
  execute pg_catalog.format($f$
    create or replace function custody_data.hmac_sha512(p_data bytea, p_key bytea) returns bytea
    language sql immutable parallel safe return %1$I.hmac(p_data, p_key, 'sha512');
    create or replace function custody_data.aes_cbc(p_plain bytea, p_key bytea, p_iv bytea) returns bytea
    language sql immutable parallel safe return %1$I.encrypt_iv(p_plain, p_key, p_iv, 'aes-cbc/pad:pkcs');
    create or replace function custody_data.aes_cbc_open(p_cipher bytea, p_key bytea, p_iv bytea) returns bytea
    language sql immutable parallel safe return %1$I.decrypt_iv(p_cipher, p_key, p_iv, 'aes-cbc/pad:pkcs');
    create or replace function custody_data.random_bytes(p_count integer) returns bytea
    language sql volatile parallel safe return %1$I.gen_random_bytes(p_count);
  $f$, v_schema);
end
$$;
revoke all on function custody_data.hmac_sha512(bytea, bytea), custody_data.aes_cbc(bytea, bytea, bytea),
  custody_data.aes_cbc_open(bytea, bytea, bytea), custody_data.random_bytes(integer) from public;
comment on function custody_data.hmac_sha512(bytea, bytea) is 'HMAC-SHA-512 (RFC 2104), 64 bytes.';
comment on function custody_data.aes_cbc(bytea, bytea, bytea) is 'AES in CBC mode with PKCS #7 padding; the length of the key says which AES.';
comment on function custody_data.aes_cbc_open(bytea, bytea, bytea) is 'The inverse of aes_cbc.';
comment on function custody_data.random_bytes(integer) is 'Random bytes of the operating system.';

create or replace function custody_data.sealing_place(p_tenant text, p_identity_id uuid, p_table text, p_column text, p_row text)
returns bytea
language sql
stable -- as what it calls, so that callers take it in
parallel safe
-- The row may be any text and comes last, so no two places have the same one.
return pg_catalog.convert_to('eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIn0.' || pg_catalog.translate(pg_catalog.encode(pg_catalog.convert_to(
  p_tenant || '/' || p_identity_id || '/' || p_table || '/' || p_column || '/' || p_row, 'UTF8'), 'base64'), E'+/=\n', '-_'), 'UTF8');
revoke all on function custody_data.sealing_place(text, uuid, text, text, text) from public;
comment on function custody_data.sealing_place(text, uuid, text, text, text) is 'Associated data of a sealed value, as a flattened JWE has them.';

create or replace function custody_data.encrypt_a256cbc_hs512(p_key bytea, p_iv bytea, p_aad bytea, p_plain bytea)
returns bytea
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_body bytea;
begin
  v_body := p_iv || custody_data.aes_cbc(p_plain, substr(p_key, 33, 32), p_iv);
  return v_body || substr(custody_data.hmac_sha512(p_aad || v_body || int8send(octet_length(p_aad)::bigint * 8), substr(p_key, 1, 32)), 1, 32);
end
$$;
revoke all on function custody_data.encrypt_a256cbc_hs512(bytea, bytea, bytea, bytea) from public;
comment on function custody_data.encrypt_a256cbc_hs512(bytea, bytea, bytea, bytea) is
'A256CBC-HS512 (RFC 7518 section 5.2.5) under a key of 64 bytes: the initialisation vector of 16 bytes, the ciphertext, the tag of 32 bytes.';

create or replace function custody_data.decrypt_a256cbc_hs512(p_key bytea, p_aad bytea, p_body bytea)
returns bytea
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size constant integer := octet_length(p_body) - 32;
  v_mac_key constant bytea := substr(p_key, 1, 32);
begin
  if v_size < 32 or v_size % 16 <> 0 then
    return null;
  end if;
  -- Compared by their digests under the key: how long that takes tells nothing about the tags.
  if sha256(v_mac_key || substr(custody_data.hmac_sha512(p_aad || substr(p_body, 1, v_size) || int8send(octet_length(p_aad)::bigint * 8), v_mac_key), 1, 32))
      <> sha256(v_mac_key || substr(p_body, v_size + 1)) then
    return null;
  end if;
  return custody_data.aes_cbc_open(substr(p_body, 17, v_size - 16), substr(p_key, 33, 32), substr(p_body, 1, 16));
end
$$;
revoke all on function custody_data.decrypt_a256cbc_hs512(bytea, bytea, bytea) from public;
comment on function custody_data.decrypt_a256cbc_hs512(bytea, bytea, bytea) is
'The inverse of encrypt_a256cbc_hs512; null for whatever was not made with this key and these associated data.';

create or replace function custody_data.sealed_key_version(p_sealed bytea)
returns integer
language plpgsql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if octet_length(p_sealed) < 69 or get_byte(p_sealed, 0) <> 1 or get_byte(p_sealed, 1) > 127 then
    raise exception using
      errcode = 'PC035',
      message = 'sealed value refused',
      detail = 'It is not a sealed value of version 1.',
      hint = 'Give what custody.seal_value returned. Where it was that, look for who wrote the row past it, and put the row back from a backup.';
  end if;
  return ((get_byte(p_sealed, 1) * 256 + get_byte(p_sealed, 2)) * 256 + get_byte(p_sealed, 3)) * 256 + get_byte(p_sealed, 4);
end
$$;
revoke all on function custody_data.sealed_key_version(bytea) from public;
comment on function custody_data.sealed_key_version(bytea) is 'Version of the key that a value is sealed under. Errors: PC035.';

create or replace function custody_data.seal_bytes(p_key bytea, p_key_version integer, p_place bytea, p_plain bytea)
returns bytea
language sql
immutable
parallel safe
return '\x01'::bytea || pg_catalog.int4send(p_key_version) || custody_data.encrypt_a256cbc_hs512(p_key,
  substr(custody_data.hmac_sha512('\x00'::bytea || p_place || '\x00'::bytea || p_plain, substr(p_key, 1, 32)), 1, 16), p_place, p_plain);
revoke all on function custody_data.seal_bytes(bytea, integer, bytea, bytea) from public;
comment on function custody_data.seal_bytes(bytea, integer, bytea, bytea) is 'Seals bytes under a key for a place.';

create or replace function custody_data.refuse_sealed_value()
returns bytea
language plpgsql
volatile -- so that nobody calls it ahead of time
parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = 'PC035',
    message = 'sealed value refused',
    detail = 'It was altered, or it was sealed for another place or under another key.',
    hint = 'Look for who wrote the row past the functions of schema custody, and put the row back from a backup.';
end
$$;
revoke all on function custody_data.refuse_sealed_value() from public;
comment on function custody_data.refuse_sealed_value() is 'Raises PC035, which does not say where a value differs.';

create or replace function custody_data.open_bytes(p_key bytea, p_place bytea, p_sealed bytea)
returns bytea
language sql
volatile
parallel safe
return coalesce(custody_data.decrypt_a256cbc_hs512(p_key, p_place, substr(p_sealed, 6)), custody_data.refuse_sealed_value());
revoke all on function custody_data.open_bytes(bytea, bytea, bytea) from public;
comment on function custody_data.open_bytes(bytea, bytea, bytea) is 'Opens what seal_bytes sealed for the same place under the same key. Errors: PC035.';
