//! Jetson modules, by the device tree and `/etc/nv_tegra_release`.
//!
//! Their GPU is named here too: it is part of the chip, and which chip decides what it can do.

use serde::Serialize;

use super::{Card, tree::Tree};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Jetson {
    /// As the device tree names it.
    pub model: String,
    /// Jetson Linux, as `36.4.3`.
    pub l4t: Option<String>,
    /// As `6.2`; only the major (`6`) for a release that is not in the table.
    pub jetpack: Option<String>,
    /// The module on the board, as `Jetson Orin Nano 8GB`.
    pub module: Option<String>,
}

/// Jetson Linux → JetPack, as <https://developer.nvidia.com/embedded/jetpack-archive> pairs them.
const JETPACKS: [(&str, &str); 35] = [
    ("32.3.1", "4.3"),
    ("32.4.3", "4.4"),
    ("32.4.4", "4.4.1"),
    ("32.5.0", "4.5"),
    ("32.5.1", "4.5.1"),
    ("32.5.2", "4.5.1"),
    ("32.6.1", "4.6"),
    ("32.7.1", "4.6.1"),
    ("32.7.2", "4.6.2"),
    ("32.7.3", "4.6.3"),
    ("32.7.4", "4.6.4"),
    ("32.7.5", "4.6.5"),
    ("32.7.6", "4.6.6"),
    ("34.1.0", "5.0 DP"),
    ("34.1.1", "5.0.1 DP"),
    ("35.1.0", "5.0.2"),
    ("35.2.1", "5.1"),
    ("35.3.1", "5.1.1"),
    ("35.4.1", "5.1.2"),
    ("35.5.0", "5.1.3"),
    ("35.6.0", "5.1.4"),
    ("35.6.1", "5.1.5"),
    ("36.2.0", "6.0 DP"),
    ("36.3.0", "6.0"),
    ("36.4.0", "6.1"),
    ("36.4.3", "6.2"),
    ("36.4.4", "6.2.1"),
    ("36.4.7", "6.2.1"),
    ("36.5.0", "6.2.2"),
    ("36.5.2", "6.2.3"),
    ("38.2.0", "7.0"),
    ("38.2.1", "7.0"),
    ("38.4.0", "7.1"),
    ("39.2.0", "7.2"),
    ("39.2.1", "7.2.1"),
];

const JETPACK_MAJORS: [(&str, &str); 6] =
    [("32", "4"), ("34", "5"), ("35", "5"), ("36", "6"), ("38", "7"), ("39", "7")];

/// Part number → module.
const MODULES: [(&str, &str); 18] = [
    ("p3448-0000", "Jetson Nano 4GB"),
    ("p3448-0002", "Jetson Nano 4GB"),
    ("p3448-0003", "Jetson Nano 2GB"),
    ("p3310-1000", "Jetson TX2 8GB"),
    ("p3636-0001", "Jetson TX2 NX 4GB"),
    ("p3668-0000", "Jetson Xavier NX 8GB"),
    ("p3668-0001", "Jetson Xavier NX 8GB"),
    ("p3668-0003", "Jetson Xavier NX 16GB"),
    ("p3767-0000", "Jetson Orin NX 16GB"),
    ("p3767-0001", "Jetson Orin NX 8GB"),
    ("p3767-0003", "Jetson Orin Nano 8GB"),
    ("p3767-0004", "Jetson Orin Nano 4GB"),
    ("p3767-0005", "Jetson Orin Nano 8GB"),
    ("p3701-0000", "Jetson AGX Orin 32GB"),
    ("p3701-0004", "Jetson AGX Orin 32GB"),
    ("p3701-0005", "Jetson AGX Orin 64GB"),
    ("p3701-0008", "Jetson AGX Orin Industrial 64GB"),
    ("p3834-0008", "Jetson T5000 128GB"),
];

/// Chip → its GPU and what it can do.
const CHIPS: [(&str, &str, &str); 5] = [
    ("nvidia,tegra210", "NVIDIA Tegra X1", "5.3"),
    ("nvidia,tegra186", "NVIDIA Tegra X2", "6.2"),
    ("nvidia,tegra194", "NVIDIA Xavier", "7.2"),
    ("nvidia,tegra234", "NVIDIA Orin", "8.7"),
    ("nvidia,tegra264", "NVIDIA Thor", "11.0"),
];

