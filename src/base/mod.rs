//! What every layer may use: error kinds, shutdown, the clock, byte sizes, locks, text of strangers. Knows no other module.

pub mod bytes;
pub mod clock;
pub mod error;
mod lock;
mod printable;
pub mod shutdown;

pub use bytes::ByteSize;
pub use error::{Error, Kind, Result};
pub use lock::lock;
pub use printable::printable;
pub use shutdown::Shutdown;
