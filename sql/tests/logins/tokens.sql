-- Tokens: which are good, and that every other one is refused by one error, which says no more than whether it is in its time.
begin;
set local search_path = tap, testing;
select no_plan();
select tenant('tokens'), tenant('tokens_2');
create function pg_temp.b64(p_bytes bytea) returns text language sql as $$ select translate(encode(p_bytes, 'base64'), E'+/=\n', '-_') $$;
create function pg_temp.sign(p_header text, p_claims text, p_key text) returns text language sql as $$
  select i.t || '.' || pg_temp.b64(public.hmac(convert_to(i.t, 'UTF8'), sha256(convert_to(p_key, 'UTF8')), 'sha256'))
  from (select pg_temp.b64(convert_to(p_header, 'UTF8')) || '.' || pg_temp.b64(convert_to(p_claims, 'UTF8'))) i (t)
$$;
create function pg_temp.in_seconds(p_seconds numeric) returns bigint language sql as $$ select floor(extract(epoch from clock_timestamp()) + p_seconds)::bigint $$;
create function pg_temp.token(p_claims jsonb default '{}', p_header jsonb default '{}', p_key text default 'any') returns text language sql as $$
  select pg_temp.sign(jsonb_strip_nulls('{"alg": "HS256", "typ": "JWT", "kid": "any"}' || p_header)::text,
    jsonb_strip_nulls(jsonb_build_object('tenant', 'tokens', 'sub', 'clerk', 'purpose', 'support', 'exp', pg_temp.in_seconds(300)) || p_claims)::text, p_key)
$$;
create function pg_temp.register(p_kid text, p_tenant text) returns text language plpgsql as $$
declare
  v_kid text;
begin
  execute 'select custody.register_token_key($1, $2, $3)' into v_kid using p_kid, sha256(convert_to(p_kid, 'UTF8')), p_tenant;
  return v_kid;
end
$$;
create function pg_temp.register_weak() returns text language plpgsql as $$
declare
  v_kid text;
begin
  execute 'select custody.register_token_key($1, $2)' into v_kid using 'weak', '\x00'::bytea;
  return v_kid;
end
$$;

set local role custody_admin;
select enter('tokens', 'root') /* $1 */;
select refuses($$select custody.register_token_key('k', null)$$, 'PC015', 'keys of tokens are registered in tenant system');
select refuses($$select custody.retire_token_key('any')$$, 'PC015', 'and retired there');
select refuses($$select custody.rotate_context_key()$$, 'PC015', 'as keys of contexts are replaced there');
select refuses($$select custody.require_tokens('custody_app')$$, 'PC015', 'and modes changed');
select enter('system', 'root') /* $1 */;
select is(pg_temp.register('any', null), 'any', 'a key for any tenant') /* $1 */;
select is(pg_temp.register('mine', 'tokens'), 'mine', 'a key for one') /* $1 */;
select is(pg_temp.register('other', 'tokens_2'), 'other', 'a key for another') /* $1 */;
select is((last_event('system', 'token_key.register')).metadata, '{"kid": "other", "tenant": "tokens_2"}', 'each is an event');
select refuses($$select custody.register_token_key('a b', sha256('x')) /* $1 */$$, 'PC023', 'no name');
select refuses($$select custody.register_token_key('any', sha256('x')) /* $1 */$$, 'PC023', 'a name that is taken');
select refuses($$select custody.register_token_key('x', sha256('x'), 'nowhere') /* $1 */$$, 'PC002', 'for a tenant nobody knows');
select refuses($$select pg_temp.register_weak() /* $1 */$$, 'PC034', 'a short key');
select refuses($$select custody.register_token_key('x', null) /* $1 */$$, 'PC034', 'no key');
select refuses($$select custody.register_token_key('x', '\x11')$$, 'PC036', 'a key in the text of the statement');
select refuses($$select custody.retire_token_key('nothing')$$, 'PC023', 'no such key');
select refuses($$select custody.require_tokens('nobody at all')$$, 'PC023', 'no such role');
select refuses($$select custody.require_tokens('custody_dpo', false)$$, 'PC023', 'no such login');
reset role;

