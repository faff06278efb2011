//! Runs an ONNX graph; the only file that names `ort`.
//!
//! A session checks the graph's inputs and outputs against what the manifest promises when it opens, and the shapes it
//! gets back at every run, so that a bundle put together from two exports is refused by name. A graph of somebody else's
//! making is looked at first ([`Graph`]).

use crate::cpu;
use crate::dylib::{self, DylibError, Probed};
use crate::external_data;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::{Session as OrtSession, SessionInputValue, builder::GraphOptimizationLevel};
use ort::value::{TensorElementType, TensorRef, ValueType};
use parking_lot::FairMutex;
use std::borrow::Cow;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Version of ONNX Runtime's C API, and minor version of the library, that is needed at least.
pub const API_VERSION: u32 = ort::MINOR_VERSION;

/// How graphs are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// The ONNX Runtime library; searched for (see [`crate::dylib`]) when absent.
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one operator; 0 = one for each physical core. Operators run one after the other.
    pub threads: usize,
    /// Whether threads that wait for the next operator of a run burn their core meanwhile; between runs none does.
    pub spinning: bool,
    /// Whether freed memory is kept for the next run. It keeps the peak of the largest batch for ever.
    pub arena: bool,
    /// Whether allocations are planned from the first run; only of use when all inputs have one shape.
    pub memory_pattern: bool,
    /// What computes, the most wanted first; the CPU takes what is left.
    pub providers: Vec<Provider>,
}

/// What can compute a graph, if the library has it (ONNX Runtime's execution providers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    /// Always there.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// NVIDIA GPUs, graphs compiled when they are opened.
    Tensorrt,
    /// Intel's processors, graphics and accelerators.
    Openvino,
    /// Apple's.
    Coreml,
    /// ARM processors and others.
    Xnnpack,
}

impl Provider {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Tensorrt => "tensorrt",
            Self::Openvino => "openvino",
            Self::Coreml => "coreml",
            Self::Xnnpack => "xnnpack",
        }
    }

    /// Whether the library was built with it, and how it is asked for.
    fn of_ort(self, threads: usize, arena: bool) -> (ort::Result<bool>, ExecutionProviderDispatch) {
        let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
        match self {
            Self::Cpu => (Ok(true), ep::CPU::default().with_arena_allocator(arena).build()),
            Self::Cuda => (ep::CUDA::is_available(), ep::CUDA::default().build()),
            Self::Tensorrt => (ep::TensorRT::is_available(), ep::TensorRT::default().build()),
            Self::Openvino => (ep::OpenVINO::is_available(), ep::OpenVINO::default().build()),
            Self::Coreml => (ep::CoreML::is_available(), ep::CoreML::default().build()),
            Self::Xnnpack => {
                let provider = ep::XNNPACK::default().with_intra_op_num_threads(threads);
                (ep::XNNPACK::is_available(), provider.build())
            }
        }
    }
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            ort_dylib: None,
            threads: 0,
            spinning: true,
            arena: true,
            memory_pattern: false,
            providers: Vec::new(),
        }
    }
}

/// Why a graph cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library cannot be used.
    #[error(transparent)]
    Dylib(#[from] DylibError),
    /// A second library was asked for.
    #[error("ONNX Runtime is already loaded from {loaded}; one process cannot use {asked} as well")]
    SecondLibrary {
        /// Library in use.
        loaded: PathBuf,
        /// Library asked for.
        asked: PathBuf,
    },
    /// ONNX Runtime refuses.
    #[error("{file}: ONNX Runtime cannot {what}: {message}")]
    Ort {
        /// Graph or library.
        file: PathBuf,
        /// `load the graph`, `run the graph` ...
        what: &'static str,
        /// Its words.
        message: String,
    },
    /// An input or output is not there, or there is one that nobody would fill.
    #[error(
        "{file}: {what} `{name}` is {fault}; the graph has {found}; graph and manifest.json come from different exports"
    )]
    Port {
        /// The graph.
        file: PathBuf,
        /// `input` or `output`.
        what: &'static str,
        /// Its name.
        name: String,
        /// `missing` or `unknown`.
        fault: &'static str,
        /// Names there are.
        found: String,
    },
    /// An input or output of another type or size.
    #[error(
        "{file}: {what} `{name}` is {found}, manifest.json asks for {expected}; graph and manifest.json come from different exports"
    )]
    Type {
        /// The graph.
        file: PathBuf,
        /// `input` or `output`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Type and dimensions in the graph, `?` where they are free.
        found: String,
        /// Type and dimensions expected.
        expected: String,
    },
    /// Numbers that nothing can be ranked by.
    #[error(
        "{file}: output `{name}` holds {value}; the graph overflows on this machine, try another precision"
    )]
    NotFinite {
        /// The graph.
        file: PathBuf,
        /// The output.
        name: String,
        /// `NaN` or `inf`.
        value: f32,
    },
}

