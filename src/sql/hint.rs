//! Wishes in comments: `/* pgregent: node=primary scope=transaction */`.
//!
//! The grammar: a block comment that begins with `pgregent:`, then `node=` one of `primary`, `standby`, `any`, and at
//! most one `scope=` of `statement` (the default), `transaction`, `session`, in any order, with blanks or a comma between
//! them. Invariants: a comment that begins so and is not exactly that is ignored and told as such, so that it can be
//! counted; every other comment (sqlcommenter's, say) is a comment. The first hint of a text counts.
//! Absent on purpose: what a session does with a hint.

/// Where a client wants its statements to run, and which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The node it asks for.
    pub node: HintNode,
    /// The statements it is about.
    pub scope: HintScope,
}

/// The node that a hint asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintNode {
    /// The primary, whatever the statement is.
    Primary,
    /// A standby, if the statement may run on one.
    Standby,
    /// Whichever the balancing chooses.
    Any,
}

/// How long a hint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintScope {
    /// For the text that it stands in.
    Statement,
    /// To the end of the transaction that the text runs in or begins.
    Transaction,
    /// To the end of the session, or the next hint of this scope.
    Session,
}

/// The hints of one text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// The one that counts.
    pub hint: Option<Hint>,
    /// Another one was malformed, stood in a line comment or contradicted the first.
    pub ignored: bool,
}

const MARK: &[u8] = b"pgregent:";

impl Hints {
    /// Takes the inside of a block comment into account.
    pub fn block_comment(&mut self, comment: &[u8]) {
        let Some(hint) = marked(comment) else { return };
        match hint.strip_prefix(MARK).and_then(parse) {
            Some(hint) if self.hint.is_none() => self.hint = Some(hint),
            Some(hint) if self.hint == Some(hint) => {}
            _ => self.ignored = true,
        }
    }

    /// Takes a line comment without its dashes into account: it is no place for a hint.
    pub fn line_comment(&mut self, comment: &[u8]) {
        self.ignored |= marked(comment).is_some();
    }

    /// A number for each value that is not the default one.
    pub fn code(self) -> Option<u8> {
        if self == Self::default() {
            return None;
        }
        let wish = self.hint.map_or(0, |Hint { node, scope }| 1 + 3 * node as u8 + scope as u8);
        Some(2 * wish + u8::from(self.ignored))
    }
}

/// A comment from its mark on. The mark is found in any letter case, so that a wrong one is told.
fn marked(comment: &[u8]) -> Option<&[u8]> {
    let comment = comment.trim_ascii_start();
    comment.get(..MARK.len())?.eq_ignore_ascii_case(MARK).then_some(comment)
}

fn parse(wish: &[u8]) -> Option<Hint> {
    let (mut node, mut scope) = (None, None);
    for word in words(wish)? {
        let known = match word {
            (b"node", b"primary") => node.replace(HintNode::Primary).is_none(),
            (b"node", b"standby") => node.replace(HintNode::Standby).is_none(),
            (b"node", b"any") => node.replace(HintNode::Any).is_none(),
            (b"scope", b"statement") => scope.replace(HintScope::Statement).is_none(),
            (b"scope", b"transaction") => scope.replace(HintScope::Transaction).is_none(),
            (b"scope", b"session") => scope.replace(HintScope::Session).is_none(),
            _ => false,
        };
        if !known {
            return None;
        }
    }
    Some(Hint { node: node?, scope: scope.unwrap_or(HintScope::Statement) })
}

/// Most pairs that a hint may have; one more is malformed anyway.
const PAIRS_MAX: usize = 2;

type Pair<'t> = (&'t [u8], &'t [u8]);

