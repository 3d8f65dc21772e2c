//! What an engine is built of: plain data, so that a thread here and a process of its own build the same. The one list
//! of the engines that a host can run.

use serde::{Deserialize, Serialize};

use crate::{
    base::Result,
    engines::{
        BallastSpec, Cancel, Engine, GraphSpec, PieceText, SpeakersSpec, TranscribeAsk, TranscribeStep, Transcriber,
        VoicesSpec,
        asr::whisper::{Whisper, WhisperSpec},
        host::child::Link,
        prepare::OnnxBuilder,
    },
};

/// How to build one engine. It crosses to the process that is to be it.
pub trait Spec: Clone + Into<EngineSpec> + Send + 'static {
    type Engine: Engine;

    /// Takes as long as loading the model does.
    fn build(&self) -> Result<Self::Engine>;
}

/// Any engine; each kind has its own questions and answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EngineSpec {
    Asr(AsrSpec),
    Ballast(BallastSpec),
    Speakers(SpeakersSpec),
    Voices(VoicesSpec),
    Graph(GraphSpec),
    Workbench(OnnxBuilder),
    #[cfg(any(test, feature = "test-engine"))]
    Puppet(crate::engines::puppet::PuppetSpec),
}

impl EngineSpec {
    /// In the process of the engine: becomes it.
    pub(super) fn serve(self, name: &str, link: Link) -> Result<()> {
        match self {
            EngineSpec::Asr(spec) => link.serve(name, spec),
            EngineSpec::Ballast(spec) => link.serve(name, spec),
            EngineSpec::Speakers(spec) => link.serve(name, spec),
            EngineSpec::Voices(spec) => link.serve(name, spec),
            EngineSpec::Graph(spec) => link.serve(name, spec),
            EngineSpec::Workbench(spec) => link.serve(name, spec),
            #[cfg(any(test, feature = "test-engine"))]
            EngineSpec::Puppet(spec) => link.serve(name, spec),
        }
    }
}

/// Every family of transcribers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AsrSpec {
    Whisper(Box<WhisperSpec>),
    #[cfg(any(test, feature = "test-engine"))]
    TestEcho,
    #[cfg(any(test, feature = "test-engine"))]
    TestCount,
    /// With its variant.
    #[cfg(any(test, feature = "test-engine"))]
    TestLarge(String),
}

impl Spec for AsrSpec {
    type Engine = Asr;

    fn build(&self) -> Result<Asr> {
        match self {
            AsrSpec::Whisper(spec) => Ok(Asr(Box::new(Whisper::open(spec)?))),
            #[cfg(any(test, feature = "test-engine"))]
            AsrSpec::TestEcho => Ok(Asr(Box::new(crate::engines::echo::Echo))),
            #[cfg(any(test, feature = "test-engine"))]
            AsrSpec::TestCount => Ok(Asr(Box::new(crate::engines::echo::Count))),
            #[cfg(any(test, feature = "test-engine"))]
            AsrSpec::TestLarge(variant) => Ok(Asr(crate::engines::echo::large(variant)?)),
        }
    }
}

impl From<AsrSpec> for EngineSpec {
    fn from(spec: AsrSpec) -> EngineSpec {
        EngineSpec::Asr(spec)
    }
}

/// Any transcriber, as a host runs it.
pub struct Asr(pub Box<dyn Transcriber>);

impl Engine for Asr {
    type Ask = TranscribeAsk;
    type Progress = TranscribeStep;
    type Answer = Vec<PieceText>;

    fn answer(
        &mut self,
        ask: &TranscribeAsk,
        step: &mut dyn FnMut(TranscribeStep),
        cancel: &Cancel,
    ) -> Result<Vec<PieceText>> {
        self.0.transcribe(ask, step, cancel)
    }

    fn note(&self) -> Option<String> {
        self.0.note()
    }
}
