//! The cards of a captured machine: `nvml.toml` beside the captured files says what the driver said there.
//! Never asked about the real machine.

use serde::{Deserialize, de::DeserializeOwned};

use super::{Card, tree::Tree};

#[derive(Deserialize)]
struct Captured<T> {
    card: Vec<T>,
}

#[derive(Deserialize)]
struct CardUse {
    vram_bytes: u64,
    #[serde(default)]
    used_bytes: u64,
}

pub(super) fn cards(tree: &mut Tree) -> Result<Vec<Card>, String> {
    read(tree)
}

/// All and free memory of the card with the most.
pub(super) fn usage(tree: &mut Tree) -> Result<(u64, u64), String> {
    let cards: Vec<CardUse> = read(tree)?;
    let card = cards.into_iter().rev().max_by_key(|card| card.vram_bytes).ok_or("nvml.toml names no card")?;
    Ok((card.vram_bytes, card.vram_bytes.saturating_sub(card.used_bytes)))
}

fn read<T: DeserializeOwned>(tree: &mut Tree) -> Result<Vec<T>, String> {
    let text = tree.text("nvml.toml").ok_or("no NVIDIA driver is installed: no NVIDIA card is used")?;
    let captured: Captured<T> = toml::from_str(&text).map_err(|error| format!("nvml.toml: {}", error.message()))?;
    Ok(captured.card)
}
