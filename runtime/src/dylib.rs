//! Finds the ONNX Runtime library and looks at it before it is used.
//!
//! A library that is missing, old or of another program would otherwise show itself as a hang or a panic deep inside
//! the bindings; here it is one sentence with what was found, what is needed and the way out.

use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// Environment variable that names the library.
pub const ENVIRONMENT: &str = "ORT_DYLIB_PATH";
/// Where `make setup` puts the library, below the project.
const SETUP_DIR: &str = ".deps/onnxruntime";
/// File name of the library; versioned names follow it after a dot.
const FILE_NAME: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DylibError {
    /// None of the places holds a library.
    #[error(
        "ONNX Runtime was not found (looked in {looked}); run `make setup`, put {FILE_NAME} beside this program, or name it with --ort-dylib or {ENVIRONMENT}"
    )]
    NotFound {
        /// Directories that were searched, separated by commas.
        looked: String,
    },
    /// A named library does not exist.
    #[error("{file}: named by {named_by} as the ONNX Runtime library, but there is no such file")]
    Missing {
        /// The path.
        file: PathBuf,
        /// `--ort-dylib` or the environment variable.
        named_by: &'static str,
    },
    /// The dynamic linker refuses the file.
    #[error(
        "{file}: cannot be loaded as ONNX Runtime ({reason}); a library for this machine's processor and C library is needed, see --ort-dylib"
    )]
    Load {
        /// The file.
        file: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// Some other library.
    #[error(
        "{file}: is not ONNX Runtime (it has no function `OrtGetApiBase`); name the right {FILE_NAME} with --ort-dylib or {ENVIRONMENT}"
    )]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// A version that lacks the functions used here.
    #[error(
        "{file}: ONNX Runtime {found}, 1.{needed} or newer is needed; name a newer library with --ort-dylib or {ENVIRONMENT}"
    )]
    Old {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: String,
        /// Minor version needed, which is also the version of the C API.
        needed: u32,
    },
}

/// A library that passed the probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Absolute path where the file system can tell, else as found.
    pub path: PathBuf,
    /// Version, e.g. `1.32.0`.
    pub version: String,
}

/// Finds and probes: `explicit` (`--ort-dylib`), then [`ENVIRONMENT`], then beside the binary, then `.deps/onnxruntime/`
/// of the current directory and of every ancestor of the binary. `api` is the version of the C API needed.
pub fn locate(explicit: Option<&Path>, api: u32) -> Result<Probed, DylibError> {
    let from_environment = std::env::var_os(ENVIRONMENT).filter(|value| !value.is_empty()).map(PathBuf::from);
    probe(&find(explicit, from_environment.as_deref(), &search_directories())?, api)
}

/// A named path wins, and is an error if it does not exist; otherwise the first directory that holds a library.
fn find(
    explicit: Option<&Path>,
    from_environment: Option<&Path>,
    directories: &[PathBuf],
) -> Result<PathBuf, DylibError> {
    let named = [(explicit, "--ort-dylib"), (from_environment, ENVIRONMENT)];
    if let Some((path, named_by)) = named.iter().find_map(|(path, by)| path.map(|path| (path, *by))) {
        return resolve(path).ok_or_else(|| DylibError::Missing { file: path.to_owned(), named_by });
    }
    directories.iter().find_map(|directory| library_in(directory)).ok_or_else(|| {
        let looked: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
        DylibError::NotFound { looked: looked.join(", ") }
    })
}

/// A named file, or the library in a named directory.
pub(crate) fn resolve(path: &Path) -> Option<PathBuf> {
    if path.is_dir() { library_in(path) } else { path.exists().then(|| path.to_owned()) }
}

/// Places searched when nobody names a library.
fn search_directories() -> Vec<PathBuf> {
    let binary = std::env::current_exe().ok();
    let beside = binary.as_deref().and_then(Path::parent);
    let mut directories: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().collect();
    directories.extend(std::env::current_dir().ok().map(|here| here.join(SETUP_DIR)));
    directories.extend(beside.into_iter().flat_map(Path::ancestors).map(|up| up.join(SETUP_DIR)));
    let mut seen = std::collections::HashSet::new();
    directories.retain(|directory| seen.insert(directory.clone()));
    directories
}

/// The plain name, else the highest version.
fn library_in(directory: &Path) -> Option<PathBuf> {
    let plain = directory.join(FILE_NAME);
    if plain.exists() {
        return Some(plain);
    }
    let versioned = std::fs::read_dir(directory).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let version = name.strip_prefix(FILE_NAME)?.strip_prefix('.')?;
        let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
        Some((numbers?, entry.path()))
    });
    versioned.max().map(|(_, path)| path)
}

/// The C API's entry (onnxruntime_c_api.h): stable since 1.0.
#[repr(C)]
struct OrtApiBase {
    get_api: unsafe extern "C" fn(version: u32) -> *const c_void,
    get_version_string: unsafe extern "C" fn() -> *const c_char,
}

