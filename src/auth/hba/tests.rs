//! Tests of reading and deciding, with files in memory.

use super::*;
use crate::net::Peer;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Files by name.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, String>);

impl Memory {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())).collect())
    }
}

impl Files for Memory {
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<String> {
        let text = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        if text.len() > bytes_max { Err(io::Error::other("too long")) } else { Ok(text.clone()) }
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let inside = self.0.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }
}

fn load(files: &[(&str, &str)]) -> Result<Hba, Vec<String>> {
    let ident = files.iter().any(|(name, _)| *name == "d/ident").then_some(Path::new("d/ident"));
    Hba::load(Path::new("d/hba"), ident, &Memory::new(files))
}

fn rules(text: &str) -> Hba {
    load(&[("d/hba", text)]).unwrap()
}

fn problems(text: &str) -> Vec<String> {
    load(&[("d/hba", text)]).unwrap_err()
}

const UNIX: &str = "local";

fn attempt<'a>(from: &str, user: &'a str, database: &'a str) -> Attempt<'a> {
    let (from, encrypted) = from.strip_prefix("ssl:").map_or((from, false), |from| (from, true));
    let peer = match from {
        UNIX => Peer::Unix { uid: 1000, pid: None },
        address => Peer::Tcp(SocketAddr::new(address.parse().unwrap(), 4711)),
    };
    Attempt { peer, encrypted, user, database, replication: false }
}

/// The line of the rule that decides; 0: none.
fn decided(hba: &Hba, from: &str, user: &str, database: &str) -> usize {
    let known = Known { roles: Some(Arc::new(Roles::from(["joe".into(), "staff".into()]))), ..Known::default() };
    hba.decide(&attempt(from, user, database), &known).unwrap().map_or(0, |rule| rule.place.line)
}

#[test]
fn the_first_rule_that_fits_decides() {
    let hba = rules(
        "# comment\n\
         local   all        postgres                 peer\n\
         host    all        mallory   0.0.0.0/0      reject\n\
         hostssl app        joe       10.0.0.0/8     scram-sha-256\n\
         hostnossl app      joe       10.0.0.0 255.0.0.0 md5\n\
         hostgssenc all     all       all            trust\n\
         host    sameuser   all       127.0.0.1/32   password\n\
         host    app,\"all\" ann,bob   ::1/128        trust\n\
         hostnogssenc all   all       192.168.0.0/16 scram-sha-256\n",
    );
    assert_eq!(hba.len(), 8);
    let cases = [
        (UNIX, "postgres", "x", 2),
        (UNIX, "joe", "x", 0),
        ("10.0.0.1", "postgres", "x", 0),
        ("1.2.3.4", "mallory", "app", 3),
        ("ssl:10.0.0.1", "joe", "app", 4),
        ("10.0.0.1", "joe", "app", 5),
        ("10.0.0.1", "joe", "other", 0),
        ("127.0.0.1", "joe", "joe", 7),
        ("127.0.0.1", "joe", "app", 0),
        ("::1", "bob", "app", 8),
        ("::1", "bob", "all", 8),
        ("::1", "bob", "other", 0),
        ("::1", "eve", "app", 0),
        ("ssl:192.168.7.7", "eve", "anything", 9),
        ("::ffff:192.168.7.7", "eve", "anything", 9),
    ];
    for (from, user, database, line) in cases {
        assert_eq!(decided(&hba, from, user, database), line, "{from} {user} {database}");
    }
}

#[test]
fn keywords_in_quotes_are_names() {
    let hba = rules("host \"all\" all all trust\nhost all \"all\" all trust\nhost \"sameuser\" joe all trust\n");
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "all"), 1);
    assert_eq!(decided(&hba, "10.0.0.1", "all", "x"), 2);
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "joe"), 0);
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "sameuser"), 3);
    // A quoted plus is a letter, a quoted slash still begins an expression.
    let hba = rules("host all \"+staff\" all trust\nhost \"/^a,b$\" all all trust\n");
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "x"), 0);
    assert_eq!(decided(&hba, "10.0.0.1", "+staff", "x"), 1);
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "a,b"), 2);
}

#[test]
fn expressions_search_the_name() {
    let hba = rules("host \"/^db\\d{2,4}$\" /admin all trust\n");
    assert_eq!(decided(&hba, "10.0.0.1", "superadmin2", "db12"), 1);
    assert_eq!(decided(&hba, "10.0.0.1", "superadmin2", "db1"), 0);
    assert_eq!(decided(&hba, "10.0.0.1", "ad-min", "db12"), 0);
}