-- In free mode already a token is a context.
set local session authorization custody_app;
select lives_ok(format('select custody.begin_context(%L)', pg_temp.token()), 'a good token');
select is(concat_ws(' ', custody.current_tenant(), custody.current_actor(), custody.current_purpose(), custody.current_subject()), 'tokens clerk support', 'is its context');
select lives_ok(format('select custody.begin_context(%L)', pg_temp.token('{"subject": "ada", "jti": "1", "aud": ["x"]}')), 'with a subject, and claims nobody looks at');
select is(custody.current_subject(), 'ada', 'it is confined');
select lives_ok(format('select custody.begin_context(%L)', t), d) from (values
  (pg_temp.token('{}', '{"kid": "mine"}', 'mine'), 'under the key of its tenant'),
  (pg_temp.token('{}', '{"typ": null}'), 'without typ'),
  (pg_temp.token(jsonb_build_object('nbf', pg_temp.in_seconds(20), 'iat', pg_temp.in_seconds(20))), 'of a clock that is ahead by a little'),
  (pg_temp.token(jsonb_build_object('exp', pg_temp.in_seconds(3599.5) + 0.5)), 'for an hour, to half a second'),
  (pg_temp.sign('{"kid":"any","alg":"HS256"}', format('{"exp":%s,"purpose":"x","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'in another order'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"\"sub\":","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'with quotes in a string'),
  (pg_temp.sign(E'{ "kid" :\n"any","alg":"HS256"}', format(E' {"exp":%s,"purpose":"x","sub":"cl\\u0065rk","tenant":"tokens"} ', pg_temp.in_seconds(60)), 'any'), 'with white space and escapes')) g (t, d);

select refuses(format('select custody.begin_context(%L)', t), 'PC060', d) from (values
  (null, 'none'), ('', 'an empty one'), ('.', 'a dot'), ('..', 'two dots'), ('...', 'three dots'), ('a.b.c', 'letters'),
  (pg_temp.token('{}', '{}', 'wrong'), 'under another secret'),
  (pg_temp.token('{}', '{"kid": "nobody"}'), 'under a kid nobody knows'),
  (pg_temp.token('{}', '{"kid": null}'), 'without kid'),
  (pg_temp.token('{}', '{"kid": 1}'), 'a kid that is a number'),
  (pg_temp.token('{}', '{"kid": "mine"}'), 'under another key than its kid says'),
  (pg_temp.token('{}', '{"kid": "other"}', 'other'), 'under another tenant''s key'),
  (pg_temp.token('{"tenant": "tokens_2"}', '{"kid": "mine"}', 'mine'), 'for another tenant than its key''s'),
  (pg_temp.token('{"tenant": "system"}', '{"kid": "mine"}', 'mine'), 'for tenant system under a tenant''s key'),
  (pg_temp.token('{}', '{"alg": "none"}'), 'alg none'), (pg_temp.token('{}', '{"alg": "None"}'), 'alg None'), (pg_temp.token('{}', '{"alg": "hs256"}'), 'alg hs256'),
  (pg_temp.token('{}', '{"alg": "HS512"}'), 'alg HS512'), (pg_temp.token('{}', '{"alg": "RS256"}'), 'alg RS256'), (pg_temp.token('{}', '{"alg": null}'), 'no alg'), (pg_temp.token('{}', '{"alg": ["HS256"]}'), 'alg in an array'),
  (split_part(pg_temp.token('{}', '{"alg": "none"}'), '.', 1) || '.' || split_part(pg_temp.token(), '.', 2) || '.', 'alg none without a signature'),
  (pg_temp.token('{}', '{"typ": "JOSE"}'), 'another typ'), (pg_temp.token('{}', '{"crit": ["exp"]}'), 'with crit'), (pg_temp.token('{}', '{"jwk": {}}'), 'with a key of its own'), (pg_temp.token('{}', '{"b64": false}'), 'with b64'),
  (pg_temp.token(jsonb_build_object('exp', pg_temp.in_seconds(-1))), 'expired'), (pg_temp.token('{"exp": 0}'), 'long expired'), (pg_temp.token('{"exp": -1}'), 'before all time'),
  (pg_temp.token('{"exp": null}'), 'without end'), (pg_temp.token(jsonb_build_object('exp', pg_temp.in_seconds(300)::text)), 'exp as text'), (pg_temp.token(jsonb_build_object('exp', pg_temp.in_seconds(4000))), 'for more than an hour'), (pg_temp.token('{"exp": 1e30}'), 'for ever'),
  (pg_temp.token(jsonb_build_object('nbf', pg_temp.in_seconds(60))), 'not valid yet'), (pg_temp.token(jsonb_build_object('iat', pg_temp.in_seconds(60))), 'minted in the future'), (pg_temp.token('{"nbf": "0"}'), 'nbf as text'), (pg_temp.token('{"iat": true}'), 'iat as a truth'),
  (pg_temp.token('{"tenant": null}'), 'without tenant'), (pg_temp.token('{"tenant": ["tokens"]}'), 'tenant in an array'), (pg_temp.token('{"sub": null}'), 'without sub'), (pg_temp.token('{"sub": 7}'), 'sub as a number'),
  (pg_temp.token('{"purpose": null}'), 'without purpose'), (pg_temp.token('{"purpose": {}}'), 'purpose as an object'), (pg_temp.token('{"subject": 7}'), 'subject as a number'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', '[]', 'any'), 'claims that are an array'), (pg_temp.sign('{"alg":"HS256","kid":"any"}', '', 'any'), 'no claims'), (pg_temp.sign('{"alg":"HS256","kid":"any"}', '{', 'any'), 'broken claims'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","tenant":"tokens_2","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'a claim twice'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","ten\u0061nt":"tokens_2","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'a claim twice, spelled otherwise'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%1$s,"exp":%1$s,"purpose":"x","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'an end twice'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'a claim twice, alike'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","tenant":"tokens","jti":1,"jti":2}', pg_temp.in_seconds(60)), 'any'), 'a claim twice that nobody looks at'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"a\"","sub":"clerk","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'a claim twice, beside a quote'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","nbf":9e9,"nbf":0,"tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'a beginning twice'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', format('[{"exp":%s,"purpose":"x","sub":"clerk","tenant":"tokens"}]', pg_temp.in_seconds(60)), 'any'), 'claims within an array'),
  (pg_temp.sign('{"alg":"HS256","alg":"none","kid":"any"}', format('{"exp":%s,"purpose":"x","sub":"clerk","tenant":"tokens"}', pg_temp.in_seconds(60)), 'any'), 'alg twice'),
  (pg_temp.sign('{"alg":"HS256","kid":"any\u0000"}', '{}', 'any'), 'a kid with a zero'), (pg_temp.sign('{"alg":"HS256","kid":"any"}', '{"tenant":"\u0000"}', 'any'), 'a claim with a zero'),
  (pg_temp.sign('{"alg":"HS256","kid":"any"}', repeat('[', 3000), 'any'), 'a deep one'), (pg_temp.sign('{"alg":"HS256","kid":"any"}', '{"exp":1e999999}', 'any'), 'a number beyond all numbers'),
  (pg_temp.token() || '=', 'with padding'), (replace(pg_temp.token(), '.', '=.'), 'with padding in its parts'), (pg_temp.token() || E'\n', 'with a line feed'), (' ' || pg_temp.token(), 'with a blank'), (pg_temp.token() || '.', 'with a fourth part'),
  (left(pg_temp.token(), -1), 'cut by a character'), (split_part(pg_temp.token(), '.', 1) || '.' || split_part(pg_temp.token(), '.', 2), 'without a signature'), (split_part(pg_temp.token(), '.', 1) || '.' || split_part(pg_temp.token(), '.', 2) || '.', 'with an empty one'),
  (split_part(pg_temp.token(), '.', 1) || '.' || split_part(pg_temp.token('{"sub": "root"}'), '.', 2) || '.' || split_part(pg_temp.token(), '.', 3), 'the claims of one and the signature of another'),
  (left(pg_temp.token(), -1) || chr(ascii(right(pg_temp.token(), 1)) + 1), 'bits that are left over'),
  (pg_temp.token(jsonb_build_object('note', repeat('x', 9000))), 'a huge one'), (repeat('x', 1000000), 'a million characters'), (repeat('.', 8000), 'dots alone')) b (t, d);
create function pg_temp.detail(p_token text) returns text language plpgsql as $$
declare
  v_detail text;
begin
  perform custody.begin_context(p_token);
exception when sqlstate 'PC060' then
  get stacked diagnostics v_detail = pg_exception_detail;
  return v_detail;
end
$$;
select is(pg_temp.detail(pg_temp.token(jsonb_build_object('exp', pg_temp.in_seconds(-1)))), 'It has expired.', 'a token that was good is said to have expired');
select is(pg_temp.detail(pg_temp.token(jsonb_build_object('nbf', pg_temp.in_seconds(60)))), 'It is not valid yet.', 'one that will be, that it is not yet');
select is(array(select distinct pg_temp.detail(t) from unnest(array[pg_temp.token('{}', '{}', 'wrong'), pg_temp.token('{"sub": null}'), pg_temp.token('{}', '{"kid": "nobody"}'), pg_temp.token('{"exp": 0}', '{}', 'wrong'), 'x']) t),
  '{"It is none that was minted for this database."}', 'of all others nothing is said, nor of the time of one that is forged');
select refuses(format('select custody.begin_context(%L)', pg_temp.token('{"tenant": "nowhere"}')), 'PC002', 'a tenant nobody knows');
select refuses(format('select custody.begin_context(%L)', pg_temp.token('{"sub": ""}')), 'PC003', 'an empty sub');
select refuses(format('select custody.begin_context(%L)', pg_temp.token('{"subject": " "}')), 'PC003', 'a blank subject');
select refuses(format('select custody.begin_context(%L)', pg_temp.token('{"tenant": "system"}')), 'PC015', 'tenant system for an application');

-- A key that is retired.
reset session authorization;
set local role custody_admin;
select enter('system', 'root') /* $1 */;
select lives_ok($$select custody.retire_token_key('any')$$, 'a key is retired');
select is((last_event('system', 'token_key.retire')).metadata, '{"kid": "any"}', 'which is an event');
select refuses($$select custody.retire_token_key('any')$$, 'PC023', 'once');
select refuses($$select custody.register_token_key('any', sha256('x')) /* $1 */$$, 'PC023', 'its name is not used again');
reset role;
select is((select k.secret from custody_keys.context_keys k where k.kid = 'any'), null, 'its secret is gone');
set local session authorization custody_app;
select refuses(format('select custody.begin_context(%L)', pg_temp.token()), 'PC060', 'its tokens are refused');
select lives_ok(format('select custody.begin_context(%L)', pg_temp.token('{}', '{"kid": "mine"}', 'mine')), 'those of others are not');

-- Nobody sees keys.
reset session authorization;
select is(attempt(g.name, 'select * from custody_keys.context_keys'), case g.name when 'custody_backup' then 'ok' else '42501' end, format('%s and the keys', g.name)) from groups g;
set local role custody_backup;
select is((select count(*) from custody_keys.context_keys), 0::bigint, 'a backup finds none');
reset role;
select refuses($$delete from custody_keys.context_keys$$, 'PC020', 'rows of keys stay');
select refuses($$update custody_keys.context_keys set for_tenant = null$$, 'PC030', 'for whom they are');
select * from finish();
rollback;
