//! `config/reference.toml`, written from the table of settings.
//!
//! Invariants: every setting is there, commented out with its default (or an example), and the
//! whole is valid once those lines are uncommented. Absent on purpose: prose that the table lacks.

use super::settings::{Default, Kind, Reload, SECTIONS, Section, Setting, Shape, Zero};
use super::value::{format_duration, format_size};

/// Lines are wrapped at this width, characters.
const WIDTH: usize = 100;

const HEAD: &str = "\
# Every setting of pgregent. Written by `pgregent reference`: do not edit.
#
# Lines that begin with \"#\" and a name show a default, or an example where there is no default.
# Durations: \"500ms\", \"30s\", \"10min\", \"1h\", \"1d\". Sizes: \"64KiB\", \"16MiB\", \"1GiB\", or a number of bytes.
# Relative paths count from the directory of the config file.
# \"reload\": SIGHUP applies a change. \"restart\": a change waits for the next start.
";

/// The whole reference.
#[must_use]
pub fn reference() -> String {
    let mut out = HEAD.to_owned();
    for section in SECTIONS {
        out.push('\n');
        comment(&mut out, section.doc);
        out.push_str(&format!("{}{}\n", if section.shape == Shape::Many { "#" } else { "" }, section.header()));
        for setting in section.settings {
            write_setting(&mut out, section, setting);
        }
    }
    out
}

fn write_setting(out: &mut String, section: &Section, setting: &Setting) {
    out.push('\n');
    comment(out, setting.doc);
    let default = match setting.default {
        Default::Toml(text) => format!("default {text}"),
        Default::Required(_) => "must be written".to_owned(),
        Default::Told(told, _) => format!("default: {told}"),
    };
    let reload = match setting.reload {
        Reload::Live => "reload",
        Reload::Restart => "restart",
    };
    comment(out, &format!("({}; {default}; {reload})", kind_told(setting.kind)));
    let (Default::Toml(value) | Default::Required(value) | Default::Told(_, value)) = setting.default;
    debug_assert!(section.setting(setting.key).is_some());
    out.push_str(&format!("#{} = {value}\n", setting.key));
}

/// What may be written, in words.
fn kind_told(kind: Kind) -> String {
    let zero = |zero: Zero, text: &str| if zero == Zero::Off { format!(", or {text}") } else { String::new() };
    match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Count { min, max } => format!("{min} to {max}"),
        Kind::Duration { min, max, zero: off } => {
            format!("{} to {}{}", format_duration(min), format_duration(max), zero(off, "0s"))
        }
        Kind::Size { min, max, zero: off } => {
            format!("{} to {}{}", format_size(min), format_size(max), zero(off, "0"))
        }
        Kind::Word(words) => words.join(" | "),
        Kind::Text => "text".to_owned(),
        Kind::Name => "letters, digits, - _ .".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Secret => "secret".to_owned(),
        Kind::Listen => "address:port".to_owned(),
        Kind::Listens => "list of address:port".to_owned(),
        Kind::Address => "host:port".to_owned(),
        Kind::Texts => "list of names".to_owned(),
    }
}

/// A comment, wrapped.
fn comment(out: &mut String, text: &str) {
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}
