//! Where a model runs that TensorRT is to run: there once its engine has been built and checked, on the next provider
//! until then. Building is batch work of its own, in a process of its own, within the budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    base::{Error, Result},
    engines::{
        Hired, Registry,
        prepare::{EngineKey, HostedBuilder, OnnxBuilder, Workbench, files},
        registry::{loader::Recipe, plans, serving::Serving},
    },
    flow::Priority,
    models::{ModelKey, Need, catalogue::Check},
    runtime::{ProviderOptions, Runtime},
    settings::Provider,
};

/// What TensorRT's builder is expected to need beside the weights, and how often it holds these: as a graph, as a network
/// and as an engine. Not measured.
const BUILD_BYTES: u64 = 2 << 30;
const BUILD_COPIES: u64 = 3;

/// What an engine is built of and held against.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) model: String,
    pub(super) variant: String,
    pub(super) dir: PathBuf,
    /// Those that the check names, by role, within the folder.
    pub(super) graphs: BTreeMap<String, String>,
    /// The model has no others.
    pub(super) is_whole: bool,
    pub(super) check: Check,
}

impl Checked {
    /// Of the graphs that are built, on the disk.
    fn bytes(&self) -> u64 {
        let files = self.graphs.values().flat_map(|graph| files(&self.dir, graph));
        files.filter_map(|file| Some(self.dir.join(file).metadata().ok()?.len())).sum()
    }
}

/// What TensorRT has built of a model, and was held against its check.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Built {
    pub(super) folder: PathBuf,
    /// Of the graphs that run on it.
    pub(super) roles: BTreeSet<String>,
    /// Where the others run.
    pub(super) beside: Provider,
}

/// Where a model may run now, best first.
pub(super) struct Order {
    pub(super) providers: Vec<Provider>,
    /// If TensorRT is among them and serves what it has built.
    pub(super) built: Option<Built>,
    /// Why it is not as the settings want it.
    pub(super) told: Option<String>,
}

impl Registry {
    pub(super) fn order(&self, serving: &Serving) -> Result<Order> {
        let (order, checked) = (&serving.providers, serving.checked.as_ref());
        // What a plan is needs no engine.
        if order.first() != Some(&Provider::TensorRt) || serving.beside.is_some() {
            return Ok(Order { providers: order.clone(), built: None, told: None });
        }
        // Before minutes are spent on an engine that would have nothing beside it.
        let beside = match checked {
            Some(checked) => {
                let of = (checked.model.as_str(), checked.variant.as_str());
                plans::beside(of, checked.is_whole, order, &self.0.settings)?
            }
            None => Provider::TensorRt,
        };
        let key = match checked {
            Some(checked) => self.engine_key(checked),
            None => Err(Error::unavailable("no check")),
        };
        let choice = self.0.engines.choose(key.as_ref(), order, checked.is_some())?;
        if let (Some(checked), Ok(key), true) = (checked, key, choice.build) {
            let bytes = BUILD_COPIES.saturating_mul(checked.bytes()).saturating_add(BUILD_BYTES);
            self.build_engine(checked, key, choice.provider, bytes)?;
        }
        let from = order.iter().position(|provider| *provider == choice.provider).unwrap_or(0);
        let built = checked.zip(choice.engines).map(|(checked, folder)| {
            let roles = checked.graphs.keys().cloned().collect();
            Built { folder, roles, beside }
        });
        Ok(Order { providers: order[from..].to_vec(), built, told: choice.told })
    }

    fn engine_key(&self, checked: &Checked) -> Result<EngineKey> {
        let settings = &self.0.settings;
        let gpu = self.0.gpu.get().ok_or_else(|| Error::unavailable("this machine has no GPU"))?;
        let ProviderOptions::TensorRt(options) = ProviderOptions::new(Provider::TensorRt, &settings.providers, None)
        else {
            return Err(Error::internal("options of another provider"));
        };
        let runtime = Runtime::open(&self.stock().library()?)?;
        let (name, graphs) = ((&*checked.model, &*checked.variant), (&*checked.dir, &checked.graphs));
        EngineKey::new(name, graphs, (&runtime, gpu), options, &self.0.digests)
    }

    fn build_engine(&self, checked: &Checked, key: EngineKey, reference: Provider, bytes: u64) -> Result<()> {
        let builder = OnnxBuilder {
            library: self.stock().library()?,
            graphs: checked.graphs.iter().map(|(role, path)| (role.clone(), checked.dir.join(path))).collect(),
            check: checked.check.clone(),
            tensorrt: key.options.clone(),
            reference: ProviderOptions::new(reference, &self.0.settings.providers, None),
            threads: 1,
        };
        let name = format!("{}-engine-build", checked.model);
        let (registry, recipe, model) = (self.clone(), Recipe::of(builder), name.clone());
        let hire = move || -> futures_util::future::BoxFuture<'static, Result<Hired<Workbench>>> {
            let (registry, recipe, model) = (registry.clone(), recipe.clone(), model.clone());
            Box::pin(async move { registry.hire_workbench(model, recipe, bytes).await })
        };
        let runtime = tokio::runtime::Handle::current();
        let builder = HostedBuilder { runtime: runtime.clone(), hire: Box::new(hire) };
        let registry = self.clone();
        let done = move |_: &_| {
            // Its process has nothing more to do, and its memory is others'.
            runtime.spawn(async move { registry.unload(&name).await });
        };
        self.0.engines.start(key, checked.check.clone(), Box::new(builder), done).map(drop)
    }

    async fn hire_workbench(&self, model: String, recipe: Recipe, bytes: u64) -> Result<Hired<Workbench>> {
        let provider = Provider::TensorRt;
        let key = ModelKey { model, variant: "engine".to_owned(), provider: provider.name().to_owned() };
        let memory = self.memory()?;
        memory.shelf(provider)?.put(&key, recipe);
        let need = Need {
            key,
            estimate_bytes: 0,
            // Its process holds nothing of it when it is loaded.
            workspace_bytes: bytes,
            priority: Priority::Batch,
            resident: false,
            yields: false,
            instead_of: None,
        };
        let lease = memory.lease(provider, need).await?;
        Hired::leased(lease)
    }
}
