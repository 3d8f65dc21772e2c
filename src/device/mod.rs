//! What this machine is: processor, memory and its limits, NVIDIA cards, Jetson. Asked once at start; everyone
//! else is handed the answer. How much of the memory is in use is `memory`'s to measure.
//!
//! Must never fail and never guess: what cannot be read is absent and `notes` says why. Everything comes from
//! files below a root folder, so that a captured machine can stand in for a real one (`tests/data/device`).

mod fake;
mod host;
mod jetson;
mod memory;
mod nvidia;
mod tree;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use jetson::Jetson;
pub use memory::{Meter, Usage, ended_for_memory};

use tree::Tree;

/// The variable by which CUDA is shown some of the cards.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Where models find their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// A card with memory of its own.
    Dedicated,
    /// The GPU shares the system's memory, as on a Jetson: what one takes the other lacks.
    Unified,
    /// No NVIDIA GPU: models run on the processor, in the system's memory.
    None,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// As `nvidia-smi` counts: along the bus.
    pub index: u32,
    /// By which CUDA and the driver's library mean the same card. A Jetson's GPU needs none.
    pub uuid: Option<String>,
    pub name: String,
    /// The card's own memory; with unified memory the system's, which the GPU shares.
    pub vram_bytes: u64,
    pub driver: Option<String>,
    /// As `8.6`.
    pub compute_capability: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    pub arch: String,
    pub kernel: Option<String>,
    pub os: Option<String>,
    pub cpu_model: Option<String>,
    pub cpu_cores: usize,
    pub ram_bytes: u64,
    /// Only where a cgroup allows less than there is.
    pub cgroup_memory_limit: Option<u64>,
    pub memory_kind: MemoryKind,
    /// The one that models use first: that with the most memory, unless another was chosen.
    pub gpus: Vec<Gpu>,
    pub jetson: Option<Jetson>,
    /// What could not be read or is worth knowing, for a person.
    pub notes: Vec<String>,
}

impl Facts {
    /// The system's memory as far as this process may use it.
    pub fn usable_ram_bytes(&self) -> u64 {
        self.cgroup_memory_limit.unwrap_or(self.ram_bytes)
    }

    /// Memory that models on the GPU can have at most; 0 without one.
    pub fn gpu_memory_bytes(&self) -> u64 {
        match self.memory_kind {
            MemoryKind::Dedicated => self.gpus.first().map_or(0, |gpu| gpu.vram_bytes),
            MemoryKind::Unified => self.usable_ram_bytes(),
            MemoryKind::None => 0,
        }
    }

    /// Makes the card with this number the one that models use. Where there is none at all nothing is chosen: why is said
    /// already. One that is there and does not answer keeps nobody's daemon down.
    pub fn choose_card(&mut self, index: u32) -> Result<(), String> {
        let Some(first) = self.gpus.first() else { return Ok(()) };
        let Some(at) = self.gpus.iter().position(|gpu| gpu.index == index) else {
            if self.notes.iter().any(|note| note.starts_with(&nvidia::silent(index))) {
                let note = format!("models run on {} in place of card {index} (providers.device_id)", first.name);
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                return Ok(());
            }
            let cards = self.gpus.iter().map(|gpu| format!("{} is {}", gpu.index, gpu.name)).collect::<Vec<_>>();
            return Err(format!("there is no card {index} for models: {}", cards.join(", ")));
        };
        let chosen = self.gpus.remove(at);
        self.gpus.insert(0, chosen);
        Ok(())
    }

    /// What CUDA reads to see this card alone. It would number cards by their speed, the driver's library does by their bus.
    pub fn cuda_variables(&self) -> Vec<(&'static str, String)> {
        let uuid = self.gpus.first().and_then(|gpu| gpu.uuid.clone());
        uuid.map_or_else(Vec::new, |uuid| vec![(VISIBLE, uuid), ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned())])
    }

    /// The machine in a few words.
    pub fn title(&self) -> &str {
        let jetson = self.jetson.as_ref().map(|jetson| jetson.module.as_deref().unwrap_or(&jetson.model));
        jetson
            .or(self.gpus.first().map(|gpu| gpu.name.as_str()))
            .or(self.cpu_model.as_deref())
            .unwrap_or("this machine")
    }
}

/// Reads the machine below `root`: `/` for this one, else a captured tree. The driver is only asked about this one.
pub fn probe(root: &Path) -> Facts {
    let mut tree = Tree::new(root);
    let host = host::read(&mut tree);
    let jetson = jetson::read(&mut tree, host.kernel.as_deref());

    let (gpus, memory_kind, jetson) = match jetson {
        // NVML is missing on older Jetsons and reports no memory on newer ones; the device tree knows.
        Some((jetson, gpu)) => (vec![gpu.with_memory(host.ram_bytes)], MemoryKind::Unified, Some(jetson)),
        None => {
            let cards = if root == Path::new("/") { nvidia::cards(&mut tree.notes) } else { fake::cards(&mut tree) };
            let (gpus, memory_kind) = settle(cards, host.ram_bytes, &mut tree.notes);
            (gpus, memory_kind, None)
        }
    };

    Facts {
        arch: host.arch,
        kernel: host.kernel,
        os: host.os,
        cpu_model: host.cpu_model,
        cpu_cores: host.cpu_cores,
        ram_bytes: host.ram_bytes,
        cgroup_memory_limit: host.cgroup_memory_limit,
        memory_kind,
        gpus,
        jetson,
        notes: tree.notes,
    }
}

/// A card as the driver tells of it.
#[derive(Debug, Clone, Deserialize)]
struct Card {
    #[serde(default)]
    index: u32,
    uuid: Option<String>,
    name: String,
    /// Absent where the driver says that the GPU has no memory of its own.
    vram_bytes: Option<u64>,
    driver: Option<String>,
    compute_capability: Option<String>,
}

impl Card {
    fn with_memory(self, bytes: u64) -> Gpu {
        let Card { index, uuid, name, driver, compute_capability, .. } = self;
        Gpu { index, uuid, name, vram_bytes: bytes, driver, compute_capability }
    }
}

fn settle(cards: Result<Vec<Card>, String>, ram_bytes: u64, notes: &mut Vec<String>) -> (Vec<Gpu>, MemoryKind) {
    let cards = cards.unwrap_or_else(|note| {
        notes.push(note);
        Vec::new()
    });
    let own_memory = cards.iter().any(|card| card.vram_bytes.is_some());
    let kind = match (cards.is_empty(), own_memory) {
        (true, _) => MemoryKind::None,
        (false, true) => MemoryKind::Dedicated,
        (false, false) => MemoryKind::Unified,
    };
    // Beside a card with memory of its own, a GPU without is no place for models.
    let mut gpus: Vec<Gpu> = cards
        .into_iter()
        .filter(|card| card.vram_bytes.is_some() == own_memory)
        .map(|card| {
            let bytes = card.vram_bytes.unwrap_or(ram_bytes);
            card.with_memory(bytes)
        })
        .collect();
    gpus.sort_by_key(|gpu| std::cmp::Reverse(gpu.vram_bytes));
    (gpus, kind)
}

#[cfg(test)]
mod tests;