#[test]
fn members_are_asked_for_only_if_they_decide() {
    let hba =
        rules("host app +staff 10.0.0.0/8 trust\nhost samerole joe 10.0.0.0/8 trust\nhost all +x,all all trust\n");
    let nothing = Known::default();
    let line = |attempt: &Attempt<'_>, known: &Known| hba.decide(attempt, known).map(|rule| rule.map(|r| r.place.line));
    assert_eq!(line(&attempt("10.0.0.1", "joe", "app"), &nothing), Err(Need::Roles));
    assert_eq!(line(&attempt("11.0.0.1", "joe", "app"), &nothing), Ok(Some(3)), "the address spares the question");
    assert_eq!(line(&attempt("10.0.0.1", "ann", "other"), &nothing), Ok(Some(3)), "so does the name of the database");
    let known = |roles: &[&str]| Known {
        roles: Some(Arc::new(roles.iter().map(|role| Box::from(*role)).collect())),
        ..Known::default()
    };
    assert_eq!(line(&attempt("10.0.0.1", "joe", "app"), &known(&["joe", "staff"])), Ok(Some(1)));
    assert_eq!(line(&attempt("10.0.0.1", "joe", "app"), &known(&["joe", "app"])), Ok(Some(2)));
    assert_eq!(line(&attempt("10.0.0.1", "joe", "joe"), &known(&["joe"])), Ok(Some(2)));
    assert_eq!(line(&attempt("10.0.0.1", "joe", "app"), &known(&[])), Ok(Some(3)), "no such role");
}

#[test]
fn replication_is_no_database() {
    let hba = rules("host all all all trust\nhost replication joe all md5\nhost \"replication\" joe all reject\n");
    let physical = Attempt { replication: true, ..attempt("10.0.0.1", "joe", "joe") };
    assert_eq!(hba.decide(&physical, &Known::default()).unwrap().map(|rule| rule.place.line), Some(2));
    assert_eq!(decided(&hba, "10.0.0.1", "joe", "replication"), 1);
}

#[test]
fn every_problem_has_its_line() {
    let long = format!("host all /{} all trust", "(a{1000}){1000}");
    let cases = [
        ("lokal all all trust", "invalid connection type \"lokal\""),
        ("local,host all all trust", "multiple values specified for connection type"),
        ("local", "end-of-line before database specification"),
        ("local all", "end-of-line before role specification"),
        ("local all all", "end-of-line before authentication method"),
        ("host all all", "end-of-line before IP address specification"),
        ("host all all 10.0.0.1", "end-of-line before netmask specification"),
        ("host all all 10.0.0.1/8", "end-of-line before authentication method"),
        ("host all all 10.0.0.1,10.0.0.2 trust", "multiple values specified for host address"),
        ("host all all all trust,md5", "multiple values specified for authentication type"),
        ("host all all all skram", "invalid authentication method \"skram\""),
        ("host all all all peer", "peer authentication is only supported on local sockets"),
        ("host all all all cert", "cert authentication is only supported on hostssl connections"),
        ("host all all all md5 map", "authentication option not in name=value format: map"),
        ("host all all all md5 map=x", "\"map\" is only valid for authentication methods peer and cert"),
        ("host all all all md5 clientcert=verify-ca", "clientcert can only be configured for \"hostssl\" rows"),
        ("host all all all md5 clientname=CN", "clientname can only be configured for \"hostssl\" rows"),
        ("hostssl all all all md5 clientcert=1", "invalid value for clientcert: \"1\""),
        ("hostssl all all all md5 clientname=X", "invalid value for clientname: \"X\""),
        ("hostssl all all all cert clientcert=verify-ca", "clientcert only accepts \"verify-full\""),
        ("host all all all md5 colour=red", "unrecognized authentication option name: \"colour\""),
        ("host all all all md5 ldapserver=x", "authentication option \"ldapserver\" is not valid for method \"md5\""),
        ("host all all all ident", "authentication method \"ident\" over TCP is not supported"),
        ("host all all all ldap ldapserver=x", "authentication method \"ldap\" is not supported"),
        ("host all all all gss", "authentication method \"gss\" is not supported"),
        ("local all all pam", "authentication method \"pam\" is not supported"),
        ("host all all all oauth issuer=x", "authentication method \"oauth\" is not supported"),
        ("host /[ all all trust", "invalid regular expression \"[\": unclosed character class"),
        ("host all /\\y all trust", "invalid regular expression \"\\y\": unrecognized escape sequence"),
        (&long, "invalid regular expression"),
        ("host @nothing all all trust", "cannot include d/nothing"),
        ("include nothing", "cannot include d/nothing"),
    ];
    let text: Vec<_> = cases.iter().map(|(line, _)| *line).collect();
    let found = problems(&format!("\n{}\n", text.join("\n\n")));
    assert_eq!(found.len(), cases.len(), "{found:#?}");
    let mut wanted: Vec<_> =
        (0..).zip(cases).map(|(at, (_, problem))| (format!("d/hba:{}: ", 2 + 2 * at), problem)).collect();
    // Files are read before lines are understood.
    wanted.rotate_right(2);
    for (found, (place, problem)) in found.iter().zip(wanted) {
        assert!(found.starts_with(&place) && found.contains(problem), "{found} / {place}{problem}");
        assert!(!found.contains('\n'), "{found}");
    }
    assert_eq!(problems("# nothing\n"), ["d/hba: there is no rule in it, so nobody could log in"]);
    assert_eq!(problems("local all all trust\0"), ["d/hba:1: holds a NUL character"]);
}

