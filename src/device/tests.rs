//! Every captured machine of `tests/data/device` is seen as what it is; damaged files give notes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;

fn captured(machine: &str) -> Facts {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device").join(machine);
    assert!(root.is_dir(), "{} is missing", root.display());
    probe(&root)
}

/// A machine made of these files.
fn made(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let root = dir.path().to_owned();
    (dir, root)
}

#[test]
fn jetsons_are_told_apart() {
    // machine, cores, core, module, l4t, jetpack, GPU, capability
    for (machine, cores, core, module, l4t, jetpack, gpu, capability) in [
        ("jetson-nano", 4, "Cortex-A57", "Jetson Nano 4GB", "32.7.4", "4.6.4", "NVIDIA Tegra X1", "5.3"),
        ("jetson-orin-nano-8gb", 6, "Cortex-A78AE", "Jetson Orin Nano 8GB", "36.4.3", "6.2", "NVIDIA Orin", "8.7"),
        ("jetson-orin-nx-16gb", 8, "Cortex-A78AE", "Jetson Orin NX 16GB", "36.4.4", "6.2.1", "NVIDIA Orin", "8.7"),
        ("jetson-agx-orin-64gb", 12, "Cortex-A78AE", "Jetson AGX Orin 64GB", "35.4.1", "5.1.2", "NVIDIA Orin", "8.7"),
        ("jetson-thor", 14, "Neoverse-V3AE", "Jetson T5000 128GB", "38.2.0", "7.0", "NVIDIA Thor", "11.0"),
    ] {
        let facts = captured(machine);
        let jetson = facts.jetson.clone().unwrap();
        assert_eq!(facts.notes, Vec::<String>::new(), "{machine}");
        assert_eq!((facts.arch.as_str(), facts.cpu_cores, facts.cpu_model.as_deref()), ("aarch64", cores, Some(core)));
        assert_eq!(jetson.module.as_deref(), Some(module));
        assert_eq!(jetson.l4t.as_deref(), Some(l4t));
        assert_eq!(jetson.jetpack.as_deref(), Some(jetpack));
        assert_eq!(facts.memory_kind, MemoryKind::Unified);
        assert_eq!((facts.gpus.len(), facts.gpus[0].name.as_str()), (1, gpu));
        assert_eq!(facts.gpus[0].compute_capability.as_deref(), Some(capability));
        assert_eq!(facts.gpus[0].vram_bytes, facts.ram_bytes);
        assert_eq!(facts.cgroup_memory_limit, None);
        assert_eq!(facts.title(), module);
        assert!(facts.kernel.unwrap().ends_with("-tegra"));
        assert!(facts.os.unwrap().starts_with("Ubuntu "));
    }
    assert_eq!(
        captured("jetson-orin-nano-8gb").jetson.unwrap().model,
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    );
}

#[test]
fn a_pc_has_the_memory_of_its_card() {
    let facts = captured("pc-rtx-5070");
    assert_eq!((facts.arch.as_str(), facts.cpu_cores), ("x86_64", 16));
    assert_eq!(facts.cpu_model.as_deref(), Some("AMD Ryzen 7 7700X 8-Core Processor"));
    assert_eq!(facts.memory_kind, MemoryKind::Dedicated);
    assert_eq!(facts.gpus[0].name, "NVIDIA GeForce RTX 5070");
    assert_eq!(facts.gpu_memory_bytes(), 12227 << 20);
    assert_eq!(facts.jetson, None);
    assert_eq!(facts.notes, Vec::<String>::new());
}

#[test]
fn a_container_is_bound_by_its_cgroup() {
    let facts = captured("container-4gib");
    assert_eq!(facts.memory_kind, MemoryKind::None);
    assert_eq!((facts.usable_ram_bytes(), facts.gpu_memory_bytes()), (4 << 30, 0));
    assert!(facts.ram_bytes > 30 << 30);
    assert_eq!(facts.notes, ["no NVIDIA driver is installed: no NVIDIA card is used"]);
}

