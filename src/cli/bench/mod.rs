//! `vigia bench`: figures that anybody can measure again. Each bench starts a daemon of its own, in a temporary
//! folder, and prints what it measured beside what is wanted.

mod child;
mod figures;
mod ingest;

use clap::Subcommand;

use crate::cli::Outcome;

/// Measure this machine; each bench starts a daemon of its own
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Ingest(ingest::Args),
}

pub(super) fn run(args: Args) -> Outcome {
    match args.bench {
        Bench::Ingest(args) => ingest::run(args),
    }
}
