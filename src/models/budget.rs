//! How much memory models may take: total − system − media − margin, each term by its name.
//!
//! Pure: the total comes from the facts, the other terms from the settings, the use by others from whoever measures
//! it (`device::memory`). Must never promise more than the device has, whatever the settings say.

use serde::Serialize;

use crate::{
    base::ByteSize,
    device::{Facts, MemoryKind},
    settings,
};

/// In bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// A card's own memory, memory that the GPU shares with the system, or (`none`) the system's.
    pub memory_kind: MemoryKind,
    pub total: u64,
    /// Kept for the system and other programs. What they are seen to take beyond it counts as well.
    pub system: u64,
    /// Kept for decoding and pictures.
    pub media: u64,
    /// Kept for what models take beyond what was measured.
    pub margin: u64,
    /// Set by a person: models get no more than this.
    pub set_limit: Option<u64>,
    /// What models may take while others keep to their terms.
    pub limit: u64,
}

impl Budget {
    pub fn measure(facts: &Facts, settings: &settings::Memory) -> Budget {
        let total = match facts.memory_kind {
            MemoryKind::Dedicated | MemoryKind::Unified => facts.gpu_memory_bytes(),
            MemoryKind::None => facts.usable_ram_bytes(),
        };
        let mut budget = Budget {
            memory_kind: facts.memory_kind,
            total,
            system: settings.system.get(),
            media: settings.media.get(),
            margin: settings.margin.get(),
            set_limit: settings.limit.map(ByteSize::get),
            limit: 0,
        };
        budget.limit = budget.limit_beside(0);
        budget
    }

    /// What is left for models while others (everything but our engines) use this much.
    pub fn limit_beside(&self, foreign: u64) -> u64 {
        let others = self.system.saturating_add(self.media).max(foreign);
        let measured = self.total.saturating_sub(others).saturating_sub(self.margin);
        self.set_limit.map_or(measured, |limit| limit.min(measured))
    }

    /// Term by term, for the log.
    pub fn describe(&self) -> String {
        let Budget { total, system, media, margin, limit, .. } = *self;
        let kind = match self.memory_kind {
            MemoryKind::Dedicated => "of the card",
            MemoryKind::Unified => "shared with the GPU",
            MemoryKind::None => "of the system",
        };
        let [total, system, media, margin, limit] = [total, system, media, margin, limit].map(ByteSize);
        let text = format!(
            "models may take {limit}: {total} {kind}, less {system} for the system, {media} for media, {margin} as margin"
        );
        match self.set_limit.map(ByteSize) {
            Some(set) if set <= limit => format!("{text}; no more than {set} by memory.limit"),
            Some(set) => format!("{text}; memory.limit ({set}) is more than there is"),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::probe;

    const GIB: u64 = 1 << 30;

    fn memory(limit: Option<ByteSize>) -> settings::Memory {
        settings::Memory {
            limit,
            system: ByteSize(GIB),
            media: ByteSize::mib(512),
            margin: ByteSize::mib(256),
            idle_secs: 300,
            wait_secs: 60,
            retry_secs: 600,
            foreign_secs: 5,
        }
    }

    fn budget(machine: &str, limit: Option<ByteSize>) -> Budget {
        let facts = probe(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device").join(machine));
        Budget::measure(&facts, &memory(limit))
    }

    #[test]
    fn the_terms_are_those_of_the_memory_that_models_use() {
        for (machine, kind, total) in [
            ("pc-rtx-5070", MemoryKind::Dedicated, 12_820_938_752),
            ("jetson-orin-nano-8gb", MemoryKind::Unified, 7_802_572 * 1024),
            ("container-4gib", MemoryKind::None, 4 * GIB),
        ] {
            let budget = budget(machine, None);
            assert_eq!((budget.memory_kind, budget.total), (kind, total), "{machine}");
            assert_eq!(budget.limit, total - GIB - (512 << 20) - (256 << 20));
        }
        assert_eq!(
            budget("container-4gib", None).describe(),
            "models may take 2.2 GiB: 4 GiB of the system, less 1 GiB for the system, 512 MiB for media, 256 MiB as margin"
        );
    }

    #[test]
    fn others_count_when_they_take_more_than_their_terms() {
        let budget = budget("container-4gib", None);
        assert_eq!(budget.limit_beside(GIB), budget.limit, "less than system and media together");
        assert_eq!(budget.limit_beside(2 * GIB), 2 * GIB - (256 << 20));
        assert_eq!(budget.limit_beside(9 * GIB), 0);
        assert_eq!(budget.limit_beside(u64::MAX), 0);
    }

    #[test]
    fn a_limit_of_ones_own_can_only_lower_it() {
        let lower = budget("container-4gib", Some(ByteSize(GIB)));
        assert_eq!((lower.limit, lower.limit_beside(3 * GIB)), (GIB, GIB - (256 << 20)));
        assert!(lower.describe().ends_with("no more than 1 GiB by memory.limit"), "{}", lower.describe());
        let higher = budget("container-4gib", Some(ByteSize(100 * GIB)));
        assert_eq!(higher.limit, budget("container-4gib", None).limit);
        assert!(higher.describe().ends_with("is more than there is"));
    }

    #[test]
    fn a_machine_of_which_nothing_is_known_has_no_room() {
        let facts = probe(tempfile::tempdir().unwrap().path());
        assert_eq!(Budget::measure(&facts, &memory(None)).limit, 0);
    }
}