/// Kind of number in an input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 64-bit integers.
    Int64,
    /// 32-bit floats.
    Float32,
}

/// An input or output as the manifest promises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name in the graph.
    pub name: Cow<'static, str>,
    /// Numbers.
    pub element: Element,
    /// Dimensions; `None` is free (batch, sequence).
    pub dims: Vec<Option<usize>>,
}

/// A float tensor that came out of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values, the last dimension fastest.
    pub values: Vec<f32>,
}

/// Values for one input.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// For [`Element::Int64`].
    Int64(&'a [i64]),
    /// For [`Element::Float32`].
    Float32(&'a [f32]),
}

/// An input or output as a graph declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlet {
    /// Name in the graph.
    pub name: String,
    /// Numbers; `None` where nothing here could fill or read them.
    pub element: Option<Element>,
    /// Dimensions; `None` is free.
    pub dims: Vec<Option<usize>>,
    /// Type and dimensions in words, `?` where they are free.
    pub description: String,
}

/// A graph that is loaded but not yet held to anything: what a foreign one has can be looked at before it is decided what
/// is asked of it.
pub struct Graph {
    file: PathBuf,
    inner: OrtSession,
    fallbacks: Vec<String>,
}

impl Graph {
    /// Loads a graph.
    pub fn load(file: &Path, options: &SessionOptions) -> Result<Self, SessionError> {
        let (_, environment) = environment(options.ort_dylib.as_deref())?;
        let threads = if options.threads == 0 { cpu::physical_cores() } else { options.threads };
        let mut fallbacks = Vec::new();
        let mut commit = |linked: &[(OsString, PathBuf)]| -> ort::Result<OrtSession> {
            fallbacks.clear();
            let mut builder = OrtSession::builder(&environment)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                .with_parallel_execution(false)?
                .with_intra_op_spinning(options.spinning)?
                .with_inter_op_spinning(options.spinning)?
                // Between runs a robot's cores sleep; within one, waking a thread for each of hundreds of small
                // operators would take a third of a short query's time.
                .with_config_entry("session.force_spinning_stop", "1")?
                .with_memory_pattern(options.memory_pattern)?;
            let wanted = options.providers.iter().copied().take_while(|provider| *provider != Provider::Cpu);
            for provider in wanted.chain([Provider::Cpu]) {
                let (available, dispatch) = provider.of_ort(threads, options.arena);
                let name = provider.name();
                let refused = match available {
                    Ok(false) => Some("this ONNX Runtime library was built without it".to_owned()),
                    Ok(true) => dispatch.register(&mut builder).err().map(|e| e.message().trim().to_owned()),
                    Err(error) => Some(error.message().trim().to_owned()),
                };
                fallbacks
                    .extend(refused.map(|why| format!("{name} does not compute {}: {why}", file.display())));
            }
            for (name, target) in linked {
                let bytes = external_data::read(target).map_err(ort::Error::wrap)?;
                builder = builder.with_external_initializer_file_in_memory(name, bytes)?;
            }
            builder.commit_from_file(file)
        };
        let linked = external_data::linked_away(file);
        let inner = match commit(&[]) {
            Err(_) if !linked.is_empty() => commit(&linked),
            opened => opened,
        };
        let inner = inner.map_err(ort_error(file, "load the graph"))?;
        Ok(Self { file: file.to_owned(), inner, fallbacks })
    }

