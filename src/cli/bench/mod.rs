//! `vigia bench`: figures that anybody can measure again. A bench that needs a daemon starts one of its own, in a
//! temporary folder; each prints what it measured, beside what is wanted where that is known.

mod asr;
mod channels;
mod child;
mod clips;
mod der;
mod diarize;
mod durability;
mod figures;
mod gpu;
mod ingest;
mod ledger;
mod live;
mod load;
mod long;
mod mixes;
mod onnx;
mod scratch;
mod sounds;
mod utterance;

use clap::Subcommand;

use crate::cli::Outcome;

/// Measure this machine
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Asr(asr::Args),
    Gpu(gpu::Args),
    Ingest(ingest::Args),
    Ledger(ledger::Args),
    Live(live::Args),
    Load(load::Args),
    Long(long::Args),
    Diarize(diarize::Args),
    Durability(durability::Args),
}

pub(super) fn run(args: Args) -> Outcome {
    match args.bench {
        Bench::Asr(args) => asr::run(&args),
        Bench::Gpu(args) => gpu::run(args),
        Bench::Ingest(args) => ingest::run(args),
        Bench::Ledger(args) => ledger::run(args),
        Bench::Live(args) => live::run(args),
        Bench::Load(args) => load::run(args),
        Bench::Long(args) => long::run(args),
        Bench::Diarize(args) => diarize::run(args),
        Bench::Durability(args) => durability::run(args),
    }
}