/// The Jetson and its GPU; nothing on another machine.
pub(super) fn read(tree: &mut Tree, kernel: Option<&str>) -> Option<(Jetson, Card)> {
    let model = tree.first_text(&["sys/firmware/devicetree/base/model", "proc/device-tree/model"]);
    let model = model.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    let compatible = tree
        .first_text(&["sys/firmware/devicetree/base/compatible", "proc/device-tree/compatible"])
        .unwrap_or_default();
    let release = tree.text("etc/nv_tegra_release");
    let chip = CHIPS.iter().find(|chip| compatible.lines().any(|line| line == chip.0));

    // 1. the device tree says so; 2. a container may hide the device tree, but not the kernel it runs on.
    let named = chip.is_some() || model.as_deref().is_some_and(|model| model.contains("Jetson"));
    let hidden = release.is_some() || kernel.is_some_and(|kernel| kernel.contains("-tegra"));
    if !named && !hidden {
        return None;
    }
    let model = model.unwrap_or_else(|| {
        tree.note("this is a Jetson, but its device tree is hidden (a container?): which one is unknown");
        "NVIDIA Jetson".to_owned()
    });
    let l4t = match &release {
        Some(text) => {
            let l4t = parse_release(text);
            if l4t.is_none() {
                tree.note("/etc/nv_tegra_release has another form than `# R36 (release), REVISION: 4.3, …`");
            }
            l4t
        }
        None => {
            tree.note("/etc/nv_tegra_release is not there: the JetPack version is unknown");
            None
        }
    };
    let jetpack = l4t.as_deref().and_then(jetpack).map(str::to_owned);
    let module = compatible.lines().find_map(module).map(str::to_owned);
    let gpu = Card {
        index: 0,
        uuid: None,
        name: chip.map_or("NVIDIA Tegra", |chip| chip.1).to_owned(),
        vram_bytes: None,
        driver: None,
        compute_capability: chip.map(|chip| chip.2.to_owned()),
    };
    Some((Jetson { model, l4t, jetpack, module }, gpu))
}

/// `# R36 (release), REVISION: 4.3, GCID: …` → `36.4.3`.
fn parse_release(text: &str) -> Option<String> {
    let (release, rest) = text.trim_start().strip_prefix("# R")?.split_once(" (release), REVISION: ")?;
    let revision = rest.split([',', '\n']).next()?.trim();
    let number = |text: &str| !text.is_empty() && text.split('.').all(|part| part.parse::<u16>().is_ok());
    (number(release) && number(revision)).then(|| format!("{release}.{revision}"))
}

fn jetpack(l4t: &str) -> Option<&'static str> {
    // `35.1` and `35.1.0` are the same.
    let exact = JETPACKS.iter().find(|(release, _)| *release == l4t || release.strip_suffix(".0") == Some(l4t));
    let major = || JETPACK_MAJORS.iter().find(|(release, _)| l4t.split('.').next() == Some(release));
    exact.or_else(major).map(|(_, jetpack)| *jetpack)
}

/// The module in a `compatible` such as `nvidia,p3768-0000+p3767-0005-super` (carrier + module).
fn module(compatible: &str) -> Option<&'static str> {
    let part = |text: &str| MODULES.iter().find(|(part, _)| text.starts_with(part)).map(|(_, name)| *name);
    compatible.strip_prefix("nvidia,")?.split('+').rev().find_map(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_pair_with_their_jetpack() {
        for (line, l4t, pack) in [
            ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
            ("# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref\n", "35.3.1", "5.1.1"),
            ("# R32 (release), REVISION: 7.1, GCID: 29689809", "32.7.1", "4.6.1"),
            ("# R35 (release), REVISION: 1, GCID: 1", "35.1", "5.0.2"),
            ("# R36 (release), REVISION: 99.1, GCID: 1", "36.99.1", "6"),
        ] {
            assert_eq!(parse_release(line).as_deref(), Some(l4t));
            assert_eq!(jetpack(l4t), Some(pack));
        }
        assert_eq!(jetpack("99.1.0"), None);
    }

    #[test]
    fn a_release_of_another_form_is_no_release() {
        for text in
            ["", "# R", "# R36", "# R36 (release), REVISION: ", "# Rx (release), REVISION: 4.3", "R36.4.3", "\n"]
        {
            assert_eq!(parse_release(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_module_is_found_behind_its_carrier() {
        assert_eq!(module("nvidia,p3768-0000+p3767-0005-super"), Some("Jetson Orin Nano 8GB"));
        assert_eq!(module("nvidia,p3449-0000-b00+p3448-0000-b00"), Some("Jetson Nano 4GB"));
        assert_eq!(module("nvidia,p4071-0000+p3834-0008"), Some("Jetson T5000 128GB"));
        assert_eq!(module("nvidia,tegra234"), None);
        assert_eq!(module("raspberrypi,5-model-b"), None);
    }
}
