//! `vigia engine-host`: the process of one engine, started by the daemon. Nobody types this.

use crate::{cli::Outcome, engines};

/// The process of one engine; started by the daemon
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The name of the engine, for those who list processes
    name: String,
}

pub(super) fn run(Args { name: _ }: Args) -> Outcome {
    Ok(engines::serve()?)
}
