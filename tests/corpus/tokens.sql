-- Texts that are hard to split into tokens.
select 'it''s', E'it\'s', e'\\', 'a\', U&'d\0061t', b'01', X'ff', n'national';
select 'one'
  'string', 'and' -- a comment goes between
  'another';
select "a""b", "x'y", U&"d\0061t", u&"a!0062" uescape '!', "--", "/*", "$$";
select $$it's$$, $tag$ $$ $other$ $tag$, $_9$;$_9$, $é$ é $é$;
select 1, 1.5, .5, 5., 1e5, 1.5e-3, 5.e+2, 0x1F, 0o17, 0b11, 1_000, 0x_ff, 1_0.2_5e1_0;
select $1, $12, a$1, a$b, _x, é, x1;
select a--comment
+b/*c*/-/*d /*e*/ f*/c, a*/*x*/b, a<-1, a>-b, @-1, !!5, a||b, a->>'b', a#>'{x}', a::int[], a:=b;
select /* ' */ 1, /* " */ 2, /* $$ */ 3, '/*', '--', "/*", $$ /* $$;
select a[1:2], (b).c, t.*, 1.0.x;
select ''/**/'', '' '';
select e, E, u&v, b, x, n from e;
select 1;;select 2;
