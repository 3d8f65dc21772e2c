//! Which models there are, how they come and where their files lie, and what each kind of device runs; never weights.

pub mod archive;
pub mod catalogue;
pub(crate) mod digest;
#[cfg(test)]
pub(crate) mod fake_hub;
pub mod hub;
pub mod installed;
pub mod licence;
pub mod profiles;
pub mod pull;
