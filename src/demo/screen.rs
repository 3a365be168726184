//! Lines that stay and lines that are redrawn.
//!
//! Invariants: on a terminal the status block is always the last thing shown and is replaced in place;
//! elsewhere it is printed only when its key changes, so that a log stays short. Absent on purpose: raw
//! mode and any terminal library.

use std::io::{self, IsTerminal, Write};

/// Where the demo shows things.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    /// Lines of the status block on screen right now.
    drawn: usize,
    last_key: String,
}

impl Screen {
    /// For standard output.
    pub(super) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0, last_key: String::new() }
    }

    /// Shows a line that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.write(&format!("{}{text}\n", self.erase()));
        self.drawn = 0;
    }

    /// The person typed a line, so the cursor is no longer where we left it.
    pub(super) fn was_scrolled(&mut self) {
        self.drawn = 0;
    }

    /// Shows the status block. `key` is the part of it whose change is news.
    pub(super) fn show(&mut self, lines: &[String], key: &str) {
        if self.terminal {
            // Without automatic wrapping, one line is one row.
            self.write(&format!("{}\x1b[?7l{}\n\x1b[?7h", self.erase(), lines.join("\n")));
            self.drawn = lines.len();
        } else if key != self.last_key {
            self.write(&format!("{}\n", lines.join("\n")));
        }
        key.clone_into(&mut self.last_key);
    }

    fn erase(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.drawn) }
    }

    fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        // Nobody is left to tell when standard output is closed.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
