//! Text to class: shape, cache, grammar, rules, and the sum over the statements of a string.
//!
//! Invariants: a text that cannot be examined is a write with uncertain effects, unless it is plainly one statement
//! that leaves nothing behind; what does not parse is not kept, because the fault may lie in a literal that the shape
//! left out. One thread owns a classifier. Absent on purpose: where anything goes.

use std::sync::Arc;

use hashbrown::HashSet;
use memchr::{memchr, memmem};
use pg_query::protobuf::RawStmt;

use super::cache::{CacheCounts, ClassCache};
use super::class::{Access, Change, Classification, Effects, PinReason, Step, TxControl, Why};
use super::functions::FunctionLists;
use super::grammar::{self, NoTree, StringSyntax};
use super::hint::Hints;
use super::lexer::{Kind, Lexer};
use super::recent::{RecentTexts, TEXT_BYTES_MAX};
use super::shape::{NoShape, SHAPE_BYTES_MAX, Shape, literals_matter};
use super::statement::{self, Verdict};

/// Of longer texts the grammar gets one with shorter lists and literals, bytes.
const WHOLE_BYTES_MAX: usize = 2 << 10;

/// What of the configuration matters here.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longer texts are not looked into, bytes.
    pub classify_bytes_max: usize,
    /// Functions that only read, `name` or `schema.name`.
    pub read_functions: Vec<String>,
    /// Functions that write, `name` or `schema.name`; stronger than `read_functions` and than what is built in.
    pub write_functions: Vec<String>,
}

/// What a catalog says to classes; see `crate::catalog`.
pub trait Judge {
    /// Two judges of one version say the same to everything.
    fn version(&self) -> u64;
    /// May it see this class differently than its text does? Asked for every statement.
    fn concerns(&self, class: &Classification) -> bool;
    /// Read or write as it sees this class, be it judged already or not.
    fn access(&self, class: &Classification) -> Access;
    /// The class as it sees it.
    fn judge(&self, class: &Arc<Classification>) -> Arc<Classification>;
}
/// Shapes that standbys have refused.
pub type LearnedShapes = HashSet<Arc<[u8]>, foldhash::fast::RandomState>;

/// Classifies texts and remembers the classes of their shapes. Cheap to own: one per worker thread.
pub struct Classifier {
    bytes_max: usize,
    lists: FunctionLists,
    cache: ClassCache,
    recent: RecentTexts,
    learned: Arc<LearnedShapes>,
    /// The last text's shape; kept to reuse its memory.
    shape: Shape,
    hits: u64,
    misses: u64,
}

impl Classifier {
    /// `seed` should be random per process.
    #[must_use]
    pub fn new(seed: u64, settings: &Settings) -> Self {
        Self {
            bytes_max: settings.classify_bytes_max,
            lists: FunctionLists::new(&settings.read_functions, &settings.write_functions),
            cache: ClassCache::new(seed),
            recent: RecentTexts::default(),
            learned: Arc::default(),
            shape: Shape::default(),
            hits: 0,
            misses: 0,
        }
    }

    /// What may this text do? `text` is what the client sent, without the terminating NUL.
    ///
    /// A text seen lately costs a hash and a comparison, another one of a known shape one pass; neither allocates. A new
    /// shape runs the grammar (tens of microseconds).
    pub fn classify(&mut self, text: &[u8], strings: StringSyntax) -> Arc<Classification> {
        self.find(text, strings).0
    }

    /// The same as the catalog of its database sees it. What that says is remembered beside the class.
    pub fn classify_by(&mut self, judge: &impl Judge, text: &[u8], strings: StringSyntax) -> Arc<Classification> {
        let (class, place) = self.find(text, strings);
        match place {
            _ if !judge.concerns(&class) => class,
            Some(at) => self.cache.judged(at, judge.version(), || judge.judge(&class)),
            None => judge.judge(&class),
        }
    }

