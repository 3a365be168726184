//! Reads a file of rules and the files that it includes (`@file`, `include`, `include_if_exists`, `include_dir`).
//!
//! Invariants: everything is bounded (bytes over all files, depth, lines), so that files that
//! include each other end; every problem has its file and line. Absent on purpose: the meaning of lines.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::token::{Field, fields, logical_lines};

/// Bytes read over all files, those read twice counted twice.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Files opened.
const FILES_MAX: usize = 1_000;
/// How deep files include files (PostgreSQL's `CONF_FILE_MAX_DEPTH`).
const DEPTH_MAX: usize = 10;
/// Lines kept; a login looks at them one by one.
const LINES_MAX: usize = 20_000;
/// Problems told.
pub(super) const PROBLEMS_MAX: usize = 100;

/// Where files come from. Reading blocks: not for the data plane's threads.
pub trait Files {
    /// The text of a file of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for a longer file and for one that is not UTF-8.
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<String>;

    /// The names in a directory.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;
}

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<String> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        let flaw = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if bytes.len() > bytes_max {
            return Err(flaw(format!("longer than the {bytes_max} bytes left of {BYTES_MAX} for all files")));
        }
        String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
            flaw(format!("line {line} is not UTF-8"))
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A line with something on it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) fields: Vec<Field>,
}

/// What was read, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) lines: Vec<Line>,
    pub(super) problems: Vec<String>,
}

/// Reads `path` and all that it includes.
pub(super) fn read(path: &Path, files: &dyn Files) -> Gathered {
    let mut reader = Reader { files, read: Gathered::default(), opened: 0, bytes: 0 };
    let text = match reader.open(path) {
        Ok(text) => text,
        Err(why) => {
            reader.problem(format!("{}: cannot be read: {why}", path.display()));
            return reader.read;
        }
    };
    let lines = reader.lines(path, &text, 0);
    reader.read.lines = lines;
    reader.read
}

struct Reader<'f> {
    files: &'f dyn Files,
    read: Gathered,
    opened: usize,
    bytes: usize,
}

impl Reader<'_> {
    fn problem(&mut self, text: String) {
        if self.read.problems.len() < PROBLEMS_MAX {
            self.read.problems.push(text);
        }
    }

    fn open(&mut self, path: &Path) -> Result<String, io::Error> {
        self.opened += 1;
        if self.opened > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files are included")));
        }
        let text = self.files.read(path, BYTES_MAX.saturating_sub(self.bytes))?;
        self.bytes += text.len();
        Ok(text)
    }

    /// The lines of a file, those of included files in their places.
    fn lines(&mut self, path: &Path, text: &str, depth: usize) -> Vec<Line> {
        let file: Arc<str> = path.display().to_string().into();
        let mut lines = Vec::new();
        for logical in logical_lines(text.trim_start_matches('\u{feff}')) {
            let place = Place { file: Arc::clone(&file), line: logical.number };
            if lines.len() >= LINES_MAX {
                self.problem(format!("{place}: more than {LINES_MAX} lines"));
                break;
            }
            if logical.text.contains('\0') {
                self.problem(format!("{place}: holds a NUL character"));
                continue;
            }
            let Some(fields) = self.expand(path, fields(&logical.text), &place, depth) else { continue };
            match include_of(&fields) {
                Some((directive, target)) => {
                    let included = self.include(directive, &beside(path, target), &place, depth);
                    lines.extend(included);
                }
                None if fields.is_empty() => {}
                None => lines.push(Line { place, fields }),
            }
        }
        lines
    }

    /// Puts the tokens of the files named by `@file` in the place of their names.
    fn expand(&mut self, path: &Path, fields: Vec<Field>, place: &Place, depth: usize) -> Option<Vec<Field>> {
        if !fields.iter().flatten().any(|token| token.included().is_some()) {
            return Some(fields);
        }
        let mut expanded = Vec::with_capacity(fields.len());
        for field in fields {
            let mut tokens = Field::new();
            for token in field {
                match token.included() {
                    None => tokens.push(token),
                    Some(file) => {
                        let lines = self.included_file(&beside(path, file), place, depth, Missing::IsWrong)?;
                        tokens.extend(lines.into_iter().flat_map(|line| line.fields).flatten());
                    }
                }
            }
            // As in PostgreSQL, an empty file is an empty field, which is no field.
            if !tokens.is_empty() {
                expanded.push(tokens);
            }
        }
        Some(expanded)
    }

    fn include(&mut self, directive: Directive, target: &Path, place: &Place, depth: usize) -> Vec<Line> {
        match directive {
            Directive::File(missing) => self.included_file(target, place, depth, missing).unwrap_or_default(),
            Directive::Directory => {
                let mut names = match self.files.names(target) {
                    Ok(names) => names,
                    Err(why) => {
                        self.problem(format!("{place}: cannot read directory {}: {why}", target.display()));
                        return Vec::new();
                    }
                };
                names.retain(|name| name.ends_with(".conf") && name.len() > 5 && !name.starts_with('.'));
                names.sort();
                let mut lines = Vec::new();
                for name in names {
                    let file = self.included_file(&target.join(name), place, depth, Missing::IsWrong);
                    lines.extend(file.unwrap_or_default());
                }
                lines
            }
        }
    }

    /// The lines of an included file; `None` if it could not be had, and that was told.
    fn included_file(&mut self, path: &Path, place: &Place, depth: usize, missing: Missing) -> Option<Vec<Line>> {
        if depth >= DEPTH_MAX {
            self.problem(format!("{place}: cannot include {}: more than {DEPTH_MAX} files deep", path.display()));
            return None;
        }
        match self.open(path) {
            Ok(text) => Some(self.lines(path, &text, depth + 1)),
            Err(why) if why.kind() == io::ErrorKind::NotFound && missing == Missing::IsFine => Some(Vec::new()),
            Err(why) => {
                self.problem(format!("{place}: cannot include {}: {why}", path.display()));
                None
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsFine,
    IsWrong,
}

#[derive(Clone, Copy)]
enum Directive {
    File(Missing),
    Directory,
}

/// The file that a line includes, if it is such a line.
fn include_of(fields: &[Field]) -> Option<(Directive, &str)> {
    let [first, second] = fields else { return None };
    let directive = match first.first()?.text.as_str() {
        "include" => Directive::File(Missing::IsWrong),
        "include_if_exists" => Directive::File(Missing::IsFine),
        "include_dir" => Directive::Directory,
        _ => return None,
    };
    Some((directive, second.first()?.text.as_str()))
}

/// A relative path counts from the directory of the file that names it.
fn beside(file: &Path, named: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(named)
}
