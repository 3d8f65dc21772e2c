//! A stand-in for NVIDIA's driver library (NVML), which the tests build and let the daemon find as `libnvidia-ml.so.1`. Its
//! cards are what the file named by `VIGIA_TEST_CARD` says at that moment, a word and numbers a line:
//!
//! ```text
//! init CODE               what opening the library answers, 0 where it is not said
//! memory CODE             the same of asking for the card's memory
//! total BYTES             of the card's memory, and how much of it is used
//! used BYTES
//! hides                   nobody is told what a process uses
//! divided                 its MIG mode is on
//! process PID BYTES       one that uses the card, as often as there are any
//! card                    what follows is said of one more card
//! ```
//!
//! They are called `Stand-in RTX 0` and so on, along the bus; a card's UUID ends with its number.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fs, ptr,
};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const INSUFFICIENT_SIZE: c_int = 7;
const NOT_AVAILABLE: u64 = u64::MAX;
const NO_INSTANCE: c_uint = c_uint::MAX;
const UUID: &str = "GPU-57a9d1e0-0000-0000-0000-00000000000";

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
pub struct Process {
    pid: c_uint,
    used: u64,
    instances: [c_uint; 2],
}

/// What is said of each card.
fn cards() -> Vec<String> {
    let text = std::env::var_os("VIGIA_TEST_CARD").and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    text.split("card\n").map(str::to_owned).collect()
}

/// The numbers of each line of a card that begins with this word.
fn told(card: usize, word: &str) -> Vec<Vec<u64>> {
    let cards = cards();
    let lines = cards.get(card).map_or("", String::as_str).lines();
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lines = lines.filter(|words| words.first() == Some(&word));
    lines.map(|words| words[1..].iter().filter_map(|number| number.parse().ok()).collect()).collect()
}

fn number(card: usize, word: &str) -> u64 {
    told(card, word).first().and_then(|numbers| numbers.first().copied()).unwrap_or(0)
}

/// A device is the address of nothing: one beyond its card's number.
fn card(device: *mut c_void) -> usize {
    device.addr() - 1
}

unsafe fn find(card: Option<usize>, device: *mut *mut c_void) -> c_int {
    let Some(card) = card.filter(|card| *card < cards().len()) else { return INVALID_ARGUMENT };
    unsafe { device.write(ptr::without_provenance_mut(card + 1)) };
    SUCCESS
}

unsafe fn write(text: &str, to: *mut c_char, room: c_uint) -> c_int {
    if text.len() + 1 > room as usize {
        return INSUFFICIENT_SIZE;
    }
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    number(0, "init") as c_int
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, room: c_uint) -> c_int {
    unsafe { write("580.65.06", to, room) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    unsafe { count.write(cards().len() as c_uint) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> c_int {
    unsafe { find(Some(index as usize), device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut *mut c_void) -> c_int {
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    unsafe { find(uuid.strip_prefix(UUID).and_then(|number| number.parse().ok()), device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, to: *mut c_char, room: c_uint) -> c_int {
    unsafe { write(&format!("{UUID}{}", card(device)), to, room) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(device: *mut c_void, now: *mut c_uint, next: *mut c_uint) -> c_int {
    let is_on = c_uint::from(!told(card(device), "divided").is_empty());
    unsafe {
        now.write(is_on);
        next.write(is_on);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: *mut c_void, to: *mut c_char, room: c_uint) -> c_int {
    unsafe { write(&format!("Stand-in RTX {}", card(device)), to, room) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(_: *mut c_void, major: *mut c_int, minor: *mut c_int) -> c_int {
    unsafe {
        major.write(8);
        minor.write(9);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, memory: *mut Memory) -> c_int {
    let card = card(device);
    let (total, used) = (number(card, "total"), number(card, "used"));
    // The second version of the structure, by its size and its number.
    let version = size_of::<Memory>() as c_uint | 2 << 24;
    unsafe {
        if (*memory).version != version {
            return INVALID_ARGUMENT;
        }
        memory.write(Memory { version, total, reserved: 0, free: total - used, used });
    }
    number(card, "memory") as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    to: *mut Process,
) -> c_int {
    let card = card(device);
    let (processes, hides) = (told(card, "process"), !told(card, "hides").is_empty());
    unsafe {
        let room = count.replace(processes.len() as c_uint) as usize;
        if room < processes.len() {
            return INSUFFICIENT_SIZE;
        }
        for (at, numbers) in processes.iter().enumerate() {
            let used = if hides { NOT_AVAILABLE } else { numbers[1] };
            to.add(at).write(Process { pid: numbers[0] as c_uint, used, instances: [NO_INSTANCE; 2] });
        }
    }
    SUCCESS
}
