//! Which variants of a model may serve where there is no memory for the one that is wanted: those that the settings name
//! behind it, or, where they name none at all, the smaller ones that are installed. Never one that they do not permit.

use crate::{
    base::{Error, Result},
    engines::registry::serving::{PRECISIONS, Serving, Stock},
    flow::Task,
};

#[derive(Default)]
pub struct Smaller {
    /// In the order in which they are tried.
    pub(super) servings: Vec<Serving>,
    /// How to have one more.
    pub(super) hint: Option<String>,
}

impl Stock<'_> {
    pub(super) fn smaller_transcribers(&self, wanted: &Serving) -> Result<Smaller> {
        let (task, model) = (Task::Transcribe.name(), &wanted.model);
        // A plan is made of one variant for one card.
        if wanted.beside.is_some() {
            return Ok(Smaller::default());
        }
        let in_variant =
            |variant: &str| self.transcriber_in(model, Some(variant)).ok().filter(|it| it.beside.is_none());
        match &self.settings.variants_for(Task::Transcribe)[..] {
            [] => {
                let all = self.variants_of(model)?;
                let (mut servings, mut others) = (Vec::new(), Vec::new());
                for variant in all.iter().filter(|it| **it != wanted.variant) {
                    match in_variant(variant) {
                        Some(it) if it.appetite.weights_bytes < wanted.appetite.weights_bytes => servings.push(it),
                        Some(_) => {}
                        None => others.push(variant.as_str()),
                    }
                }
                servings.sort_by_key(|it| std::cmp::Reverse(it.appetite.weights_bytes));
                let hint = (!others.is_empty()).then(|| match self.is_listed(model) {
                    true => format!(
                        "`vigia models pull {model} --variant NAME` fetches another variant, which may fit: {}",
                        others.join(", ")
                    ),
                    false => {
                        "a smaller precision in its folder, such as q4 (or q8 on a processor), would serve instead"
                            .to_owned()
                    }
                });
                Ok(Smaller { servings, hint })
            }
            [only] => {
                let hint =
                    format!("tasks.{task}.variant permits {only} alone: name smaller ones behind it, with commas");
                Ok(Smaller { servings: Vec::new(), hint: Some(hint) })
            }
            [_, others @ ..] => {
                let (mut servings, mut missing) = (Vec::new(), Vec::new());
                for variant in others {
                    match in_variant(variant) {
                        Some(it) => servings.push(it),
                        None => missing.push(*variant),
                    }
                }
                let hint = (!missing.is_empty()).then(|| {
                    format!(
                        "tasks.{task}.variant names {}, which cannot serve here: `vigia models show {model}`",
                        missing.join(", ")
                    )
                });
                Ok(Smaller { servings, hint })
            }
        }
    }

    /// Whether this model may have such a variant; it need not be here.
    pub(super) fn knows(&self, model: &str, variant: &str) -> Result<()> {
        let all = self.variants_of(model)?;
        if all.iter().any(|known| known == variant) {
            return Ok(());
        }
        Err(Error::invalid(format!("tasks.transcribe.variant names {variant}, which {model} does not have"))
            .hint(format!("it has: {}", all.join(", "))))
    }

    fn is_listed(&self, model: &str) -> bool {
        self.catalogue().is_ok_and(|catalogue| catalogue.get(model).is_some())
    }

    fn variants_of(&self, model: &str) -> Result<Vec<String>> {
        #[cfg(any(test, feature = "test-engine"))]
        if model == crate::engines::echo::LARGE {
            return Ok(crate::engines::echo::SIZES.map(str::to_owned).to_vec());
        }
        Ok(match self.catalogue()?.get(model) {
            Some(entry) => entry.variants().into_iter().map(str::to_owned).collect(),
            None => PRECISIONS.map(str::to_owned).to_vec(),
        })
    }
}
