//! An engine that weighs and works without a model: it really holds its bytes and takes its time, so that the planning of
//! memory can be tried with real processes on any machine. `vigia bench ledger` runs it; no task is served by it.

use std::{thread, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    base::{Error, Kind, Result},
    engines::{Cancel, Engine, EngineSpec, Spec},
};

/// The smallest page there is; a page that nobody has written to is not there.
const PAGE_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BallastSpec {
    pub bytes: u64,
    /// What it takes beside that while it works.
    pub work_bytes: u64,
    /// What loading takes beside filling the memory.
    pub load_ms: u64,
    pub step_ms: u64,
}

/// So many steps of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BallastAsk {
    pub steps: u32,
}

pub struct Ballast {
    held: Vec<u8>,
    work_bytes: u64,
    step: Duration,
}

impl Spec for BallastSpec {
    type Engine = Ballast;

    fn build(&self) -> Result<Ballast> {
        let held = filled(self.bytes)?;
        thread::sleep(Duration::from_millis(self.load_ms));
        Ok(Ballast { held, work_bytes: self.work_bytes, step: Duration::from_millis(self.step_ms) })
    }
}

fn filled(bytes: u64) -> Result<Vec<u8>> {
    let too_much = || Error::new(Kind::OverBudget, format!("{} MiB are more than this machine can give", bytes >> 20));
    let bytes = usize::try_from(bytes).map_err(|_| too_much())?;
    let mut held = Vec::new();
    held.try_reserve_exact(bytes).map_err(|error| too_much().cause(error))?;
    // Every byte, as a model's weights are; pages of zeros could be shared.
    held.resize(bytes, 1);
    Ok(held)
}

impl From<BallastSpec> for EngineSpec {
    fn from(spec: BallastSpec) -> EngineSpec {
        EngineSpec::Ballast(spec)
    }
}

impl Engine for Ballast {
    type Ask = BallastAsk;
    /// The number of the step that begins.
    type Progress = u32;
    /// The bytes that were held while it worked.
    type Answer = u64;

    fn answer(&mut self, ask: &BallastAsk, step: &mut dyn FnMut(u32), cancel: &Cancel) -> Result<u64> {
        let worked_in = filled(self.work_bytes)?;
        for number in 0..ask.steps {
            if cancel.is_cancelled() {
                return Err(Error::new(Kind::Cancelled, "given up between two steps"));
            }
            step(number);
            thread::sleep(self.step);
        }
        let whole = self.held.iter().chain(&worked_in).step_by(PAGE_BYTES).all(|byte| *byte == 1);
        if whole {
            Ok(self.held.len() as u64)
        } else {
            Err(Error::internal("the memory is not what was written to it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_tells_every_step_and_what_it_holds() {
        let mut ballast = BallastSpec { bytes: 3 * MIB, work_bytes: MIB, load_ms: 0, step_ms: 0 }.build().unwrap();
        let mut told = Vec::new();
        let held = ballast.answer(&BallastAsk { steps: 3 }, &mut |step| told.push(step), &Cancel::default());
        assert_eq!((held.unwrap(), told), (3 * MIB, vec![0, 1, 2]));
    }

    #[test]
    fn a_cancelled_job_is_given_up_at_the_next_step() {
        let mut ballast = BallastSpec { bytes: 1, work_bytes: 0, load_ms: 0, step_ms: 0 }.build().unwrap();
        let (cancel, mut steps) = (Cancel::default(), 0);
        let mut step = |_| {
            steps += 1;
            cancel.cancel();
        };
        let error = ballast.answer(&BallastAsk { steps: 1000 }, &mut step, &cancel).unwrap_err();
        assert_eq!((error.kind(), steps), (Kind::Cancelled, 1));
    }

    #[test]
    fn more_than_the_machine_has_is_over_budget() {
        let error = BallastSpec { bytes: u64::MAX / 4, work_bytes: 0, load_ms: 0, step_ms: 0 }.build().err().unwrap();
        assert_eq!(error.kind(), Kind::OverBudget);
        let spec = BallastSpec { bytes: 1, work_bytes: u64::MAX / 4, load_ms: 0, step_ms: 0 };
        let asked = spec.build().unwrap().answer(&BallastAsk { steps: 1 }, &mut drop, &Cancel::default());
        assert_eq!(asked.unwrap_err().kind(), Kind::OverBudget);
    }
}
