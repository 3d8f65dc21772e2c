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

/// Numbered as they stand there.
pub(super) fn cards(tree: &mut Tree) -> Result<Vec<Card>, String> {
    let cards: Vec<Card> = read(tree)?;
    Ok((0..).zip(cards).map(|(index, card)| Card { index, ..card }).collect())
}

/// All and free memory of a card.
pub(super) fn usage(tree: &mut Tree, index: u32) -> Result<(u64, u64), String> {
    let cards: Vec<CardUse> = read(tree)?;
    let card = cards.get(index as usize).ok_or_else(|| format!("nvml.toml names no card {index}"))?;
    Ok((card.vram_bytes, card.vram_bytes.saturating_sub(card.used_bytes)))
}

fn read<T: DeserializeOwned>(tree: &mut Tree) -> Result<Vec<T>, String> {
    let text = tree.text("nvml.toml").ok_or("no NVIDIA driver is installed: no NVIDIA card is used")?;
    let captured: Captured<T> = toml::from_str(&text).map_err(|error| format!("nvml.toml: {}", error.message()))?;
    Ok(captured.card)
}