/// `key = value` pairs, a comma or blanks between them.
fn words(mut wish: &[u8]) -> Option<impl Iterator<Item = Pair<'_>>> {
    let mut pairs: [Option<Pair<'_>>; PAIRS_MAX] = [None; PAIRS_MAX];
    wish = wish.trim_ascii();
    for pair in &mut pairs {
        if wish.is_empty() {
            break;
        }
        let (key, rest) = word(wish);
        let rest = rest.trim_ascii_start().strip_prefix(b"=")?;
        let (value, rest) = word(rest.trim_ascii_start());
        *pair = Some((key, value));
        wish = rest.trim_ascii_start();
        if let Some(rest) = wish.strip_prefix(b",") {
            wish = rest.trim_ascii_start();
            // A comma must be followed by another pair.
            if wish.is_empty() {
                return None;
            }
        } else if !wish.is_empty() && wish.len() == rest.len() {
            return None;
        }
    }
    wish.is_empty().then(|| pairs.into_iter().flatten())
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(comments: &[&str]) -> Hints {
        let mut hints = Hints::default();
        comments.iter().for_each(|comment| hints.block_comment(comment.as_bytes()));
        hints
    }

    #[test]
    fn every_hint_of_the_grammar_is_told_and_has_its_own_code() {
        let mut codes = vec![Hints::default().code()];
        for (node_name, node) in
            [("primary", HintNode::Primary), ("standby", HintNode::Standby), ("any", HintNode::Any)]
        {
            let plain = told(&[&format!("pgregent: node={node_name}")]);
            for (scope_name, scope) in [
                ("statement", HintScope::Statement),
                ("transaction", HintScope::Transaction),
                ("session", HintScope::Session),
            ] {
                let expected = Hints { hint: Some(Hint { node, scope }), ignored: false };
                for text in [
                    format!("pgregent:node={node_name},scope={scope_name}"),
                    format!(" pgregent: node = {node_name} ,\n scope\t=  {scope_name}  "),
                    format!("pgregent: scope={scope_name} node={node_name}"),
                ] {
                    assert_eq!(told(&[&text]), expected, "{text}");
                }
                assert_eq!(plain == expected, scope == HintScope::Statement);
                codes.push(expected.code());
                codes.push(Hints { ignored: true, ..expected }.code());
            }
        }
        codes.push(Hints { hint: None, ignored: true }.code());
        let count = codes.len();
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn what_is_nearly_a_hint_is_ignored_and_told() {
        for text in [
            "pgregent:",
            "pgregent: primary",
            "pgregent: node",
            "pgregent: node=",
            "pgregent: node=elsewhere",
            "pgregent: node=Primary",
            "PGREGENT: node=primary",
            "pgregent: node='primary'",
            "pgregent: node=primary,",
            "pgregent: node=primary, x",
            "pgregent: node=primary,, scope=session",
            "pgregent: node=primaryscope=session",
            "pgregent: node=primary;scope=session",
            "pgregent: node=primary node=primary",
            "pgregent: scope=session",
            "pgregent: scope=session scope=session node=any",
            "pgregent: node=primary scope=forever",
            "pgregent: node=primary /* pgregent: node=primary */",
        ] {
            assert_eq!(told(&[text]), Hints { hint: None, ignored: true }, "{text}");
        }
    }

    #[test]
    fn ordinary_comments_are_comments() {
        for text in [
            "",
            "pgregent",
            "pgregent node=primary",
            "x pgregent: node=primary",
            "traceparent='00-01',route='%2Fx'",
            "traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01',pgregent:node='primary'",
            "NO LOAD BALANCE",
        ] {
            assert_eq!(told(&[text]), Hints::default(), "{text}");
        }
        let mut hints = Hints::default();
        hints.line_comment(b" update t");
        assert_eq!(hints, Hints::default());
        hints.line_comment(b" pgregent: node=primary");
        assert_eq!(hints, Hints { hint: None, ignored: true });
    }

    #[test]
    fn the_first_counts_and_a_contradiction_is_told() {
        let primary = Some(Hint { node: HintNode::Primary, scope: HintScope::Statement });
        let same = told(&["a", "pgregent: node=primary", "pgregent: node=primary scope=statement"]);
        assert_eq!(same, Hints { hint: primary, ignored: false });
        for second in ["pgregent: node=any", "pgregent: node=primary scope=session", "pgregent: x"] {
            assert_eq!(told(&["pgregent: node=primary", second]), Hints { hint: primary, ignored: true });
        }
    }
}
