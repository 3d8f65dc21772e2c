//! Profiles: what a kind of device runs. `models/profiles/*.toml` are built in; `choose` picks one by measured
//! facts and says why in a sentence for people.
//!
//! Pure: knows the facts it is given and nothing else. A profile is settings, so everything it says can be
//! overruled in `vigia.toml`.

use serde::Deserialize;

use crate::{
    base::{ByteSize, Error, Result},
    device::{Facts, MemoryKind},
};

/// The name that lets the facts decide.
pub const AUTO: &str = "auto";

/// Where `auto` ends when nothing else fits.
const LAST_RESORT: &str = "cpu";

/// In the order in which people are shown them.
const FILES: [(&str, &str); 9] = [
    ("cpu", include_str!("../../models/profiles/cpu.toml")),
    ("rtx-4gb", include_str!("../../models/profiles/rtx-4gb.toml")),
    ("rtx-12gb", include_str!("../../models/profiles/rtx-12gb.toml")),
    ("rtx-24gb", include_str!("../../models/profiles/rtx-24gb.toml")),
    ("jetson-nano", include_str!("../../models/profiles/jetson-nano.toml")),
    ("jetson-orin-nano-8gb", include_str!("../../models/profiles/jetson-orin-nano-8gb.toml")),
    ("jetson-orin-nx-16gb", include_str!("../../models/profiles/jetson-orin-nx-16gb.toml")),
    ("jetson-agx-orin", include_str!("../../models/profiles/jetson-agx-orin.toml")),
    ("jetson-thor", include_str!("../../models/profiles/jetson-thor.toml")),
];

#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub name: &'static str,
    pub title: String,
    pub summary: String,
    /// Laid over the defaults, under everything a person sets.
    pub settings_toml: String,
    wants: Wants,
}

/// A profile and the sentence that says why it is this one.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub profile: Profile,
    pub why: String,
}

/// `[match]`: what `auto` asks of a machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wants {
    device: Device,
    #[serde(default)]
    min_memory: ByteSize,
    min_jetpack: Option<u32>,
}

/// What the models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Device {
    Processor,
    /// Any NVIDIA GPU that is not a Jetson's, even one that shares the system's memory.
    Card,
    Jetson,
}

/// The names that `device.profile` may have besides `auto`.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The profile of that name, or for `auto` the one that fits these facts best.
pub fn choose(name: &str, facts: &Facts) -> Result<Choice> {
    if name == AUTO { choose_by_facts(facts) } else { choose_by_name(name, facts) }
}

fn choose_by_name(name: &str, facts: &Facts) -> Result<Choice> {
    let Some((name, text)) = FILES.iter().find(|(known, _)| *known == name) else {
        let names = names().collect::<Vec<_>>().join(", ");
        return Err(Error::invalid(format!("there is no profile `{name}`"))
            .hint(format!("`device.profile` may be \"{AUTO}\" or one of: {names}")));
    };
    let profile = parse(name, text)?;
    let mut why = "set by `device.profile`".to_owned();
    if !profile.wants.fit(facts) {
        why.push_str(&format!("; it does not match what this machine has ({})", described(facts)));
    }
    Ok(Choice { profile, why })
}

fn choose_by_facts(facts: &Facts) -> Result<Choice> {
    let mut profiles = FILES.iter().map(|(name, text)| parse(name, text)).collect::<Result<Vec<_>>>()?;
    profiles.retain(|profile| profile.wants.fit(facts) || profile.name == LAST_RESORT);
    let fits = |profile: &Profile| profile.wants.fit(facts);
    // What asks for the most memory makes the most of it; the last resort only where nothing fits.
    let best = profiles.into_iter().max_by_key(|profile| (fits(profile), profile.wants.min_memory));
    let profile = best.ok_or_else(|| Error::internal("no profile is built in"))?;

    let machine = described(facts);
    let why = match (Device::of(facts), fits(&profile)) {
        (Device::Processor, _) => format!("no NVIDIA GPU was found: models run on the processor ({machine})"),
        (_, false) => format!("{machine}: too little memory for any GPU profile, so models run on the processor"),
        (Device::Card, true) => format!("{machine}: the largest RTX profile that fits"),
        (Device::Jetson, true) if profile.wants.min_memory.get() == 0 => {
            format!("{machine}: below what the models need; let another box serve the tasks")
        }
        (Device::Jetson, true) => format!("{machine}: the largest Jetson profile that fits"),
    };
    Ok(Choice { profile, why })
}

