//! Writes bundles of one student that differ in the layers with a higher precision.

use crate::bundle::files::{copy_prompt_and_tokenizer, digests, megabytes};
use crate::bundle::manifest::manifest;
use crate::bundle::options::Options;
use crate::emit::context::EmitContext;
use crate::emit::encoder::encoder;
use crate::emit::predictor::predictor;
use crate::error::ExportError;
use crate::onnx::graph::GraphBuilder;
use crate::quantise::calibrate::{self, observe};
use crate::quantise::calibrated::CalibratedQuantiser;
use crate::quantise::mixed::MixedLayers;
use crate::source::prefix::{PrefixStates, prefix_states};
use crate::source::student::Student;
use crate::source::tensors::TensorSource;
use models::files::{self, FileError};
use models::fold::{self, Folded};
use models::manifest::{
    ENCODER_DATA_FILE, ENCODER_FILE, FILE_NAME, GraphKind, Manifest, PREDICTOR_FILE, Precision,
};
use models::prompt::Prompter;
use models::student;
use models::weights::DType;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// What all these bundles have in common.
pub(super) struct BundleWriter<'a> {
    pub(super) student: &'a Student,
    pub(super) options: &'a Options,
    prefix: Option<PrefixStates>,
    calibrated: Option<CalibratedQuantiser>,
}

impl<'a> BundleWriter<'a> {
    /// Runs the prompt and, if asked for, the calibration, which needs some room in `dir` meanwhile.
    pub(super) fn new(
        student: &'a Student,
        options: &'a Options,
        dir: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, ExportError> {
        let start = Instant::now();
        let prefix = match student.prefixes.is_empty() {
            true => None,
            false => {
                let mut llm = student.open_llm()?;
                if options.rotated() {
                    llm.rotate(&student.llm, Vec::new())?;
                }
                Some(prefix_states(&mut llm, &student.llm, student.layers(), &student.prefixes)?)
            }
        };
        let mut calibrated = None;
        if let Some(data) = &options.calibration {
            calibrated = Some(calibrate(student, options, data, prefix.as_ref(), dir)?);
            let seconds = start.elapsed().as_secs_f64();
            progress(&format!("calibrated with {}, {seconds:.1} s", data.display()));
        }
        Ok(Self { student, options, prefix, calibrated })
    }

    /// Writes everything but the measurements; files of an earlier call are replaced.
    pub(super) fn write(
        &self,
        dir: &Path,
        mixed: &MixedLayers,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Manifest, ExportError> {
        let (student, options) = (self.student, self.options);
        self.write_encoder(dir, mixed, progress)?;
        write_predictor(student, options.precision, dir, progress)?;
        copy_prompt_and_tokenizer(&student.dir, dir)?;
        let mut manifest = manifest(student, options.precision, options.graph);
        manifest.encoder.kept_layers = mixed.higher.iter().copied().collect();
        manifest.encoder.float_layers = mixed.fp32.iter().copied().collect();
        manifest.digests = digests(dir)?;
        manifest.digests.remove(FILE_NAME);
        manifest.document_digest = manifest.expected_document_digest();
        files::write_json(&dir.join(FILE_NAME), &manifest)?;
        Ok(manifest)
    }

    fn write_encoder(
        &self,
        dir: &Path,
        mixed: &MixedLayers,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), ExportError> {
        let start = Instant::now();
        let (student, options) = (self.student, self.options);
        let mut llm = student.open_llm()?;
        if options.rotated() {
            let scales = self.calibrated.as_ref().map(CalibratedQuantiser::smoothquant_scales);
            llm.rotate(&student.llm, scales.unwrap_or_default())?;
        }
        let mut ctx = EmitContext::new(llm, options.precision, options.graph);
        ctx.calibrated = self.calibrated.as_ref();
        ctx.mixed.clone_from(mixed);
        let data = dir.join(ENCODER_DATA_FILE);
        let mut graph = GraphBuilder::with_external_data("encoder", &data)?;
        encoder(&mut graph, &mut ctx, student, self.prefix.as_ref())?;
        if let Some(adapter) = &ctx.llm.adapter {
            adapter.all_read()?;
        }
        let nodes = graph.len();
        let file = dir.join(ENCODER_FILE);
        graph.finish(&file)?;
        let megabytes = megabytes(&file)? + megabytes(&data)?;
        let (layers, depth) = (student.layers(), student.llm.num_hidden_layers);
        let seconds = start.elapsed().as_secs_f64();
        progress(&format!(
            "encoder    {layers} of {depth} layers, {nodes} nodes, {megabytes:.1} MB, {seconds:.1} s"
        ));
        if !ctx.errors.is_empty() {
            progress(&format!("quantised weights, error relative to the matrix:\n{}", ctx.errors));
        }
        Ok(())
    }
}

/// Runs texts of a data set through an fp32 graph that has the inputs of its linear layers as outputs. The graph lies in the
/// staged directory while it is needed.
fn calibrate(
    student: &Student,
    options: &Options,
    data: &Path,
    prefix: Option<&PrefixStates>,
    dir: &Path,
) -> Result<CalibratedQuantiser, ExportError> {
    let mut llm = student.open_llm()?;
    llm.rotate(&student.llm, Vec::new())?;
    let mut ctx = EmitContext::new(llm, Precision::Fp32, GraphKind::Fused);
    ctx.observe_inputs();
    let (file, weights) = (dir.join("observed.onnx"), dir.join("observed.onnx_data"));
    let mut graph = GraphBuilder::with_external_data("observed", &weights)?;
    encoder(&mut graph, &mut ctx, student, prefix)?;
    graph.finish(&file)?;
    // The checkpoint need not be in memory beside the graph.
    let observed = ctx.into_observed();
    let passes = calibrate::passes(data, &Prompter::open(&student.dir)?, student.config.residual)?;
    let manifest = manifest(student, Precision::Fp32, GraphKind::Fused);
    // In 4-bit blocks the weights would lose more than the activations gain.
    let smoothquant = options.precision == Precision::Int8;
    let stats = observe(&file, &manifest, &observed, smoothquant, &passes, &options.session);
    for file in [file, weights] {
        fs::remove_file(&file).map_err(FileError::io(&file))?;
    }
    Ok(CalibratedQuantiser::new(stats?))
}

fn write_predictor(
    student: &Student,
    precision: Precision,
    dir: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), ExportError> {
    let from = student.dir.join(student::PREDICTOR_FILE);
    // Folding checks all shapes, so that the graph need not.
    let folded = Folded::from_predictor(&student.config, &from)?;
    // Beside a smaller encoder, weights in f32 would be a third of the bundle and gain nothing.
    let storage = if precision == Precision::Fp32 { DType::F32 } else { DType::F16 };
    let mut graph = GraphBuilder::new("predictor");
    predictor(&mut graph, TensorSource::open_file(&from)?, storage, &student.config)?;
    let (file, fold) = (dir.join(PREDICTOR_FILE), dir.join(fold::FILE_NAME));
    graph.finish(&file)?;
    folded.write(&fold, storage)?;
    let (unfolded, folded) = (megabytes(&file)?, megabytes(&fold)?);
    let (form, m) = (student.config.form, student.config.inner_dimensions);
    progress(&format!(
        "predictor  {form:?}, {m} dimensions per document, {unfolded:.1} MB, folded {folded:.1} MB"
    ));
    Ok(())
}
