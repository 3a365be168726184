//! Settings in use, and what a reload would change.
//!
//! Invariants: every row of the table of settings is looked at; secrets compare, and are never
//! printed. Absent on purpose: applying changes.

use super::settings::{Default, Reload, SECTIONS, Section, Setting, Shown, View};
use super::{Config, NodeConfig};
use std::fmt;

/// A setting and its value in use.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingInUse {
    /// Dotted path: `pool.size`, `node.pg1.weight`, `auth.user.alice.password`.
    pub key: String,
    /// Its value; prints without secrets.
    pub value: Shown,
    /// The default as TOML, or in words; empty if it must be written.
    pub default: &'static str,
    /// What SIGHUP does with a change.
    pub reload: Reload,
}

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Dotted path: `pool.size`, `node.pg1.weight`; `node` if nodes came, went or changed places.
    pub key: String,
    /// Value before; `None` if the node or user is new.
    pub before: Option<Shown>,
    /// Value after; `None` if the node or user is gone.
    pub after: Option<Shown>,
    /// Whether SIGHUP applies it; otherwise it needs a restart.
    pub reloadable: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(Shown::Hidden(_)), Some(Shown::Hidden(_))) => write!(f, "{}: changed", self.key)?,
            (Some(before), Some(after)) => write!(f, "{}: {before} -> {after}", self.key)?,
            (None, Some(after)) => write!(f, "{}: added, {after}", self.key)?,
            (Some(before), None) => write!(f, "{}: removed, was {before}", self.key)?,
            (None, None) => write!(f, "{}: changed", self.key)?,
        }
        f.write_str(if self.reloadable { " (applied by reload)" } else { " (needs a restart)" })
    }
}

impl Config {
    /// All settings in use, in the order of the reference.
    #[must_use]
    pub fn settings(&self) -> Vec<SettingInUse> {
        let mut list = Vec::new();
        for &section in SECTIONS {
            match section.path {
                "node" => self.nodes.iter().for_each(|node| {
                    self.push(section, &node.name, &mut list, |view| match view {
                        View::Node(show) => Some(show(node)),
                        _ => None,
                    })
                }),
                "witness" => self.cluster.witnesses.iter().for_each(|witness| {
                    self.push(section, &witness.name, &mut list, |view| match view {
                        View::Witness(show) => Some(show(witness)),
                        _ => None,
                    })
                }),
                "route.redirect" => self.route.redirects.iter().for_each(|redirect| {
                    self.push(section, &redirect.name, &mut list, |view| match view {
                        View::Redirect(show) => Some(show(redirect)),
                        _ => None,
                    })
                }),
                "auth.user" => {
                    self.auth.users.iter().for_each(|user| {
                        self.push(section, &user.name, &mut list, |view| match view {
                            View::User(show) => Some(show(user)),
                            _ => None,
                        })
                    });
                }
                _ => self.push(section, "", &mut list, |view| match view {
                    View::Whole(show) => Some(show(self)),
                    _ => None,
                }),
            }
        }
        list
    }

    /// Adds one table's settings.
    fn push(
        &self,
        section: &'static Section,
        item: &str,
        list: &mut Vec<SettingInUse>,
        show: impl Fn(View) -> Option<Shown>,
    ) {
        let prefix = if item.is_empty() { section.path.to_owned() } else { format!("{}.{item}", section.path) };
        list.extend(section.settings.iter().filter_map(|setting| {
            let value = show(setting.view)?;
            let key = format!("{prefix}.{}", setting.key);
            Some(SettingInUse { key, value, default: default_text(setting), reload: setting.reload })
        }));
    }

    /// What differs in `new`, in the order of the reference.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let (before, after) = (self.settings(), new.settings());
        let names = |config: &Self| config.nodes.iter().map(|node: &NodeConfig| node.name.clone()).collect::<Vec<_>>();
        let mut changes = Vec::new();
        if names(self) != names(new) {
            // A node's index is its identity within the process, so that any other list needs a new one.
            let list = |config: &Self| Some(Shown::Text(names(config).join(", ")));
            changes.push(Change { key: "node".to_owned(), before: list(self), after: list(new), reloadable: false });
        }
        for old in &before {
            let now = after.iter().find(|now| now.key == old.key).map(|now| &now.value);
            if now != Some(&old.value) {
                changes.push(change(old, Some(&old.value), now));
            }
        }
        for now in after.iter().filter(|now| !before.iter().any(|old| old.key == now.key)) {
            changes.push(change(now, None, Some(&now.value)));
        }
        changes
    }
}

fn change(setting: &SettingInUse, before: Option<&Shown>, after: Option<&Shown>) -> Change {
    let reloadable = setting.reload == Reload::Live;
    Change { key: setting.key.clone(), before: before.cloned(), after: after.cloned(), reloadable }
}

fn default_text(setting: &Setting) -> &'static str {
    match setting.default {
        Default::Toml(text) | Default::Told(text, _) => text,
        Default::Required(_) => "",
    }
}
