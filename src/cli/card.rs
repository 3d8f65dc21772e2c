//! Which card models use, of several: the settings say it, the machine has it, and CUDA in this process and in those of its
//! engines is shown no other, so that what is measured and what computes is the same card.

use crate::{
    device::{Facts, VISIBLE},
    settings::{Fault, Sources, wanted_card},
};

/// Puts the card first that the settings want.
pub(super) fn choose(sources: &Sources, facts: &mut Facts) -> Option<Fault> {
    let fault = wanted_card(sources).and_then(|(index, origin)| {
        let problem = facts.choose_card(index).err()?;
        Some(Fault::new("providers.device_id", origin, problem))
    });
    let shown = facts.cuda_variables().into_iter().find(|(name, _)| *name == VISIBLE);
    let note = format!("{VISIBLE} is set, and not heeded: providers.device_id says which card computes");
    let is_other = |(_, uuid): (_, String)| sources.variable(VISIBLE).is_some_and(|given| given != uuid);
    if shown.is_some_and(is_other) && !facts.notes.contains(&note) {
        facts.notes.push(note);
    }
    fault
}

/// From now on CUDA sees that card alone, in this process and in those that it starts. Only while no other thread runs.
pub(super) fn show_alone(facts: &Facts) {
    for (name, value) in facts.cuda_variables() {
        // SAFETY: commands do this before they start anything, and no thread reads the environment meanwhile. CUDA takes
        // which cards it may see from nowhere else.
        unsafe { std::env::set_var(name, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Gpu;

    fn facts() -> Facts {
        let gpu = |index: u32| Gpu {
            index,
            uuid: Some(format!("GPU-{index}")),
            name: format!("card {index}"),
            ..Gpu::default()
        };
        let mut facts = crate::device::probe(std::path::Path::new("/nowhere"));
        facts.gpus = vec![gpu(1), gpu(0)];
        facts.notes.clear();
        facts
    }

    fn sources(set: &str, visible: &str) -> Sources {
        let env = vec![(VISIBLE.to_owned(), visible.to_owned())];
        Sources { env, sets: vec![format!("providers.device_id={set}")], ..Sources::default() }
    }

    #[test]
    fn the_card_of_the_settings_comes_first_and_one_that_is_not_there_is_a_fault() {
        for (set, first) in [("auto", 1), ("0", 0), ("1", 1)] {
            let mut facts = facts();
            assert_eq!(choose(&sources(set, ""), &mut facts), None, "{set}");
            assert_eq!((facts.gpus[0].index, facts.notes.len()), (first, 0), "{set}");
        }
        let fault = choose(&sources("7", ""), &mut facts()).unwrap();
        assert_eq!((fault.key.as_str(), fault.origin.as_str()), ("providers.device_id", "--set"));
        assert!(fault.problem.contains("1 is card 1, 0 is card 0"), "{fault}");
    }

    #[test]
    fn a_variable_that_says_otherwise_is_a_note_once() {
        let mut facts = facts();
        let sources = sources("0", "1");
        choose(&sources, &mut facts);
        choose(&sources, &mut facts);
        assert_eq!(facts.notes.len(), 1, "{:?}", facts.notes);
        assert!(facts.notes[0].contains("CUDA_VISIBLE_DEVICES is set, and not heeded"));
        let mut facts = self::facts();
        choose(&self::sources("0", "GPU-0"), &mut facts);
        assert_eq!(facts.notes, [""; 0], "what it would be set to anyway");
    }
}
