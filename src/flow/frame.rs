//! A photo: what it arrives as and the RGB picture that engines look at.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The encodings of photos that we open, found by their first bytes, never by what the client calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PhotoKind {
    Jpeg,
    Png,
    Webp,
}

/// Upright RGB, 8 bits a channel, rows without padding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub width: u32,
    pub height: u32,
    pub rgb: Arc<[u8]>,
    /// Size after EXIF rotation, before scaling down.
    pub original_size: (u32, u32),
}
