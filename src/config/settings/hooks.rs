//! Rows of `[hooks]`: programs that run when the primary changes.
//!
//! Invariants: a program and its arguments are a list, so that no shell takes them apart. Absent on purpose: what
//! a program is told (the manual's table of variables).

use super::Default::{Told, Toml};
use super::View::Whole;
use super::{Kind, MINUTE, SECOND, Section, Shape, Shown, duration, row};

pub(super) static HOOKS: Section = Section {
    path: "hooks",
    shape: Shape::One,
    doc: "Programs that pgregent runs when the primary changes, each with its arguments as a list, without a shell. \
          What they are told stands in environment variables: docs/operations.md.",
    settings: &[
        row(
            "fence_command",
            Kind::Texts,
            Told("none", r#"["/etc/pgregent/fence", "--off"]"#),
            Whole(|c| Shown::list(&c.hooks.fence_command)),
            "Turns the old primary off. Exit status 0: it certainly writes nothing any more. See [cluster] fencing.",
        ),
        row(
            "before_promotion",
            Kind::Texts,
            Told("none", r#"["/etc/pgregent/may_promote"]"#),
            Whole(|c| Shown::list(&c.hooks.before_promotion)),
            "Runs before a standby is chosen for good. Another exit status than 0: the next candidate.",
        ),
        row(
            "after_promotion",
            Kind::Texts,
            Told("none", r#"["/etc/pgregent/promoted"]"#),
            Whole(|c| Shown::list(&c.hooks.after_promotion)),
            "Runs after a promotion of this proxy's, once writes flow again.",
        ),
        row(
            "on_role_change",
            Kind::Texts,
            Told("none", r#"["/etc/pgregent/role_changed"]"#),
            Whole(|c| Shown::list(&c.hooks.on_role_change)),
            "Runs when this proxy routes writes to another primary than before, whoever promoted it.",
        ),
        row(
            "on_rejoin",
            Kind::Texts,
            Told("none", r#"["/etc/pgregent/rejoined"]"#),
            Whole(|c| Shown::list(&c.hooks.on_rejoin)),
            "Runs when a former primary streams as a standby again.",
        ),
        row(
            "timeout",
            duration(SECOND, 10 * MINUTE),
            Toml(r#""30s""#),
            Whole(|c| Shown::duration(c.hooks.timeout)),
            "How long each may run; then it and all that it started are killed, and it counts as failed.",
        ),
    ],
};
