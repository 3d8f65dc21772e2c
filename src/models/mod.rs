//! Which models there are, where their files lie, and what each kind of device runs; never weights.

pub mod catalogue;
pub mod profiles;