    /// What it takes.
    pub fn inputs(&self) -> Vec<Outlet> {
        self.inner.inputs().iter().map(|found| outlet(found.name(), found.dtype())).collect()
    }

    /// What it gives.
    pub fn outputs(&self) -> Vec<Outlet> {
        self.inner.outputs().iter().map(|found| outlet(found.name(), found.dtype())).collect()
    }

    /// A session, if the graph has exactly these inputs, and at least these outputs.
    pub fn session(self, inputs: Vec<Port>, outputs: Vec<Port>) -> Result<Session, SessionError> {
        let file = &self.file;
        for (what, ports, found) in [("input", &inputs, self.inputs()), ("output", &outputs, self.outputs())]
        {
            let names: Vec<&str> = found.iter().map(|outlet| outlet.name.as_str()).collect();
            for port in ports {
                let Some(outlet) = found.iter().find(|outlet| outlet.name == port.name) else {
                    return Err(port_error(file, what, &port.name, "missing", &names));
                };
                if !port.admits(outlet) {
                    return Err(type_error(file, what, port, outlet.description.clone()));
                }
            }
            let unknown = names.iter().find(|name| !ports.iter().any(|port| port.name == **name));
            if let (Some(name), "input") = (unknown, what) {
                return Err(port_error(file, what, name, "unknown", &names));
            }
        }
        let Self { file, inner, fallbacks } = self;
        Ok(Session { file, inputs, outputs, inner: FairMutex::new(inner), fallbacks })
    }
}

/// An opened graph. Any thread may run it; runs wait for each other, each using all of the session's threads.
pub struct Session {
    file: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Fair: whoever encodes one text after the other must let others between.
    inner: FairMutex<OrtSession>,
    fallbacks: Vec<String>,
}

impl Session {
    /// Opens a graph that must have exactly these inputs, and at least these outputs.
    pub fn open(
        file: &Path,
        options: &SessionOptions,
        inputs: Vec<Port>,
        outputs: Vec<Port>,
    ) -> Result<Self, SessionError> {
        Graph::load(file, options)?.session(inputs, outputs)
    }

    /// A sentence for each provider that was wanted and does not compute.
    pub fn fallbacks(&self) -> &[String] {
        &self.fallbacks
    }

