//! NVIDIA cards of this machine, as the driver's library (NVML, opened at run time) tells of them.
//!
//! A machine without a card, library or driver is a normal one: the reason is a note, never an error.

use nvml_wrapper::{Device, Nvml, enums::device::UsedGpuMemory, error::NvmlError};

use super::Card;

/// The cards, or one sentence on why none can be told.
pub(super) fn cards() -> Result<Vec<Card>, String> {
    let nvml = Nvml::init().map_err(why)?;
    let driver = nvml.sys_driver_version().ok();
    let count = nvml.device_count().map_err(why)?;
    (0..count).map(|index| card(&nvml, index, driver.clone()).map_err(why)).collect()
}

fn card(nvml: &Nvml, index: u32, driver: Option<String>) -> Result<Card, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let vram_bytes = match device.memory_info() {
        Ok(memory) => Some(memory.total),
        // What a GPU without memory of its own answers (GB10).
        Err(NvmlError::NotSupported) => None,
        Err(error) => return Err(error),
    };
    let capability = device.cuda_compute_capability().ok();
    Ok(Card {
        name: device.name()?,
        vram_bytes,
        driver,
        compute_capability: capability.map(|it| format!("{}.{}", it.major, it.minor)),
    })
}

/// The memory of the card with the most, which is the one that models use.
pub(super) struct CardMemory {
    nvml: Nvml,
    index: u32,
}

impl CardMemory {
    pub(super) fn open() -> Result<CardMemory, String> {
        let nvml = Nvml::init().map_err(why)?;
        let total = |index| nvml.device_by_index(index).and_then(|card| card.memory_info()).map_or(0, |it| it.total);
        // The first of equals, as `Facts` has it.
        let count = nvml.device_count().map_err(why)?;
        let index = (0..count).rev().max_by_key(|&index| total(index)).ok_or("no NVIDIA card is there any more")?;
        Ok(CardMemory { nvml, index })
    }

    /// All and free.
    pub(super) fn usage(&self) -> Result<(u64, u64), String> {
        let memory = self.card().and_then(|card| card.memory_info()).map_err(why)?;
        Ok((memory.total, memory.free))
    }

    /// `None` where the driver does not tell by process, as in most containers.
    pub(super) fn used_by(&self, processes: &[u32]) -> Option<u64> {
        let running = self.card().and_then(|card| card.running_compute_processes()).ok()?;
        let ours = running.iter().filter(|process| processes.contains(&process.pid));
        let bytes: Option<Vec<u64>> = ours
            .map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            })
            .collect();
        let bytes = bytes?;
        // Engines run and none of them is in the list: it shows other numbers than ours, or nobody at all.
        if bytes.is_empty() && !processes.is_empty() { None } else { Some(bytes.iter().sum()) }
    }

    fn card(&self) -> Result<Device<'_>, NvmlError> {
        self.nvml.device_by_index(self.index)
    }
}

fn why(error: NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "no NVIDIA driver is installed (libnvidia-ml.so.1 is not there): no NVIDIA card is used".to_owned()
        }
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is installed but not loaded: no NVIDIA card is used; see `nvidia-smi`".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was updated while running: no NVIDIA card is used until the next restart of the machine"
                .to_owned()
        }
        error => format!("the NVIDIA driver does not answer ({error}): no NVIDIA card is used; see `nvidia-smi`"),
    }
}