    /// The class of a text, and its place in the cache.
    fn find(&mut self, text: &[u8], strings: StringSyntax) -> (Arc<Classification>, Option<usize>) {
        if strings != StringSyntax::Standard || text.len() > TEXT_BYTES_MAX {
            return self.find_by_shape(text, strings);
        }
        let hash = self.cache.hash(text);
        if let Some(place) = self.recent.find(hash, text)
            && let Some(class) = self.cache.at(place)
        {
            self.hits += 1;
            return (Arc::clone(class), Some(place.at));
        }
        let found = self.find_by_shape(text, strings);
        if let Some(at) = found.1 {
            self.recent.remember(hash, text, self.cache.place(at));
        }
        found
    }

    /// The same for a text that was not seen lately.
    fn find_by_shape(&mut self, text: &[u8], strings: StringSyntax) -> (Arc<Classification>, Option<usize>) {
        if text.len() > self.bytes_max {
            return (self.unexamined(text, Why::TooLong), None);
        }
        // In an encoding other than UTF-8 a quote or a backslash may be half a character.
        let Some(utf8) = std::str::from_utf8(text).ok().filter(|_| memchr(0, text).is_none()) else {
            return (self.unexamined(text, Why::NotText), None);
        };
        let shape = self.shape.copy(text);
        if strings == StringSyntax::Backslash {
            return (self.examine_shapeless(utf8, strings, shape.unwrap_or_default()), None);
        }
        let hints = match shape {
            Ok(hints) => hints,
            Err(NoShape::TooLong) => return (self.unexamined(text, Why::TooLong), None),
            Err(NoShape::Unlexable) => return (self.examine_unlexable(utf8), None),
        };
        let literals_matter = match self.cache.find(self.shape.bytes()) {
            Some((Some(class), at)) => {
                self.hits += 1;
                return (Arc::clone(class), Some(at));
            }
            Some((None, _)) => true,
            None => self.shape.has_literal() && literals_matter(text),
        };
        if literals_matter {
            return self.find_with_literals(utf8, hints);
        }
        let reduced = if text.len() > WHOLE_BYTES_MAX { self.shape.reduce(text) } else { None };
        if reduced.is_none() && text.len() > SHAPE_BYTES_MAX {
            return (self.unexamined(text, Why::TooLong), None);
        }
        self.examine_and_keep(reduced.as_deref().unwrap_or(utf8), hints)
    }

    /// A text whose shape without literals, which was copied last, says too little.
    fn find_with_literals(&mut self, text: &str, hints: Hints) -> (Arc<Classification>, Option<usize>) {
        self.cache.insert(self.shape.bytes(), None);
        if self.shape.copy_with_literals(text.as_bytes()).is_err() {
            return (self.unexamined(text.as_bytes(), Why::TooLong), None);
        }
        if let Some((Some(class), at)) = self.cache.find(self.shape.bytes()) {
            self.hits += 1;
            return (Arc::clone(class), Some(at));
        }
        self.examine_and_keep(text, hints)
    }

    /// Asks the grammar about a text whose shape was copied last.
    fn examine_and_keep(&mut self, text: &str, hints: Hints) -> (Arc<Classification>, Option<usize>) {
        self.misses += 1;
        let mut class = self.examine(text, StringSyntax::Standard, hints, self.shape.bytes());
        if may_read(&class) && self.learned.contains(self.shape.bytes()) {
            class = Classification { access: Access::Write, why: Why::Refused, names: None, ..class };
        }
        let class = Arc::new(class);
        let keeps = class.why != Why::DoesNotParse;
        let place = if keeps { self.cache.insert(self.shape.bytes(), Some(Arc::clone(&class))) } else { None };
        (class, place)
    }

    /// Versions may split it in other ways, so it is no read, whatever the grammar or a catalog says.
    fn examine_unlexable(&mut self, text: &str) -> Arc<Classification> {
        let class = self.examine_shapeless(text, StringSyntax::Standard, Hints::default());
        let class = Classification { names: None, ..Arc::unwrap_or_clone(class) };
        Arc::new(match class.access {
            Access::Write => class,
            Access::Read => Classification { access: Access::Write, why: Why::UnknownSyntax, ..class },
        })
    }

    /// The shape of a text that is a read by all that is known; `None`: it is none, or has no shape to remember. Only
    /// for texts with [`StringSyntax::Standard`].
    pub fn shape_of_read(&mut self, text: &[u8]) -> Option<&[u8]> {
        let class = self.find_by_shape(text, StringSyntax::Standard).0;
        // That left the text's shape behind, unless the text has none; then it was a write anyway.
        may_read(&class).then(|| self.shape.bytes())
    }

