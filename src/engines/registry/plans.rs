//! Models of which only a part runs on TensorRT: serialized plans, which run as they are, with nothing to be built or
//! checked, or the graphs that a check names. The others run on the next provider that the settings permit. Never
//! elsewhere in silence.

use crate::{
    base::{Error, Kind, Result},
    settings::{Provider, Settings},
};

/// Where the graphs beside those run. `is_whole`: there are none. `wanted`: what the task permits, best first.
pub(super) fn beside(
    (model, variant): (&str, &str),
    is_whole: bool,
    wanted: &[Provider],
    settings: &Settings,
) -> Result<Provider> {
    if wanted.first() != Some(&Provider::TensorRt) {
        let first = wanted.first().map_or("nothing", |provider| provider.name());
        let message = format!("the variant {variant} of {model} holds plans of TensorRT, and `{first}` is to run it");
        return Err(Error::new(Kind::Unsupported, message)
            .hint("set the task's provider = \"tensorrt\", or choose another variant"));
    }
    if is_whole {
        return Ok(Provider::TensorRt);
    }
    // One that builds engines would build one for a graph that nobody has checked.
    let others = wanted.iter().chain(&settings.providers.order).copied();
    let mut others = others.filter(|provider| matches!(provider, Provider::Cuda | Provider::Cpu));
    others.next().ok_or_else(|| {
        let message = format!("not every graph of the variant {variant} of {model} runs on TensorRT");
        Error::new(Kind::Unsupported, message).hint("add \"cuda\" or \"cpu\" to providers.order: the others run there")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, load};

    #[test]
    fn plans_run_on_tensorrt_and_what_is_beside_them_on_the_next_provider_that_is_permitted() {
        let settings = |order: &str| {
            let sets = vec![format!("providers.order={order}")];
            load(&Sources { sets, ..Sources::default() }).unwrap().settings
        };
        use Provider::{Cpu, Cuda, TensorRt};
        let all = settings("[\"tensorrt\", \"cuda\", \"cpu\"]");
        let of = ("m", "trt");
        assert_eq!(beside(of, false, &[TensorRt, Cuda, Cpu], &all).unwrap(), Cuda);
        assert_eq!(beside(of, false, &[TensorRt], &settings("[\"cpu\"]")).unwrap(), Cpu, "the task names one alone");
        assert_eq!(beside(of, true, &[TensorRt], &settings("[\"tensorrt\"]")).unwrap(), TensorRt);
        let error = beside(of, false, &[TensorRt], &settings("[\"tensorrt\"]")).unwrap_err();
        assert!(error.hint_text().unwrap().contains("providers.order"), "{}", error.full());
        for wanted in [&[Cpu][..], &[Cuda, TensorRt], &[]] {
            let error = beside(of, true, wanted, &all).unwrap_err();
            assert!(error.kind() == Kind::Unsupported && error.full().contains("another variant"), "{}", error.full());
        }
    }
}
