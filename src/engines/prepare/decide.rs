//! Which provider serves a model now, and whether an engine is to be built. Pure.

use crate::{engines::prepare::EngineState, settings::Provider};

#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// None where only TensorRT is permitted and its engine is not there.
    pub serve: Option<Provider>,
    pub build: bool,
    /// Why the first of the order does not serve.
    pub told: Option<String>,
}

/// `order`: what the task permits, best first. `has_check`: whether the model says what an engine must reproduce.
pub fn decide(order: &[Provider], state: &EngineState, has_check: bool) -> Decision {
    let first = order.first().copied();
    if first != Some(Provider::TensorRt) || (has_check && *state == EngineState::Ready) {
        return Decision { serve: first, build: false, told: None };
    }
    let serve = order.iter().copied().find(|provider| *provider != Provider::TensorRt);
    let meanwhile = serve.map_or("nothing else may serve".to_owned(), |it| format!("{} serves", it.name()));
    let why = match state {
        _ if !has_check => "the model has no check that a TensorRT engine could be held against".to_owned(),
        EngineState::Absent | EngineState::Ready => "its TensorRT engine is about to be built".to_owned(),
        EngineState::Building { progress } => format!("its TensorRT engine is being built ({:.0} %)", progress * 100.0),
        EngineState::Quarantined { reason } => format!("its TensorRT engine is quarantined: {reason}"),
        EngineState::Failed { reason } => format!("its TensorRT engine could not be built: {reason}"),
    };
    let build = has_check && *state == EngineState::Absent;
    Decision { serve, build, told: Some(format!("{why}; {meanwhile}")) }
}