#[test]
fn the_smallest_limit_above_us_counts_in_both_hierarchies() {
    let meminfo: (&str, &[u8]) = ("proc/meminfo", b"MemTotal: 8388608 kB\n");
    let (_dir, root) = made(&[
        meminfo,
        ("proc/self/cgroup", b"0::/system.slice/vigia.service\n"),
        ("sys/fs/cgroup/system.slice/vigia.service/memory.max", b"max\n"),
        ("sys/fs/cgroup/system.slice/memory.max", b"2147483648\n"),
    ]);
    assert_eq!(probe(&root).cgroup_memory_limit, Some(2 << 30));

    let (_dir, root) = made(&[
        meminfo,
        ("proc/self/cgroup", b"5:cpu,cpuacct:/x\n4:memory:/docker/4f1c\n0::/\n"),
        // A container does not see its own path, only its limit at the root.
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", b"1073741824\n"),
    ]);
    assert_eq!(probe(&root).cgroup_memory_limit, Some(1 << 30));

    let (_dir, root) =
        made(&[meminfo, ("proc/self/cgroup", b"0::/../../other\n"), ("sys/fs/cgroup/memory.max", b"99999999999999\n")]);
    assert_eq!(probe(&root).cgroup_memory_limit, None, "more than there is binds nobody");
}

#[test]
fn a_jetson_without_its_device_tree_is_still_one() {
    let (_dir, root) =
        made(&[("proc/meminfo", b"MemTotal: 7802572 kB\n"), ("proc/sys/kernel/osrelease", b"5.15.148-tegra\n")]);
    let facts = probe(&root);
    assert_eq!(facts.memory_kind, MemoryKind::Unified);
    let jetson = facts.jetson.unwrap();
    assert_eq!((jetson.l4t, jetson.jetpack, jetson.module), (None, None, None));
    assert!(facts.notes.iter().any(|note| note.contains("device tree is hidden")), "{:?}", facts.notes);
    assert!(facts.notes.iter().any(|note| note.contains("JetPack version is unknown")), "{:?}", facts.notes);
}

#[test]
fn another_board_with_a_device_tree_is_no_jetson() {
    let (_dir, root) = made(&[
        ("sys/firmware/devicetree/base/model", b"Raspberry Pi 5 Model B Rev 1.0\0"),
        ("sys/firmware/devicetree/base/compatible", b"raspberrypi,5-model-b\0brcm,bcm2712\0"),
        ("proc/sys/kernel/osrelease", b"6.6.31+rpt-rpi-2712\n"),
    ]);
    let facts = probe(&root);
    assert_eq!((facts.jetson, facts.memory_kind), (None, MemoryKind::None));
}

#[test]
fn gpus_without_memory_of_their_own_share_the_systems() {
    let (_dir, root) = made(&[
        ("proc/meminfo", b"MemTotal: 125000000 kB\n"),
        ("nvml.toml", b"[[card]]\nname = \"NVIDIA GB10\"\ncompute_capability = \"12.1\"\n"),
    ]);
    let facts = probe(&root);
    assert_eq!(facts.memory_kind, MemoryKind::Unified);
    assert_eq!(facts.gpu_memory_bytes(), 125_000_000 * 1024);
}

#[test]
fn of_several_cards_the_largest_comes_first() {
    let (_dir, root) = made(&[(
        "nvml.toml",
        b"[[card]]\nname = \"small\"\nvram_bytes = 4294967296\n[[card]]\nname = \"large\"\nvram_bytes = 25769803776\n",
    )]);
    let facts = probe(&root);
    assert_eq!(facts.gpus[0].name, "large");
    assert_eq!(facts.gpu_memory_bytes(), 24 << 30);
}

