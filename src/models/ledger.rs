//! The memory ledger as people see it: every term, every model, everybody who waits. A picture of one moment; it
//! changes nothing.

use serde::Serialize;

use crate::models::{Budget, ModelKey};

/// In bytes and seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ledger {
    pub budget: Budget,
    /// Used by others, as last measured.
    pub foreign: u64,
    /// What models may take now.
    pub limit: u64,
    pub reserved: u64,
    /// As much of `reserved` as was measured; the rest is expected.
    pub measured: u64,
    pub models: Vec<LedgerModel>,
    pub waiting: Waiting,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerModel {
    #[serde(flatten)]
    pub key: ModelKey,
    pub state: Phase,
    pub reserved: u64,
    /// Else all of it is an estimate.
    pub is_measured: bool,
    /// As much of `reserved` as was seen; the rest is what it may still take while it works.
    pub measured: u64,
    pub leases: usize,
    pub resident: bool,
    /// What it stands in for, because there was no memory for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
    /// Only of a model that nobody uses.
    pub idle_secs: Option<u64>,
}

/// Work that waits for memory, by priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub live: usize,
    pub interactive: usize,
    pub batch: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Loading,
    Ready,
    Unloading,
    Unloaded,
    /// It could not be loaded; whoever waited for it knows why.
    Failed,
}

/// A model changed its state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelState {
    #[serde(flatten)]
    pub key: ModelKey,
    pub state: Phase,
    /// Reserved for it.
    pub bytes: u64,
    /// Of a load, from 0 to 1, where its engine can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<f32>,
    /// What it stands in for, because there was no memory for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}