    /// Is this text refused by standbys?
    pub fn has_learned(&mut self, text: &[u8]) -> bool {
        self.classify(text, StringSyntax::Standard).why == Why::Refused
    }

    /// Goes by these shapes from now on: standbys have refused what looks like a read.
    pub fn go_by(&mut self, learned: Arc<LearnedShapes>) {
        let before = std::mem::replace(&mut self.learned, learned);
        before.symmetric_difference(&self.learned).for_each(|shape| self.cache.forget(shape));
    }

    /// How the cache did.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        let (entries, bytes) = self.cache.size();
        CacheCounts { hits: self.hits, misses: self.misses, entries, bytes: bytes + self.recent.bytes() }
    }

    /// Without a shape that could be trusted, every word of the text counts.
    fn examine_shapeless(&mut self, text: &str, strings: StringSyntax, hints: Hints) -> Arc<Classification> {
        if text.len() > SHAPE_BYTES_MAX {
            return self.unexamined(text.as_bytes(), Why::TooLong);
        }
        self.misses += 1;
        Arc::new(self.examine(text, strings, hints, text.to_ascii_lowercase().as_bytes()))
    }

    /// Asks the grammar. `words`: where to look for words that pin, lower case.
    fn examine(&self, text: &str, strings: StringSyntax, hints: Hints, words: &[u8]) -> Classification {
        let class = match grammar::parse(text, strings) {
            Ok(statements) => self.sum(&statements, words),
            // A newer server may know it all the same, and then nobody knows what it did.
            Err(NoTree::DoesNotParse) => write(Why::DoesNotParse, true),
            Err(NoTree::TooDeep) => write(Why::TooDeep, !leaves_nothing_plainly(text.as_bytes())),
        };
        Classification { hint: hints.hint, hint_ignored: hints.ignored, ..class }
    }

    fn unexamined(&mut self, text: &[u8], why: Why) -> Arc<Classification> {
        self.misses += 1;
        Arc::new(write(why, !leaves_nothing_plainly(text)))
    }

    /// The class of a string of statements.
    fn sum(&self, statements: &[RawStmt], words: &[u8]) -> Classification {
        let mut verdicts: Vec<Verdict> = statements.iter().map(|statement| self.verdict(statement)).collect();
        verdicts.iter_mut().for_each(|verdict| find_words(verdict, words));
        let steps = (0..).zip(&verdicts).filter_map(|(at, verdict)| step(at, verdict)).collect();
        let alone = verdicts.len() == 1;
        let sum = verdicts.into_iter().map(|verdict| if alone { verdict } else { among_several(verdict) }).reduce(add);
        let sum = sum.unwrap_or_else(|| Verdict::new(Access::Read, Why::Empty));
        Classification {
            access: sum.access,
            statements: u16::try_from(statements.len()).unwrap_or(u16::MAX),
            tx: sum.tx,
            effects: sum.effects,
            hint: None,
            hint_ignored: false,
            why: sum.why,
            functions: sum.functions.into(),
            names: (!sum.certain && !sum.names.is_empty()).then(|| Arc::new(sum.names)),
            steps,
        }
    }

    fn verdict(&self, statement: &RawStmt) -> Verdict {
        match statement.stmt.as_ref().and_then(|node| node.node.as_ref()) {
            Some(node) => statement::rule(node, &self.lists),
            None => Verdict { examined: false, ..Verdict::new(Access::Write, Why::UnknownSyntax) },
        }
    }
}

/// Is it a read, or may a catalog take it for one?
fn may_read(class: &Classification) -> bool {
    class.access == Access::Read || class.names.is_some()
}

/// What one statement does to the session, if anything.
fn step(at: u16, verdict: &Verdict) -> Option<Step> {
    let nothing = verdict.effects.is_none() && verdict.tx == TxControl::None;
    (!nothing).then(|| Step { at, tx: verdict.tx.clone(), effects: verdict.effects.clone() })
}

