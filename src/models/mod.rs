//! Which models there are, how they come and where their files lie, what each kind of device runs, and which of them
//! may be in memory now (`budget` → `plan` → `manager` → `lease`); never weights.

pub mod archive;
mod beside;
mod budget;
pub mod catalogue;
mod costs;
pub(crate) mod digest;
#[cfg(test)]
pub(crate) mod fake_hub;
pub mod hub;
pub mod installed;
mod lease;
mod ledger;
pub mod licence;
mod manager;
mod place;
mod plan;
pub mod profiles;
pub mod pull;

pub use budget::Budget;
pub use costs::Costs;
pub use lease::{Lease, ModelKey, Need, Seen};
pub use ledger::{Ledger, LedgerModel, ModelState, Phase, Waiting};
pub use manager::{Load, Loader, Manager, ManagerLimits};