impl Device {
    fn of(facts: &Facts) -> Device {
        match (&facts.jetson, facts.memory_kind) {
            (Some(_), _) => Device::Jetson,
            (None, MemoryKind::None) => Device::Processor,
            (None, _) => Device::Card,
        }
    }
}

impl Wants {
    fn fit(&self, facts: &Facts) -> bool {
        let jetpack = facts.jetson.as_ref().and_then(|jetson| jetson.jetpack.as_deref());
        let major = jetpack.and_then(|version| version.split(['.', ' ']).next()?.parse::<u32>().ok());
        let recent = match (self.min_jetpack, major) {
            (Some(least), Some(major)) => major >= least,
            // Nothing is wanted, or nothing is known: memory decides.
            _ => true,
        };
        self.device == Device::of(facts) && facts.gpu_memory_bytes() >= self.min_memory.get() && recent
    }
}

/// `NVIDIA GeForce RTX 5070 with 11.9 GiB`, with the JetPack where there is one.
fn described(facts: &Facts) -> String {
    let (bytes, kind) = match facts.memory_kind {
        MemoryKind::Dedicated => (facts.gpu_memory_bytes(), ""),
        MemoryKind::Unified => (facts.gpu_memory_bytes(), " of shared memory"),
        MemoryKind::None => (facts.usable_ram_bytes(), " of memory"),
    };
    let mut text = format!("{} with {}{kind}", facts.title(), ByteSize(bytes));
    if let Some(jetpack) = facts.jetson.as_ref().and_then(|jetson| jetson.jetpack.as_deref()) {
        text.push_str(&format!(" and JetPack {jetpack}"));
    }
    text
}

