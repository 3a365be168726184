//! The `pgregent` binary: reads the command line and hands over to the library.
//!
//! Exit codes: 0 done, 1 something is wrong, 2 the command line itself. Absent on purpose: everything
//! else.

use anyhow::Context;
use clap::Parser;
use pgregent::config::Report;
use pgregent::ctl::{Cli, Command, ServeArgs, check, print_reference};
use pgregent::demo;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "pgregent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve(&args),
        Command::Check(args) => Ok(check::run(&args, &mut io::stdout())?.into()),
        Command::Demo(args) => demo::run(&demo::Options {
            port: args.port,
            tour: args.tour,
            keep_healing: args.keep_healing,
            synchronous: args.synchronous,
            program: None,
        }),
        Command::Reference => {
            print_reference(&mut io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let report = Report::of_file(&args.config);
    let warnings: Vec<String> =
        report.warnings.iter().map(|warning| warning.line_in(&report.file).to_string()).collect();
    let config = match report.into_result() {
        Ok(config) => config,
        Err(problems) => {
            writeln!(io::stderr(), "{problems}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    pgregent::admin::log::init(&config.log).context("[log]")?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    pgregent::app::run(&args.config, config)?;
    Ok(ExitCode::SUCCESS)
}
