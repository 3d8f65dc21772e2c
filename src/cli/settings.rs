//! `vigia settings`: the commented defaults, or with `--effective` what holds here and where it was set.

use crate::{
    cli::{Outcome, SettingsArgs, print},
    settings::{DEFAULTS, effective},
};

/// Print every setting with its default and what it does
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the values that hold on this machine instead, each with where it was set
    #[arg(long)]
    effective: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    if args.effective { print(&effective(&args.settings.load()?.loaded.leaves)) } else { print(DEFAULTS) }
}
