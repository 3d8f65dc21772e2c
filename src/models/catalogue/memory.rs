//! What a model is expected to take before anybody has measured it: its weights, and by kind of device what it works in,
//! fixed and for each unit of work. Estimates of whoever wrote the entry; every figure says in a comment what it follows
//! from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    base::{ByteSize, Error, Result},
    settings::Provider,
};

/// No device has more. Sums of what an entry says stay far from the largest number.
const MOST: ByteSize = ByteSize(1 << 40);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// By variant. Without one the sizes of its files count.
    #[serde(default)]
    pub weights: BTreeMap<String, ByteSize>,
    /// What `each` is for.
    pub unit: Option<Unit>,
    cpu: Option<Workspace>,
    cuda: Option<Workspace>,
    tensorrt: Option<Workspace>,
    nvrtx: Option<Workspace>,
}

/// What a model works in beside its weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Whatever it is asked: the runtime, the process, what one step needs at its largest.
    pub fixed: ByteSize,
    /// For each unit of work that it does at the same time.
    #[serde(default)]
    pub each: ByteSize,
}

/// One unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Speech of 30 s, decoded beside others.
    Window,
    /// 1000 tokens of context.
    Kilotoken,
    /// A picture of a million pixels.
    Megapixel,
    /// What is spoken in one breath, 30 s at most.
    Utterance,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Window => "window of 30 s",
            Unit::Kilotoken => "thousand tokens",
            Unit::Megapixel => "megapixel",
            Unit::Utterance => "utterance",
        }
    }
}

impl Memory {
    /// Of a model that no entry describes.
    pub fn of(unit: Unit, by_provider: impl Fn(Provider) -> Workspace) -> Memory {
        let [cpu, cuda] = [Provider::Cpu, Provider::Cuda].map(|provider| Some(by_provider(provider)));
        Memory { unit: Some(unit), cpu, cuda, ..Memory::default() }
    }

    /// What TensorRT works in is taken for what CUDA does, unless the entry tells it apart.
    pub fn workspace(&self, provider: Provider) -> Option<Workspace> {
        match provider {
            Provider::Cpu => self.cpu,
            Provider::Cuda => self.cuda,
            Provider::TensorRt => self.tensorrt.or(self.cuda),
            Provider::NvRtx => self.nvrtx.or(self.tensorrt).or(self.cuda),
        }
    }

    /// For people: what each figure is, and the figures that the entry has.
    pub fn told(&self) -> impl Iterator<Item = (&'static str, Vec<String>)> {
        let weights = self.weights.iter().map(|(variant, size)| format!("{variant} about {size}"));
        let workspaces = self.named().map(|(device, Workspace { fixed, each })| match self.unit {
            Some(unit) if each.get() > 0 => format!("{device} {fixed} and {each} a {}", unit.name()),
            _ => format!("{device} {fixed}"),
        });
        let all = [("weights", weights.collect::<Vec<_>>()), ("works in", workspaces.collect())];
        all.into_iter().filter(|(_, told)| !told.is_empty())
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, Workspace)> {
        let all = [(Provider::Cpu, self.cpu), (Provider::Cuda, self.cuda)];
        let all = all.into_iter().chain([(Provider::TensorRt, self.tensorrt), (Provider::NvRtx, self.nvrtx)]);
        all.filter_map(|(provider, workspace)| Some((provider.name(), workspace?)))
    }

