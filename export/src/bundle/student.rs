//! `export --student`: from a student directory to a bundle.

use crate::bundle::card;
use crate::bundle::files::directory_megabytes;
use crate::bundle::mixed_precision::choose_layers;
use crate::bundle::options::{MixedPrecision, Options};
use crate::bundle::writer::BundleWriter;
use crate::error::ExportError;
use crate::source::student::Student;
use crate::verify::golden::GoldenSet;
use crate::verify::parity::verify;
use crate::verify::ranking::{JudgedData, RankingData, RankingReport};
use models::files::{self, FileError, StagedDir};
use models::manifest::{self, GraphKind, Manifest, Precision};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Writes a bundle; `progress` is called with one line per step, for people.
pub fn export(options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Manifest, ExportError> {
    let start = Instant::now();
    let student = open(options)?;
    let golden = GoldenSet::open(&options.student, &student.config)?;
    let staged = StagedDir::new(&options.out)?;
    let dir = staged.path();

    let fp32 = Fp32Bundle::beside(options);
    let writer = BundleWriter::new(&student, options, dir, progress)?;
    let mixed = choose_layers(&writer, || fp32.path().map(Path::to_owned), progress)?;
    let mut manifest = writer.write(dir, &mixed, progress)?;

    let mut parity = verify(dir, &golden, &options.session)?;
    progress(&parity.to_string());
    let mut rankings = Vec::new();
    if let Some(data) = &options.ranking {
        let ranking = compare_with_fp32(options, data, dir, &fp32, progress)?;
        progress(&ranking.to_string());
        parity.failed.extend(ranking.failed.iter().cloned());
        rankings.push(ranking.to_json());
    }
    if !parity.failed.is_empty() {
        if !options.allow_degraded {
            return Err(ExportError::Parity(parity.failed));
        }
        progress(&format!("warning    parity is not reached: {}", parity.failed.join("; ")));
    }
    manifest.parity = parity.to_json();
    manifest.parity["ranking"] = rankings.into();
    manifest.golden = parity.golden;
    let megabytes = directory_megabytes(dir)?;
    let card_file = dir.join(manifest::CARD_FILE);
    fs::write(&card_file, card::card(&manifest, megabytes)).map_err(FileError::io(&card_file))?;
    manifest.digests.insert(manifest::CARD_FILE.to_owned(), files::sha256_file(&card_file)?);
    files::write_json(&dir.join(manifest::FILE_NAME), &manifest)?;
    staged.commit()?;
    progress(&format!("bundle     {megabytes:.1} MB in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(manifest)
}

/// Refuses options that contradict each other, and a student that they do not fit.
fn open(options: &Options) -> Result<Student, ExportError> {
    let precision = options.precision;
    if options.graph == GraphKind::Portable && matches!(precision, Precision::Fp16 | Precision::Int4) {
        return Err(ExportError::Portable { precision });
    }
    if options.calibration.is_some() && !matches!(precision, Precision::Int8 | Precision::Int4) {
        return Err(ExportError::NothingToCalibrate { precision });
    }
    let mixed = matches!(&options.mixed_precision, MixedPrecision::Layers(mixed) if !mixed.higher.is_empty());
    if mixed && precision.more(options.graph).is_none() {
        return Err(ExportError::NoHigherPrecision { precision });
    }
    let student = Student::open(&options.student)?;
    let head_dim = student.llm.head_dim;
    if options.graph == GraphKind::Fused && !head_dim.is_multiple_of(16) {
        return Err(ExportError::HeadDim { file: options.student.join("config.json"), head_dim });
    }
    Ok(student)
}

/// An fp32 bundle of the same student beside the output, written when it is first needed and removed in the end.
struct Fp32Bundle<'a> {
    options: &'a Options,
    dir: PathBuf,
}

impl<'a> Fp32Bundle<'a> {
    fn beside(options: &'a Options) -> Self {
        let name = options.out.file_name().unwrap_or_default().to_string_lossy();
        let dir = options.out.with_file_name(format!(".{name}.fp32-{}", std::process::id()));
        Self { options, dir }
    }

    fn path(&self) -> Result<&Path, ExportError> {
        if !self.dir.exists() {
            let options = Options {
                precision: Precision::Fp32,
                calibration: None,
                mixed_precision: MixedPrecision::Search,
                ranking: None,
                out: self.dir.clone(),
                ..self.options.clone()
            };
            export(&options, &mut |_| {})?;
        }
        Ok(&self.dir)
    }
}

impl Drop for Fp32Bundle<'_> {
    fn drop(&mut self) {
        // If it was never written there is nothing to remove, and nothing else can be done about one that stays.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn compare_with_fp32(
    options: &Options,
    data: &RankingData,
    dir: &Path,
    fp32: &Fp32Bundle,
    progress: &mut dyn FnMut(&str),
) -> Result<RankingReport, ExportError> {
    let judged = JudgedData::open(data)?;
    judged.notes().iter().for_each(|note| progress(note));
    let after = judged.scores(dir, &options.session)?;
    let before = match options.precision {
        Precision::Fp32 => after.clone(),
        _ => judged.scores(fp32.path()?, &options.session)?,
    };
    Ok(judged.compare(&before, &after, options.precision))
}