/// What the rules did not look into may do something by the words in it. That is the shape where there is one: words
/// in literals that the shape leaves out must not speak for every text of that shape.
fn find_words(verdict: &mut Verdict, words: &[u8]) {
    let mentions = |word: &str| memmem::find(words, word.as_bytes()).is_some();
    if verdict.access == Access::Write && mentions("pg_temp") {
        verdict.effects.pins.insert(PinReason::TempTable);
    }
    if verdict.examined {
        return;
    }
    if mentions("set_config") {
        verdict.effects.uncertain = true;
        verdict.effects.changes_tx_defaults = true;
    }
    if mentions("pg_advisory_lock") || mentions("pg_try_advisory_lock") {
        verdict.effects.pins.insert(PinReason::AdvisoryLock);
    }
}

fn write(why: Why, uncertain: bool) -> Classification {
    let effects = Effects { uncertain, ..Effects::default() };
    let step = Step { at: 0, tx: TxControl::None, effects: effects.clone() };
    let steps = if uncertain { Box::from([step]) } else { Box::default() };
    Classification {
        access: Access::Write,
        statements: 1,
        tx: TxControl::None,
        effects,
        hint: None,
        hint_ignored: false,
        why,
        functions: Box::default(),
        names: None,
        steps,
    }
}

/// A statement that has company: its change is told by its step only, its transaction control is mixed.
fn among_several(mut verdict: Verdict) -> Verdict {
    verdict.effects.change = Change::None;
    if verdict.tx != TxControl::None {
        verdict.tx = TxControl::Mixed;
    }
    verdict
}

/// Both statements; the reason is the first write's.
fn add(mut sum: Verdict, next: Verdict) -> Verdict {
    if sum.access == Access::Read && next.access == Access::Write {
        sum.access = Access::Write;
        sum.why = next.why;
    }
    if next.tx != TxControl::None {
        sum.tx = next.tx;
    }
    sum.certain |= next.certain;
    sum.names.unknown.extend(next.names.unknown);
    sum.names.taken.extend(next.names.taken);
    sum.names.relations.extend(next.names.relations);
    sum.names.truncated |= next.names.truncated;
    sum.functions.extend(next.functions);
    sum.effects.pins = sum.effects.pins.union(next.effects.pins);
    sum.effects.changes_tx_defaults |= next.effects.changes_tx_defaults;
    sum.effects.uncertain |= next.effects.uncertain;
    sum.effects.releases |= next.effects.releases;
    sum.effects.sequences = sum.effects.sequences.max(next.effects.sequences);
    sum.effects.schema |= next.effects.schema;
    sum.effects.logins |= next.effects.logins;
    sum.effects.code |= next.effects.code;
    sum.effects.shows_token |= next.effects.shows_token;
    sum.effects.shows_statements |= next.effects.shows_statements;
    sum.effects.signals = sum.effects.signals.max(next.effects.signals);
    sum.effects.vacates = sum.effects.vacates.take().or(next.effects.vacates);
    sum
}

/// Is a text that was not examined plainly one statement of a kind that changes data or reads it, and names nothing
/// that stays behind (a bulk INSERT, say)?
fn leaves_nothing_plainly(text: &[u8]) -> bool {
    let is_single =
        memchr(b';', text).is_none_or(|at| text[at..].iter().all(|byte| *byte == b';' || byte.is_ascii_whitespace()));
    let mentions = |word: &str| {
        memmem::find(text, word.as_bytes()).is_some()
            || memmem::find(text, word.to_ascii_uppercase().as_bytes()).is_some()
    };
    let Some(first) = first_word(text).filter(|_| is_single) else { return false };
    let creates_nothing = match first.to_ascii_lowercase().as_slice() {
        b"insert" | b"update" | b"delete" | b"merge" | b"copy" => true,
        b"select" | b"with" | b"values" | b"table" => !mentions("into"),
        _ => false,
    };
    creates_nothing && !mentions("set_config") && !mentions("advisory_lock")
}

fn first_word(text: &[u8]) -> Option<&[u8]> {
    let mut lexer = Lexer::new(text);
    loop {
        let token = lexer.next_token().ok()??;
        match token.kind {
            Kind::Word => return text.get(token.start..token.end),
            Kind::Punctuation if text.get(token.start) == Some(&b'(') => {}
            _ => return None,
        }
    }
}
