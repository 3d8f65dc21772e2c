//! What is no fault of the settings and yet keeps models from serving; `check` and `doctor` tell it. Changes nothing.

use crate::{
    device::{Facts, MemoryKind},
    models::Budget,
    settings::Settings,
};

/// For each memory of this machine in which no model has room, with every figure that it follows from.
pub(super) fn no_room(settings: &Settings, facts: &Facts) -> Vec<String> {
    let mut kinds = vec![facts.memory_kind];
    if facts.memory_kind == MemoryKind::Dedicated {
        // Models run on the processor too.
        kinds.push(MemoryKind::None);
    }
    let budgets = kinds.into_iter().map(|memory_kind| {
        let facts = Facts { memory_kind, ..facts.clone() };
        Budget::measure(&facts, &settings.memory)
    });
    // Of a machine that tells nothing nothing is known.
    let without_room = budgets.filter(|budget| budget.limit == 0 && budget.total > 0);
    without_room.map(|budget| format!("no model can be loaded: {}", budget.describe())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        device::probe,
        settings::{Sources, load},
    };

    #[test]
    fn a_memory_that_is_kept_for_others_altogether_is_told_with_its_figures() {
        let told = |machine: &str, set: &str| {
            let settings = load(&Sources { sets: vec![set.to_owned()], ..Sources::default() }).unwrap().settings;
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/device").join(machine);
            no_room(&settings, &probe(&root))
        };
        assert_eq!(told("container-4gib", "memory.system=1 GiB"), [""; 0]);
        let [one] = &told("container-4gib", "memory.system=100 GiB")[..] else { panic!("one memory") };
        assert!(
            one.starts_with("no model can be loaded: models may take 0 B: 4 GiB of the system, less 100 GiB"),
            "{one}"
        );
        assert_eq!(told("pc-rtx-5070", "memory.system=100 GiB").len(), 2, "the card's and the host's");
        assert_eq!(told("jetson-orin-nano-8gb", "memory.system=100 GiB").len(), 1);
        assert_eq!(told("nowhere", "memory.system=100 GiB"), [""; 0]);
    }
}
