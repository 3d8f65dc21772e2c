//! NVIDIA cards of this machine, as the driver's library (NVML, opened at run time) tells of them.
//!
//! A machine without a card, library or driver is a normal one: the reason is a note, never an error.

use nvml_wrapper::{Device, Nvml, enums::device::UsedGpuMemory, error::NvmlError};

use super::{Card, Gpu};

/// The cards, or one sentence on why none can be told. One that does not answer is a note and hides no other.
pub(super) fn cards(notes: &mut Vec<String>) -> Result<Vec<Card>, String> {
    let nvml = Nvml::init().map_err(why)?;
    let driver = nvml.sys_driver_version().ok();
    let count = nvml.device_count().map_err(why)?;
    if count == 0 {
        return Err("the NVIDIA driver finds no card; see `nvidia-smi`".to_owned());
    }
    let mut cards = Vec::new();
    for index in 0..count {
        match card(&nvml, index, driver.clone(), notes) {
            Ok(card) => cards.push(card),
            Err(error) => {
                notes.push(format!("{} ({error}): it is not used; see `nvidia-smi` and `dmesg`", silent(index)))
            }
        }
    }
    Ok(cards)
}

/// How the note on a card that is there and does not answer begins.
pub(super) fn silent(index: u32) -> String {
    format!("the NVIDIA card {index} does not answer")
}

fn card(nvml: &Nvml, index: u32, driver: Option<String>, notes: &mut Vec<String>) -> Result<Card, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let vram_bytes = match device.memory_info() {
        Ok(memory) => Some(memory.total),
        // What a GPU without memory of its own answers (GB10).
        Err(NvmlError::NotSupported) => None,
        Err(error) => return Err(error),
    };
    let name = device.name()?;
    // Older drivers do not know of it, most cards do not support it.
    if device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED) {
        notes.push(format!(
            "the NVIDIA card {index} ({name}) is divided (MIG), which is not supported: what is measured is the whole \
             card; `sudo nvidia-smi -i {index} -mig 0` undoes it"
        ));
    }
    let capability = device.cuda_compute_capability().ok();
    Ok(Card {
        index,
        uuid: device.uuid().ok(),
        name,
        vram_bytes,
        driver,
        compute_capability: capability.map(|it| format!("{}.{}", it.major, it.minor)),
    })
}

const MIG_ENABLED: u32 = 1;

/// The memory of the card that models use.
pub(super) struct CardMemory {
    nvml: Nvml,
    index: u32,
    uuid: Option<String>,
}

impl CardMemory {
    pub(super) fn open(gpu: &Gpu) -> Result<CardMemory, String> {
        let nvml = Nvml::init().map_err(why)?;
        Ok(CardMemory { nvml, index: gpu.index, uuid: gpu.uuid.clone() })
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
        match &self.uuid {
            Some(uuid) => self.nvml.device_by_uuid(uuid.as_str()),
            None => self.nvml.device_by_index(self.index),
        }
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