    /// Runs the graph: values and shape for every input, in the order given to [`Session::open`]; the outputs come in
    /// that order too. The first dimension of all is the batch. Sizes that do not fit and results that are not finite
    /// are errors.
    pub fn run(&self, inputs: &[(Values<'_>, &[usize])]) -> Result<Vec<Tensor>, SessionError> {
        let mut session = self.inner.lock();
        let mut run = || -> ort::Result<Vec<(Vec<usize>, Vec<f32>)>> {
            let mut named: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
            for (port, (values, shape)) in self.inputs.iter().zip(inputs) {
                let value = match *values {
                    Values::Int64(values) => TensorRef::from_array_view((*shape, values))?.into(),
                    Values::Float32(values) => TensorRef::from_array_view((*shape, values))?.into(),
                };
                named.push((Cow::Borrowed(port.name.as_ref()), value));
            }
            let found = session.run(named)?;
            let mut tensors = Vec::with_capacity(self.outputs.len());
            for port in &self.outputs {
                // Session::open saw the output; an empty shape fails the check below all the same.
                let Some(value) = found.get(port.name.as_ref()) else {
                    tensors.push((Vec::new(), Vec::new()));
                    continue;
                };
                let (shape, values) = value.try_extract_tensor::<f32>()?;
                let shape = shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
                tensors.push((shape, values.to_vec()));
            }
            Ok(tensors)
        };
        let found = run().map_err(ort_error(&self.file, "run the graph"))?;
        let batch = inputs.first().and_then(|(_, shape)| shape.first()).copied();
        let mut tensors = Vec::with_capacity(found.len());
        for (port, (shape, values)) in self.outputs.iter().zip(found) {
            let fits = |(&found, &expected): (&usize, &Option<usize>)| expected.is_none_or(|n| n == found);
            let same_batch = shape.first().copied() == batch;
            if !same_batch || shape.len() != port.dims.len() || !shape.iter().zip(&port.dims).all(fits) {
                return Err(type_error(&self.file, "output", port, format!("float {shape:?}")));
            }
            if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
                let (file, name) = (self.file.clone(), port.name.to_string());
                return Err(SessionError::NotFinite { file, name, value });
            }
            tensors.push(Tensor { shape, values });
        }
        Ok(tensors)
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("file", &self.file).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Loads the library, once for the process, and tells which one it is.
pub fn load(ort_dylib: Option<&Path>) -> Result<Probed, SessionError> {
    Ok(environment(ort_dylib)?.0)
}

/// The library in use and its environment; ONNX Runtime allows one of each in a process.
fn environment(ort_dylib: Option<&Path>) -> Result<(Probed, Environment), SessionError> {
    static LOADED: Mutex<Option<(Probed, Environment)>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((probed, environment)) = &*loaded {
        let same = |asked: &Path| dylib::resolve(asked)?.canonicalize().ok();
        let another = ort_dylib.filter(|asked| same(asked).as_ref() != Some(&probed.path));
        return match another {
            Some(asked) => {
                Err(SessionError::SecondLibrary { loaded: probed.path.clone(), asked: asked.to_owned() })
            }
            None => Ok((probed.clone(), environment.clone())),
        };
    }
    let probed = dylib::locate(ort_dylib, API_VERSION)?;
    let refuse = |message: String| SessionError::Ort { file: probed.path.clone(), what: "start", message };
    let environment = ort::init_from(&probed.path)
        .map_err(|error| refuse(error.to_string()))?
        .with_name("runtime")
        .with_telemetry(false)
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    *loaded = Some((probed.clone(), environment.clone()));
    Ok((probed, environment))
}

impl Port {
    /// `[batch, seq]` and the like: free dimensions are `None`.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        element: Element,
        dims: impl Into<Vec<Option<usize>>>,
    ) -> Self {
        Self { name: name.into(), element, dims: dims.into() }
    }

    /// Same type and rank, and no dimension that contradicts; a free dimension of the graph is checked at every run.
    fn admits(&self, found: &Outlet) -> bool {
        let fits = |(found, expected): (&Option<usize>, &Option<usize>)| found.is_none() || found == expected;
        found.element == Some(self.element)
            && found.dims.len() == self.dims.len()
            && found.dims.iter().zip(&self.dims).all(fits)
    }
}

fn outlet(name: &str, found: &ValueType) -> Outlet {
    let (element, dims, description) = match found {
        ValueType::Tensor { ty, shape, .. } => {
            let dims: Vec<Option<usize>> = shape.iter().map(|&n| usize::try_from(n).ok()).collect();
            let (element, kind) = match ty {
                TensorElementType::Int64 => (Some(Element::Int64), "int64".to_owned()),
                TensorElementType::Float32 => (Some(Element::Float32), "float".to_owned()),
                other => (None, other.to_string()),
            };
            let description = format!("{kind} {}", in_words(&dims));
            (element, dims, description)
        }
        _ => (None, Vec::new(), "not a tensor".to_owned()),
    };
    Outlet { name: name.to_owned(), element, dims, description }
}

fn in_words(dims: &[Option<usize>]) -> String {
    let dims: Vec<String> = dims.iter().map(|n| n.map_or("?".into(), |n| n.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

fn ort_error<R>(file: &Path, what: &'static str) -> impl FnOnce(ort::Error<R>) -> SessionError {
    let file = file.to_owned();
    move |error| SessionError::Ort { file, what, message: error.message().trim().to_owned() }
}

fn port_error(
    file: &Path,
    what: &'static str,
    name: &str,
    fault: &'static str,
    found: &[&str],
) -> SessionError {
    let (file, name) = (file.to_owned(), name.to_owned());
    let found = found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    SessionError::Port { file, what, name, fault, found }
}

fn type_error(file: &Path, what: &'static str, port: &Port, found: String) -> SessionError {
    let kind = match port.element {
        Element::Int64 => "int64",
        Element::Float32 => "float",
    };
    let expected = format!("{kind} {}", in_words(&port.dims));
    SessionError::Type { file: file.to_owned(), what, name: port.name.to_string(), found, expected }
}