#[test]
fn a_card_is_chosen_by_the_number_that_the_driver_shows() {
    let (_dir, root) = made(&[(
        "nvml.toml",
        b"[[card]]\nname = \"small\"\nuuid = \"GPU-a\"\nvram_bytes = 4294967296\n\
          [[card]]\nname = \"large\"\nuuid = \"GPU-b\"\nvram_bytes = 25769803776\n",
    )]);
    let mut facts = probe(&root);
    let shown = |facts: &Facts| facts.cuda_variables().into_iter().find(|(name, _)| *name == VISIBLE).unwrap().1;
    assert_eq!((facts.gpus[0].index, shown(&facts).as_str()), (1, "GPU-b"));
    facts.choose_card(0).unwrap();
    assert_eq!((facts.gpus[0].name.as_str(), shown(&facts).as_str()), ("small", "GPU-a"));
    assert_eq!((facts.gpus.len(), facts.gpu_memory_bytes()), (2, 4 << 30));
    let problem = facts.choose_card(2).unwrap_err();
    assert!(problem.contains("no card 2") && problem.contains("0 is small, 1 is large"), "{problem}");
    assert_eq!(facts.gpus[0].name, "small", "what cannot be changes nothing");
    facts.notes.push("the NVIDIA card 2 does not answer (GPU lost): it is not used".to_owned());
    assert_eq!(facts.choose_card(2), Ok(()), "the others serve");
    assert!(facts.notes.last().unwrap().contains("in place of card 2"), "{:?}", facts.notes);
}

#[test]
fn where_there_is_one_gpu_or_none_nothing_is_chosen() {
    let mut jetson = captured("jetson-orin-nano-8gb");
    assert_eq!(jetson.choose_card(0), Ok(()));
    assert!(jetson.choose_card(1).unwrap_err().contains("0 is NVIDIA Orin"));
    assert_eq!(jetson.cuda_variables(), [], "CUDA sees what there is");
    let mut none = captured("container-4gib");
    assert_eq!(none.choose_card(3), Ok(()), "why there is none is a note already");
}

#[test]
fn damaged_files_give_notes_and_no_panic() {
    let (_dir, root) = made(&[
        ("proc/cpuinfo", b"\xff\xfe:::\nprocessor\n"),
        ("proc/meminfo", b"MemTotal: 99999999999999999999999 kB\n"),
        ("proc/self/cgroup", b"nonsense\n0::/a\n"),
        ("sys/fs/cgroup/a/memory.max", b"lots\n"),
        ("etc/os-release", b"PRETTY_NAME=\n\0\0"),
        ("etc/nv_tegra_release", b"\0\xffR36"),
        ("sys/firmware/devicetree/base/model", b"\0"),
        ("nvml.toml", b"[[card]]\nname = 3\n"),
    ]);
    let facts = probe(&root);
    assert_eq!((facts.cpu_cores, facts.ram_bytes), (1, 0));
    for part in ["names no processor", "no MemTotal", "another form: `nonsense`", "holds no number: `lots`", "nv_tegra"]
    {
        assert!(facts.notes.iter().any(|note| note.contains(part)), "{part}: {:?}", facts.notes);
    }
    // A folder where a file should be cannot be read either.
    let (_dir, root) = made(&[("proc/cpuinfo/oops", b""), ("nvml.toml", b"[[card]]\nname = 3\n")]);
    let facts = probe(&root);
    assert!(facts.notes.iter().any(|note| note.starts_with("/proc/cpuinfo cannot be read")), "{:?}", facts.notes);
    assert!(facts.notes.iter().any(|note| note.starts_with("nvml.toml: ")), "{:?}", facts.notes);
}

#[test]
fn an_empty_root_is_a_machine_of_which_nothing_is_known() {
    let facts = probe(tempfile::tempdir().unwrap().path());
    assert_eq!((facts.cpu_cores, facts.ram_bytes, facts.memory_kind), (1, 0, MemoryKind::None));
    assert!(!facts.notes.is_empty());
}

#[test]
fn this_machine_can_be_asked() {
    let facts = probe(Path::new("/"));
    assert!(facts.cpu_cores > 0 && facts.ram_bytes > 0);
    assert_eq!(facts.arch, std::env::consts::ARCH);
    assert!(!facts.gpus.is_empty() || !facts.notes.is_empty(), "why there is no card is said");
}