/// Loads `file`, reads its version and asks for the C API of version `api`.
///
/// Loading runs the library's initialisers, as any use of it would. A library that passes stays loaded for the life of
/// the process; one that does not is unloaded.
pub fn probe(file: &Path, api: u32) -> Result<Probed, DylibError> {
    let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    // SAFETY: initialisers of a foreign library run here, which nothing can vouch for; the path is either the
    // user's own choice or a file of ONNX Runtime's name beside this program.
    let library = unsafe { Library::new(&path) }.map_err(|error| {
        // The linker's own words are the cause; they begin with the path, which our sentence has already.
        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let reason = reason.trim_start_matches(&format!("{}: ", path.display())).to_owned();
        DylibError::Load { file: file.to_owned(), reason }
    })?;
    let foreign = || DylibError::Foreign { file: file.to_owned() };
    // SAFETY: the header declares `const OrtApiBase* OrtGetApiBase(void)`; a library that exports this name is taken
    // at its word, as every user of ONNX Runtime must.
    let get_base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0") }
        .map_err(|_| foreign())?;
    // SAFETY: called as declared; it returns a pointer to a static structure, or null, which `as_ref` tells apart.
    let base = unsafe { get_base().as_ref() }.ok_or_else(foreign)?;
    // SAFETY: called as declared; returns a static, null-terminated string.
    let version = unsafe { (base.get_version_string)() };
    if version.is_null() {
        return Err(foreign());
    }
    // SAFETY: not null, and null-terminated by the API's contract; copied before the library could be unloaded.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let new_enough =
        matches!((numbers.next(), numbers.next()), (Some(Some(1)), Some(Some(minor))) if minor >= api);
    // The version comes first: an old library complains on stderr when asked for an API it lacks.
    // SAFETY: called as declared; any number is allowed, unknown ones give null.
    if !new_enough || unsafe { (base.get_api)(api) }.is_null() {
        return Err(DylibError::Old { file: file.to_owned(), found: version, needed: api });
    }
    // Unloading ONNX Runtime and loading it again is what nobody tests.
    let _ = ManuallyDrop::new(library);
    Ok(Probed { path, version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const API: u32 = 18;

    fn real() -> Option<PathBuf> {
        let found = library_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(SETUP_DIR));
        if found.is_none() {
            eprintln!("skipped: no ONNX Runtime in {SETUP_DIR}, run `make setup`");
        }
        found
    }

    /// Each wrong library must be a sentence that names it; with the bindings alone some of these hang or panic.
    #[test]
    fn wrong_libraries_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("libonnxruntime.so");
        fs::write(&text, "not a library").unwrap();
        let error = probe(&text, API).unwrap_err();
        assert!(matches!(error, DylibError::Load { .. }), "{error}");
        let message = error.to_string();
        assert!(
            message.contains("libonnxruntime.so: cannot be loaded as ONNX Runtime (file too short"),
            "{message}"
        );

        let error = probe(&dir.path().join("absent.so"), API).unwrap_err();
        assert!(matches!(error, DylibError::Load { .. }), "{error}");

        let foreign = ["libm.so.6", "libc.so.6"];
        for name in foreign {
            let Err(error) = probe(Path::new(name), API) else { panic!("{name} passed as ONNX Runtime") };
            assert!(error.to_string().contains("is not ONNX Runtime"), "{error}");
        }
    }

    /// An old library would panic on its first use.
    #[test]
    fn the_real_library_passes_and_would_be_too_old_for_a_later_api() {
        let Some(path) = real() else { return };
        let probed = probe(&path, API).unwrap();
        assert!(probed.version.starts_with("1."), "{}", probed.version);
        let error = probe(&path, 9_999).unwrap_err().to_string();
        assert!(error.contains("1.9999 or newer is needed"), "{error}");
    }

    /// A mistyped --ort-dylib that silently fell back to another library would hide which one answers.
    #[test]
    fn a_named_library_wins_and_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (sub, version) in [(&a, "1.9.0"), (&a, "1.10.2"), (&b, "1.32.0")] {
            fs::create_dir_all(sub).unwrap();
            fs::write(sub.join(format!("{FILE_NAME}.{version}")), "").unwrap();
        }
        let directories = [dir.path().join("none"), a.clone(), b.clone()];
        let highest = a.join(format!("{FILE_NAME}.1.10.2"));
        assert_eq!(find(None, None, &directories).unwrap(), highest);
        assert_eq!(find(Some(&b), Some(&a), &directories).unwrap(), b.join(format!("{FILE_NAME}.1.32.0")));
        let error = find(Some(&dir.path().join("typo.so")), Some(&a), &directories).unwrap_err().to_string();
        assert!(error.contains("typo.so: named by --ort-dylib"), "{error}");
        let error = find(None, None, &directories[..1]).unwrap_err().to_string();
        assert!(error.contains("not found (looked in") && error.contains("make setup"), "{error}");
    }
}