#[test]
fn files_include_files() {
    let files = [
        ("d/hba", "include sub/first\nhost @names/dbs joe all trust\ninclude_if_exists gone\ninclude_dir conf\n"),
        ("d/sub/first", "local all all peer\ninclude second # beside the first\n"),
        ("d/sub/second", "local \\\n all ann trust\n"),
        ("d/names/dbs", "app, other # some\n\"third one\"\n@more\n"),
        ("d/names/more", "fourth"),
        ("d/conf/b.conf", "host b all all trust\n"),
        ("d/conf/a.conf", "host a all all trust\n"),
        ("d/conf/.c.conf", "garbage\n"),
        ("d/conf/readme", "garbage\n"),
    ];
    let hba = load(&files).unwrap();
    let places: Vec<_> = hba.rules.iter().map(|rule| rule.place.to_string()).collect();
    assert_eq!(places, ["d/sub/first:1", "d/sub/second:1", "d/hba:2", "d/conf/a.conf:1", "d/conf/b.conf:1"]);
    for database in ["app", "other", "third one", "fourth"] {
        assert_eq!(decided(&hba, "10.0.0.1", "joe", database), 2, "{database}");
    }
}

#[test]
fn files_that_include_each_other_end() {
    for text in ["include hba\n", "host @hba all all trust\n", "include hba\ninclude hba\n"] {
        let found = problems(text);
        assert!(found[0].contains("more than 10 files deep") || found[0].contains("files are included"), "{found:?}");
        assert!(found.len() <= PROBLEMS_MAX);
    }
    let big = format!("#{}\n", "x".repeat(1 << 20));
    let includes = "include big\n".repeat(8);
    let found = load(&[("d/hba", &includes), ("d/big", &big)]).err().unwrap();
    assert!(found[0].starts_with("d/hba:4: cannot include d/big"), "{found:?}");
}

fn permit(hba: &Hba, map: Option<&str>, user: &str, outside: &str) -> Result<(), String> {
    let known = Known { roles: Some(Arc::new(Roles::from(["joe".into(), "staff".into()]))), ..Known::default() };
    hba.permit(map, user, outside, &known).unwrap().map_err(|refusal| refusal.to_string())
}

#[test]
fn maps() {
    let ident = "m  joe    joe\n\
                 m  root   all\n\
                 m  clerk  +staff\n\
                 m  /^(.*)@example\\.com$  \\1\n\
                 m  /^(.*)@other\\.com$    \"x_\\1_\\1\"\n\
                 m  \"two words\"          /^t\n\
                 n  /nothing  \\1\n\
                 o  /^(.*)@x$  all\n\
                 p  plain  \\1\n";
    let hba = load(&[("d/hba", "local all all peer map=m"), ("d/ident", ident)]).unwrap();
    let m = Some("m");
    let yes = |user: &str, outside: &str| assert_eq!(permit(&hba, m, user, outside), Ok(()), "{outside} as {user}");
    let no = |user: &str, outside: &str| assert!(permit(&hba, m, user, outside).is_err(), "{outside} as {user}");
    yes("joe", "joe");
    no("ann", "joe");
    yes("anybody", "root");
    yes("joe", "clerk");
    yes("ann", "ann@example.com");
    no("ann", "bob@example.com");
    no("anybody", "all@example.com");
    yes("all", "all@example.com");
    no("joe", "+staff@example.com");
    yes("x_ann_\\1", "ann@other.com");
    yes("top", "two words");
    no("pot", "two words");
    no("joe", "JOE");
    assert_eq!(permit(&hba, None, "joe", "joe"), Ok(()));
    assert_eq!(permit(&hba, Some(""), "joe", "joe"), Ok(()));
    assert_eq!(permit(&hba, None, "joe", "ann"), Err("the name \"ann\" is not the user's".to_owned()));
    assert_eq!(permit(&hba, Some("q"), "a", "b"), Err("no match in usermap \"q\" for \"b\"".to_owned()));
    assert!(
        permit(&hba, Some("n"), "x", "nothing").unwrap_err().starts_with("d/ident:7: the regular expression has no")
    );
    assert_eq!(permit(&hba, Some("o"), "whoever", "y@x"), Ok(()), "all keeps its meaning");
    assert_eq!(permit(&hba, Some("p"), "\\1", "plain"), Ok(()), "without an expression \\1 is a name");
    assert_eq!(hba.permit(m, "joe", "clerk", &Known::default()), Err(Need::Roles));
}

