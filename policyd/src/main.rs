//! The daemon of a node.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use podgate_bpf::error::chain;
use policyd::args::{Cli, Command};
use policyd::{check, daemon, install, logging};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("policyd: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        Command::Check(args) => {
            logging::start(&args.log).context("read --log-level")?;
            return Ok(check::check(&args)?);
        }
        Command::Install(args) => {
            logging::start(&args.log).context("read --log-level")?;
            return Ok(install::install(args)?);
        }
        Command::Uninstall(args) => {
            logging::start(&args.log).context("read --log-level")?;
            return Ok(install::uninstall(args)?);
        }
        Command::MountBpffs(args) => {
            logging::start(&args.log).context("read --log-level")?;
            return Ok(install::mount_bpffs(&args)?);
        }
    };
    logging::start(&args.log).context("read --log-level")?;
    Ok(daemon::run(args)?)
}
