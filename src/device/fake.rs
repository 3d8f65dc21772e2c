//! The cards of a captured machine: `nvml.toml` beside the captured files says what the driver said there.
//! Never asked about the real machine.

use serde::Deserialize;

use super::{Card, tree::Tree};

#[derive(Deserialize)]
struct Captured {
    card: Vec<Card>,
}

pub(super) fn cards(tree: &mut Tree) -> Result<Vec<Card>, String> {
    let text = tree.text("nvml.toml").ok_or("no NVIDIA driver is installed: no NVIDIA card is used")?;
    let captured: Captured = toml::from_str(&text).map_err(|error| format!("nvml.toml: {}", error.message()))?;
    Ok(captured.card)
}
