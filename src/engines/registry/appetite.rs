//! What a model is expected to take before it was measured, and how much it may do at the same time: as many units of
//! work as fit into a share of the memory that models have. Its lease is for all of them, so that whoever holds one never
//! takes more than was reserved. Pure.

use crate::{
    base::ByteSize,
    models::catalogue::{Entry, Memory, Workspace},
    settings::Provider,
};

/// ONNX Runtime and what a run of a model needs beside its weights, where nothing else is said.
const WORKSPACE: Workspace = Workspace { fixed: ByteSize::mib(150), each: ByteSize(0) };
/// Of what is fixed, what a GPU's driver holds for a process from its start on: a load is measured with it.
const CONTEXT_BYTES: u64 = 500 << 20;
/// The part of all models' memory that units of work beyond the first may take. The others are there to be loaded too.
const SHARE: u64 = 4;

#[derive(Debug, Clone, Default)]
pub(super) struct Appetite {
    pub(super) weights_bytes: u64,
    pub(super) memory: Memory,
    /// Units of work that the engine does at the same time, if memory allows. At least one is done.
    pub(super) units: usize,
}

/// What is reserved for it in one memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portion {
    pub(super) units: usize,
    /// What it is expected to take once it is loaded.
    pub(super) loaded_bytes: u64,
    /// What it works in beyond that.
    pub(super) workspace_bytes: u64,
}

impl Appetite {
    pub(super) fn new(weights_bytes: u64, memory: &Memory) -> Appetite {
        Appetite { weights_bytes, memory: memory.clone(), units: 1 }
    }

    /// As the entry of a model says; `on_disk_bytes` where it does not tell what the weights take.
    pub(super) fn of(entry: &Entry, variant: &str, on_disk_bytes: u64) -> Appetite {
        let told = entry.memory.weights.get(variant).map(|size| size.get());
        Appetite::new(told.unwrap_or(on_disk_bytes), &entry.memory)
    }

    /// On a provider, where all models together may take `limit_bytes`.
    pub(super) fn portion(&self, provider: Provider, limit_bytes: u64) -> Portion {
        let Workspace { fixed, each } = self.memory.workspace(provider).unwrap_or(WORKSPACE);
        let (fixed, each) = (fixed.get(), each.get());
        let most = u64::try_from(self.units).unwrap_or(u64::MAX).max(1);
        let free = limit_bytes.saturating_sub(self.weights_bytes).saturating_sub(fixed);
        let units = match each {
            0 => most,
            each => (free.min(limit_bytes / SHARE) / each).clamp(1, most),
        };
        let context = if provider == Provider::Cpu { 0 } else { CONTEXT_BYTES.min(fixed) };
        Portion {
            units: usize::try_from(units).unwrap_or(1),
            loaded_bytes: self.weights_bytes.saturating_add(context),
            workspace_bytes: (fixed - context).saturating_add(units.saturating_mul(each)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn appetite() -> Appetite {
        let text = "unit = \"window\"\ncpu = { fixed = \"100 MiB\", each = \"60 MiB\" }";
        let memory = toml::from_str(text).unwrap();
        Appetite { units: 8, ..Appetite::new(300 * MIB, &memory) }
    }

    #[test]
    fn as_many_units_as_a_share_of_the_memory_holds_and_never_none() {
        for (limit, units) in [(20_000, 8), (1_920, 8), (1_919, 7), (960, 4), (500, 1), (470, 1), (100, 1), (0, 1)] {
            let portion = appetite().portion(Provider::Cpu, limit * MIB);
            assert_eq!(
                (portion.units, portion.workspace_bytes),
                (units, (100 + 60 * units as u64) * MIB),
                "{limit} MiB"
            );
        }
    }

    #[test]
    fn of_every_entry_what_it_says_is_what_is_reserved() {
        let catalogue = crate::models::catalogue::Catalogue::load(None).unwrap();
        for entry in catalogue.entries().iter().filter(|entry| entry.name != "silero-vad") {
            let appetite = Appetite { units: 4, ..Appetite::of(entry, entry.default_variant(), 7 * MIB) };
            let weights = entry.memory.weights.get(entry.default_variant()).map_or(7 * MIB, |size| size.get());
            assert_eq!(appetite.weights_bytes, weights, "{}", entry.name);
            let told = entry.memory.workspace(Provider::Cpu);
            assert!(told.is_some(), "{} does not say what it works in", entry.name);
            for provider in Provider::ALL {
                let Some(Workspace { fixed, each }) = entry.memory.workspace(provider) else { continue };
                let portion = appetite.portion(provider, 64 << 30);
                assert_eq!(portion.units, 4);
                let all = weights + fixed.get() + 4 * each.get();
                let Portion { loaded_bytes, workspace_bytes, .. } = portion;
                assert_eq!(loaded_bytes + workspace_bytes, all, "{} on {}", entry.name, provider.name());
                let context = if provider == Provider::Cpu { 0 } else { 500 * MIB };
                assert_eq!(loaded_bytes, weights + context, "{} on {}", entry.name, provider.name());
            }
        }
    }

    #[test]
    fn where_nothing_is_said_of_a_device_a_fixed_workspace_counts() {
        let portion = appetite().portion(Provider::Cuda, 8000 * MIB);
        assert_eq!(portion, Portion { units: 8, loaded_bytes: 450 * MIB, workspace_bytes: 0 });
        let none = Appetite::default().portion(Provider::Cpu, 0);
        assert_eq!(none, Portion { units: 1, loaded_bytes: 0, workspace_bytes: 150 * MIB });
    }
}
