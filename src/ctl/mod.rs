//! The command line: what `pgregent` can be told to do.
//!
//! | file | what |
//! |---|---|
//! | this | [`Cli`] and the arguments of every verb |
//! | [`check`] | `pgregent check`: the config file, and with `--connect` the nodes |
//! | `connect/` | what `--connect` asks the nodes, what it makes of the answers, how it prints |
//!
//! Invariants: every verb ends with exit code 0 (done, nothing wrong), 1 (something is wrong) or 2
//! (the command line itself). Absent on purpose: the work of `serve` and `demo`, which live in
//! `app` and `demo`; settings on the command line, which live in the config file.

pub mod check;
mod connect;

use clap::{Args, Parser, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;

const TOP_EXAMPLES: &str = "\
Examples:
  pgregent demo                                        a throwaway cluster to play with, on this machine
  pgregent check --config pgregent.toml --connect      is the config right, and are the nodes ready?
  pgregent serve --config pgregent.toml                run
  psql -h 127.0.0.1 -p 5432 -U app mydb                connect through it, as if to PostgreSQL";

/// One address in front of a PostgreSQL primary and its standbys: pooling, read/write splitting, failover.
#[derive(Debug, Parser)]
#[command(name = "pgregent", version, arg_required_else_help = true, after_help = TOP_EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy.
    ///
    /// Runs in the foreground and logs to standard error. SIGHUP reloads the config file, SIGTERM
    /// lets transactions finish and stops ([server] drain_timeout), a second SIGTERM stops at once.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Check a config file, and with --connect the nodes too.
    ///
    /// Tells every problem at once, each with line, column and what to write instead. With --connect
    /// it logs in to every node as the monitor and tells what failover would stumble over: rights
    /// that are missing, settings that slow it down, nodes that do not belong together. Nothing is
    /// changed anywhere. Exit code 0: no problem (warnings may be there); 1: problems.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Play with a throwaway cluster on this machine.
    ///
    /// Creates one primary and two streaming standbys with PostgreSQL's own tools in a temporary
    /// directory, starts the proxy in front of them, shows what happens, and removes everything on
    /// Ctrl-C. With --tour it plays the story by itself: load, a killed primary, a promotion, the
    /// old primary coming back; and ends with exit code 0 only if everything it claims was checked.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Print every setting with its default, range and meaning.
    ///
    /// The output is a config file with every setting commented out: the same as config/reference.toml.
    #[command(after_help = REFERENCE_EXAMPLES)]
    Reference,
}

const SERVE_EXAMPLES: &str = "\
Examples:
  pgregent serve --config /etc/pgregent/pgregent.toml
  kill -HUP $(pidof pgregent)       apply what can be applied; the log lists what needs a restart";

const CHECK_EXAMPLES: &str = "\
Examples:
  pgregent check --config pgregent.toml                the file alone
  pgregent check --config pgregent.toml --connect      the nodes too, with the SQL that mends each finding
  pgregent check --config new.toml && kill -HUP $(pidof pgregent)";

const DEMO_EXAMPLES: &str = "\
Examples:
  pgregent demo                     on port 5432, or the next free one
  pgregent demo --port 6432
  pgregent demo --tour              unattended, with a summary";

const REFERENCE_EXAMPLES: &str = "\
Examples:
  pgregent reference | less
  pgregent reference > config/reference.toml";

/// Arguments of `serve`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// The config file.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `check`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// The config file.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Log in to every node too, as [cluster] monitor_user.
    #[arg(long)]
    pub connect: bool,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct DemoArgs {
    /// Port for clients; without it 5432, or the next free one.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Play the story unattended and check it.
    #[arg(long)]
    pub tour: bool,
    /// Repair nodes that stay broken for a few seconds: rewind or rebuild them and let them rejoin.
    #[arg(long)]
    pub keep_healing: bool,
    /// Let commits wait for one standby, so that a failover can lose no acknowledged write.
    #[arg(long)]
    pub synchronous: bool,
}

/// `pgregent reference`: prints every setting.
///
/// # Errors
/// If `out` cannot be written.
pub fn print_reference(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(crate::config::reference().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_are_read() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Check(args)) = parse("pgregent check --config a.toml --connect") else { panic!("check") };
        assert_eq!(args, CheckArgs { config: PathBuf::from("a.toml"), connect: true });
        let Ok(Command::Serve(args)) = parse("pgregent serve -c a.toml") else { panic!("serve") };
        assert_eq!(args, ServeArgs { config: PathBuf::from("a.toml") });
        let Ok(Command::Demo(args)) = parse("pgregent demo --port 6432 --tour") else { panic!("demo") };
        assert_eq!(args, DemoArgs { port: Some(6432), tour: true, keep_healing: false, synchronous: false });
        assert!(matches!(parse("pgregent reference"), Ok(Command::Reference)));
        for wrong in ["pgregent", "pgregent serve", "pgregent demo --port 0", "pgregent check a.toml"] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    /// Help is where people learn a program: every verb explains itself and shows an example.
    #[test]
    fn help_teaches() {
        let mut command = Cli::command();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Examples:") && help.len() > 300, "{help}");
        }
    }
}
