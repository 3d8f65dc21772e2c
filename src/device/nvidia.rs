//! NVIDIA cards of this machine, as the driver's library (NVML, opened at run time) tells of them.
//!
//! A machine without a card, library or driver is a normal one: the reason is a note, never an error.

use nvml_wrapper::{Nvml, error::NvmlError};

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
