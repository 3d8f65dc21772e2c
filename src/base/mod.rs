//! What every layer may use: error kinds, shutdown, the clock, byte sizes, locks. Knows no other module.

pub mod bytes;
pub mod clock;
pub mod error;
mod lock;
pub mod shutdown;

pub use bytes::ByteSize;
pub use error::{Error, Kind, Result};
pub use lock::lock;
pub use shutdown::Shutdown;