#[test]
fn problems_of_maps_and_rules_are_told_together() {
    let found = load(&[("d/hba", "x\n"), ("d/ident", "m a\nm a,b c\nm /( c\n# m\n")]).unwrap_err();
    let wanted = [
        "d/hba:1: invalid connection type \"x\"",
        "d/ident:1: missing entry at end of line",
        "d/ident:2: multiple values in ident field",
        "d/ident:3: invalid regular expression \"(\": unclosed group",
    ];
    assert_eq!(found, wanted);
    let missing = Hba::load(Path::new("d/hba"), Some(Path::new("d/ident")), &Memory::default()).unwrap_err();
    assert_eq!(missing.len(), 2, "{missing:?}");
}

#[test]
fn options() {
    let hba = rules(
        "hostssl all all all cert clientname=DN map=m\nhostssl all all all scram-sha-256 clientcert=verify-ca\n\
         hostssl all all all trust \"clientcert=verify-full\"\nlocal all all ident map=x\n",
    );
    let seen: Vec<_> =
        hba.rules.iter().map(|r| (r.method.word(), r.certificate, r.certificate_name, r.map.as_deref())).collect();
    use CertificateCheck::{Off, VerifyCa, VerifyFull};
    use CertificateName::{CommonName, DistinguishedName};
    assert_eq!(
        seen,
        [
            ("cert", VerifyFull, DistinguishedName, Some("m")),
            ("scram-sha-256", VerifyCa, CommonName, None),
            ("trust", VerifyFull, CommonName, None),
            ("peer", Off, CommonName, Some("x")),
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_gives_rules_or_problems(text in "((local|host|hostssl)|all|[a-z]{1,3}|[0-9./:]{1,9}|@[a-c]|/[a-z(]{1,4}|[+#,\"\\\\ \t\n]|trust|include){0,40}") {
        match load(&[("d/hba", &text), ("d/a", &text), ("d/ident", &text)]) {
            Ok(hba) => prop_assert!(!hba.is_empty()),
            Err(problems) => {
                prop_assert!(!problems.is_empty() && problems.len() <= PROBLEMS_MAX);
                prop_assert!(problems.iter().all(|problem| problem.starts_with("d/")), "{:?}", problems);
            }
        }
    }

    /// The first rule that matches by itself is the one that decides.
    #[test]
    fn order_decides(lines in prop::collection::vec(
        (prop::sample::select(vec!["host", "hostssl", "hostnossl", "local"]), prop::sample::select(vec!["all", "app", "sameuser"]),
         prop::sample::select(vec!["all", "joe", "ann,joe"]), prop::sample::select(vec!["all", "10.0.0.0/8", "::1/128"])), 1..8),
        from in prop::sample::select(vec!["10.0.0.1", "ssl:::1", "1.1.1.1", "local"]),
        user in prop::sample::select(vec!["joe", "ann", "app"])) {
        let line = |(link, database, role, address): &(&str, &str, &str, &str)| {
            let address = if *link == "local" { "" } else { address };
            format!("{link} {database} {role} {address} trust\n")
        };
        let whole = rules(&lines.iter().map(line).collect::<String>());
        let alone = lines.iter().position(|one| decided(&rules(&line(one)), from, user, "app") == 1);
        prop_assert_eq!(decided(&whole, from, user, "app"), alone.map_or(0, |at| at + 1));
    }
}
