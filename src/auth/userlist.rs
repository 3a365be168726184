//! PgBouncer's userlist file: lines of `"user" "secret"`.
//!
//! A doubled quote inside a field is one quote; lines that begin with `;` are comments; what
//! follows the second field is ignored, as PgBouncer does. An empty secret is no secret: PgBouncer
//! users write it for logins by trust. Invariants: all problems are reported, each with its line;
//! a problem never shows a secret. Absent on purpose: reading the file.

use super::secret::StoredSecret;

/// Reads a whole file. `path` is for the problems only.
pub(super) fn parse(path: &str, text: &str) -> Result<Vec<(String, StoredSecret)>, Vec<String>> {
    let mut users: Vec<(String, StoredSecret)> = Vec::new();
    let mut first_seen = std::collections::HashMap::new();
    let mut problems = Vec::new();
    let numbered = (1..).zip(text.trim_start_matches('\u{feff}').lines());
    for (line, content) in numbered {
        let content = content.trim();
        if content.is_empty() || content.starts_with(';') {
            continue;
        }
        match parse_line(content) {
            Err(problem) => problems.push(format!("{path}:{line}: {problem}")),
            Ok((user, secret)) => {
                if let Some(earlier) = first_seen.insert(user.clone(), line) {
                    problems.push(format!("{path}:{line}: user \"{user}\" is already on line {earlier}"));
                }
                users.extend(secret.map(|secret| (user, secret)));
            }
        }
    }
    if problems.is_empty() { Ok(users) } else { Err(problems) }
}

fn parse_line(content: &str) -> Result<(String, Option<StoredSecret>), String> {
    // A user name cut at the wrong place may hold the secret: it is shown only once all is in place.
    let (user, rest) = take_field(content).map_err(|why| format!("user name {why}"))?;
    if user.is_empty() {
        return Err("the user name is empty".to_owned());
    }
    let (secret, _) = take_field(rest).map_err(|why| format!("secret {why}"))?;
    if secret.is_empty() {
        return Ok((user, None));
    }
    let secret = StoredSecret::parse(&secret).map_err(|why| format!("user \"{user}\": {why}"))?;
    Ok((user, Some(secret)))
}

/// A quoted field and what follows it, without blanks.
fn take_field(text: &str) -> Result<(String, &str), &'static str> {
    let mut rest = text.strip_prefix('"').ok_or("must stand in double quotes, as in \"user\" \"secret\"")?;
    let mut field = String::new();
    loop {
        let (part, after) = rest.split_once('"').ok_or("lacks its closing quote")?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None if after.is_empty() || after.starts_with([' ', '\t']) => return Ok((field, after.trim_start())),
            None => return Err("must be followed by a blank; write a quote inside as two"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Plain;
    use super::*;
    use crate::config::Secret;

    fn plain(text: &str) -> StoredSecret {
        StoredSecret::Plain(Plain::new(Secret::new(text)))
    }

    #[test]
    fn what_pgbouncer_reads() {
        let text = "\u{feff};; users\n\n\"joe\" \"secret\"\r\n  \"a \"\"b\"\"\"\t\"x\"\"y\"  ; comment\n\
                    \"trusted\" \"\"\n\"old\" \"md5c59ec932d911ffdf487595b5a2adf973\" \"ignored\"\n; end";
        let users = parse("u.txt", text).unwrap();
        assert_eq!(users[..2], [("joe".to_owned(), plain("secret")), ("a \"b\"".to_owned(), plain("x\"y"))]);
        assert_eq!(users[2].0, "old");
        assert!(matches!(users[2].1, StoredSecret::Md5(_)));
        assert_eq!(users.len(), 3, "no secret, no entry");
    }

    #[test]
    fn every_problem_has_its_line_and_shows_no_secret() {
        let text = "joe hunter2\n\"ok\" \"hunter2\"\n\"x\" \"hunter2\n\"y\"\"hunter2\"\n\"\" \"hunter2\"\n\"z\" hunter2\n\
                    \"ok\" \"hunter2\"\n\"w\" \"SCRAM-SHA-256$hunter2\"\n\"v\" \"hun\"ter2\"\n\"u\"";
        let problems = parse("u.txt", text).unwrap_err();
        let wanted = [
            "u.txt:1: user name must stand in double quotes",
            "u.txt:3: secret lacks its closing quote",
            "u.txt:4: secret must stand in double quotes",
            "u.txt:5: the user name is empty",
            "u.txt:6: secret must stand in double quotes",
            "u.txt:7: user \"ok\" is already on line 2",
            "u.txt:8: user \"w\": the secret begins with SCRAM-SHA-256$",
            "u.txt:9: secret must be followed by a blank",
            "u.txt:10: secret must stand in double quotes",
        ];
        assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
        for (problem, wanted) in problems.iter().zip(wanted) {
            assert!(problem.starts_with(wanted), "{problem} / {wanted}");
        }
    }
}