    pub(super) fn check(&self, variants: &[&str]) -> Result<()> {
        if let Some(variant) = self.weights.keys().find(|it| !variants.contains(&it.as_str())) {
            let known = variants.join(", ");
            return Err(Error::invalid(format!("`memory.weights` names `{variant}`, which is no variant: {known}")));
        }
        let weights = self.weights.iter().map(|(variant, size)| (format!("weights.{variant}"), *size));
        let fixed = self.named().map(|(device, it)| (format!("{device}.fixed"), it.fixed));
        let mut sizes: Vec<(String, ByteSize)> = weights.chain(fixed).collect();
        sizes.extend(
            self.named().filter(|(_, it)| it.each.get() > 0).map(|(device, it)| (format!("{device}.each"), it.each)),
        );
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size > MOST || size.get() == 0) {
            return Err(Error::invalid(format!(
                "`memory.{key}` is {size}: it must be more than nothing, and at most {MOST}"
            ))
            .hint("write a size such as \"160 MiB\""));
        }
        let each = self.named().find(|(_, it)| it.each.get() > 0);
        match (self.unit, each) {
            (None, Some((device, _))) => {
                Err(Error::invalid(format!("`memory.{device}.each` is for what? `memory.unit` does not say"))
                    .hint("unit is window, kilotoken, megapixel or utterance"))
            }
            (Some(unit), None) => Err(Error::invalid(format!("nothing in `memory` is for each {}", unit.name()))
                .hint("say `each` for a kind of device: cpu, cuda, tensorrt or nvrtx, or leave `unit` out")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(text: &str) -> Result<Memory, String> {
        let memory: Memory = toml::from_str(text).map_err(|error| error.to_string())?;
        memory.check(&["fp32", "q4"]).map_err(|error| error.full())?;
        Ok(memory)
    }

    const TEXT: &str = r#"
        weights = { q4 = "800 MiB" }
        unit = "kilotoken"
        cpu = { fixed = "100 MiB", each = "24 MiB" }
        cuda = { fixed = "600 MiB", each = "12 MiB" }
    "#;

    #[test]
    fn what_a_model_works_in_depends_on_the_kind_of_device() {
        let it = memory(TEXT).unwrap();
        assert_eq!(it.workspace(Provider::Cpu).unwrap().each, ByteSize::mib(24));
        for provider in [Provider::Cuda, Provider::TensorRt, Provider::NvRtx] {
            assert_eq!(it.workspace(provider).unwrap().fixed, ByteSize::mib(600), "{}", provider.name());
        }
        let own = memory(&format!("{TEXT}\ntensorrt = {{ fixed = \"1 GiB\" }}")).unwrap();
        for provider in [Provider::TensorRt, Provider::NvRtx] {
            assert_eq!(own.workspace(provider).unwrap(), Workspace { fixed: ByteSize(1 << 30), each: ByteSize(0) });
        }
        assert_eq!(memory("").unwrap().workspace(Provider::Cpu), None);
        let told: Vec<_> = it.told().collect();
        let works_in = ["cpu 100 MiB and 24 MiB a thousand tokens", "cuda 600 MiB and 12 MiB a thousand tokens"];
        let works_in = works_in.map(str::to_owned).to_vec();
        assert_eq!(told, [("weights", vec!["q4 about 800 MiB".to_owned()]), ("works in", works_in)]);
        assert_eq!(memory("").unwrap().told().count(), 0);
    }

    #[test]
    fn figures_that_cannot_be_are_refused_with_what_to_write() {
        for (part, instead, word) in [
            ("q4 =", "q5 =", "fp32, q4"),
            ("800 MiB", "0 B", "more than nothing"),
            ("800 MiB", "800 TiB", "512 KiB"),
            ("800 MiB", "9000000 GiB", "at most 1024 GiB"),
            ("100 MiB", "0 B", "cpu.fixed"),
            ("12 MiB", "2000 GiB", "cuda.each"),
            ("24 MiB", "-1 MiB", "512 KiB"),
            ("unit = \"kilotoken\"", "", "memory.unit"),
            ("kilotoken", "bushel", "kilotoken"),
            ("cuda", "rocm", "unknown field `rocm`"),
            ("each", "per_unit", "unknown field `per_unit`"),
            ("fixed = \"100 MiB\", ", "", "fixed"),
        ] {
            assert!(TEXT.contains(part), "{part}");
            let error = memory(&TEXT.replacen(part, instead, 1)).unwrap_err();
            assert!(error.contains(word), "{instead}: {error}");
        }
        let error = memory("unit = \"window\"\ncpu = { fixed = \"1 MiB\" }").unwrap_err();
        assert!(error.contains("leave `unit` out"), "{error}");
    }
}