fn parse(name: &'static str, text: &str) -> Result<Profile> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        profile: Head,
        r#match: Wants,
        settings: toml::Table,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Head {
        title: String,
        summary: String,
    }
    let broken = || Error::internal(format!("the profile `{name}` is broken"));
    let file: File = toml::from_str(text).map_err(|error| broken().cause(error))?;
    let settings_toml = toml::to_string(&file.settings).map_err(|error| broken().cause(error))?;
    let Head { title, summary } = file.profile;
    Ok(Profile { name, title, summary, settings_toml, wants: file.r#match })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        base::Kind,
        device::{Gpu, probe},
        settings::{DEFAULTS, Settings},
    };

    fn captured(machine: &str) -> Facts {
        probe(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device").join(machine))
    }

    fn with_card(mib: u64) -> Facts {
        let card = Gpu { name: "NVIDIA card".to_owned(), vram_bytes: mib << 20, ..Gpu::default() };
        Facts { gpus: vec![card], ..captured("pc-rtx-5070") }
    }

    fn auto(facts: &Facts) -> Choice {
        choose(AUTO, facts).unwrap()
    }

    #[test]
    fn auto_knows_every_captured_machine_and_says_why() {
        for (machine, name, why) in [
            (
                "container-4gib",
                "cpu",
                "no NVIDIA GPU was found: models run on the processor (Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz with 4 GiB of memory)",
            ),
            ("pc-rtx-5070", "rtx-12gb", "NVIDIA GeForce RTX 5070 with 11.9 GiB: the largest RTX profile that fits"),
            (
                "jetson-nano",
                "jetson-nano",
                "Jetson Nano 4GB with 3.9 GiB of shared memory and JetPack 4.6.4: below what the models need; let another box serve the tasks",
            ),
            (
                "jetson-orin-nano-8gb",
                "jetson-orin-nano-8gb",
                "Jetson Orin Nano 8GB with 7.4 GiB of shared memory and JetPack 6.2: the largest Jetson profile that fits",
            ),
            (
                "jetson-orin-nx-16gb",
                "jetson-orin-nx-16gb",
                "Jetson Orin NX 16GB with 15.3 GiB of shared memory and JetPack 6.2.1: the largest Jetson profile that fits",
            ),
            (
                "jetson-agx-orin-64gb",
                "jetson-agx-orin",
                "Jetson AGX Orin 64GB with 61.4 GiB of shared memory and JetPack 5.1.2: the largest Jetson profile that fits",
            ),
            (
                "jetson-thor",
                "jetson-thor",
                "Jetson T5000 128GB with 122.8 GiB of shared memory and JetPack 7.0: the largest Jetson profile that fits",
            ),
        ] {
            let choice = auto(&captured(machine));
            assert_eq!((choice.profile.name, choice.why.as_str()), (name, why));
        }
    }

    #[test]
    fn cards_take_the_largest_profile_that_fits() {
        for (mib, name) in [
            (2048, "cpu"),
            (3904, "rtx-4gb"),
            (8192, "rtx-4gb"),
            (11264, "rtx-12gb"),
            (16303, "rtx-12gb"),
            (24564, "rtx-24gb"),
            (32607, "rtx-24gb"),
        ] {
            assert_eq!(auto(&with_card(mib)).profile.name, name, "{mib} MiB");
        }
        let why = auto(&with_card(2048)).why;
        assert_eq!(
            why,
            "NVIDIA card with 2 GiB: too little memory for any GPU profile, so models run on the processor"
        );
    }

    #[test]
    fn a_gpu_with_shared_memory_that_is_no_jetson_counts_as_a_card() {
        let facts = Facts { memory_kind: MemoryKind::Unified, ..captured("pc-rtx-5070") };
        assert_eq!(auto(&facts).profile.name, "rtx-24gb");
    }

    #[test]
    fn a_jetson_bound_by_a_cgroup_takes_a_smaller_profile() {
        let facts = Facts { cgroup_memory_limit: Some(8 << 30), ..captured("jetson-agx-orin-64gb") };
        assert_eq!(auto(&facts).profile.name, "jetson-orin-nano-8gb");
    }

    #[test]
    fn memory_alone_is_not_enough_with_an_old_jetpack() {
        let mut facts = Facts { ram_bytes: 32 << 30, ..captured("jetson-nano") };
        assert_eq!(auto(&facts).profile.name, "jetson-nano");
        facts.jetson.as_mut().unwrap().jetpack = None;
        assert_eq!(auto(&facts).profile.name, "jetson-agx-orin", "an unknown one is given the benefit of the doubt");
    }

    #[test]
    fn a_named_profile_is_taken_and_a_misfit_is_said() {
        let facts = captured("container-4gib");
        let choice = choose("cpu", &facts).unwrap();
        assert_eq!(choice.why, "set by `device.profile`");
        let choice = choose("rtx-12gb", &facts).unwrap();
        assert_eq!(choice.profile.name, "rtx-12gb");
        assert!(choice.why.contains("does not match what this machine has (Intel"), "{}", choice.why);
    }

    #[test]
    fn a_wrong_name_lists_the_names() {
        let error = choose("rtx-8gb", &captured("pc-rtx-5070")).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert_eq!(error.message(), "there is no profile `rtx-8gb`");
        for name in names().chain([AUTO]) {
            assert!(error.hint_text().unwrap().contains(name), "{name}");
        }
    }

    #[test]
    fn every_profile_sets_only_keys_of_the_defaults_with_values_that_they_take() {
        for name in names() {
            let profile = choose(name, &captured("pc-rtx-5070")).unwrap().profile;
            let mut settings: toml::Table = toml::from_str(DEFAULTS).unwrap();
            let laid_over: toml::Table = toml::from_str(&profile.settings_toml).unwrap();
            lay_over(&mut settings, laid_over, name);
            let settings: Settings = toml::from_str(&toml::to_string(&settings).unwrap()).unwrap();
            assert!(["cpu", "jetson", "rtx"].contains(&settings.pipelines.variant.as_str()), "{name}");
        }
    }

    fn lay_over(base: &mut toml::Table, over: toml::Table, place: &str) {
        for (key, value) in over {
            let place = format!("{place}: {key}");
            match (base.get_mut(&key), value) {
                (Some(toml::Value::Table(base)), toml::Value::Table(over)) => lay_over(base, over, &place),
                (Some(old), new) => *old = new,
                (None, _) => panic!("{place} is not in defaults.toml"),
            }
        }
    }

    #[test]
    fn every_file_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/profiles");
        let mut files: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut built_in: Vec<String> = names().map(|name| format!("{name}.toml")).collect();
        files.sort();
        built_in.sort();
        assert_eq!(files, built_in);
    }
}
