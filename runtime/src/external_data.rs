//! Weights beside a graph, where they are not really beside it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The graph's data files that are links out of its folder: by what name the graph knows each, and where it lies.
///
/// Caches and mounted volumes have such links. ONNX Runtime maps data from within the folder only; what else it maps differs
/// from version to version (findings/onnxruntime-linked-data.sh), so that whoever is refused tries again with [`read`].
pub fn linked_away(graph: &Path) -> Vec<(OsString, PathBuf)> {
    let folder = graph.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(home) = folder.canonicalize() else { return Vec::new() };
    let data = ["_data", ".data"].into_iter().filter_map(|ending| {
        let mut name = graph.file_name()?.to_owned();
        name.push(ending);
        let target = folder.join(&name).canonicalize().ok()?;
        (!target.starts_with(&home)).then_some((name, target))
    });
    data.collect()
}

/// A whole file, for ONNX Runtime to have in place of a mapped one.
pub fn read(file: &Path) -> io::Result<Arc<[u8]>> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len() as usize;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
    if let Some(bytes) = Arc::get_mut(&mut bytes) {
        file.read_exact(bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A bundle on a mounted volume, whose files are links to anywhere, must open; one that lies together must stay mapped and
    /// not be read into memory.
    #[test]
    fn only_data_outside_of_the_folder_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (here, far) = (dir.path().join("here"), dir.path().join("far"));
        for folder in [&here, &far] {
            fs::create_dir(folder).unwrap();
        }
        let (graph, data) = (here.join("encoder.onnx"), here.join("encoder.onnx_data"));
        fs::write(&graph, "graph").unwrap();
        assert!(linked_away(&graph).is_empty());
        fs::write(here.join("weights of today"), "weights").unwrap();
        symlink("weights of today", &data).unwrap();
        assert!(linked_away(&graph).is_empty());
        fs::remove_file(&data).unwrap();
        fs::rename(here.join("weights of today"), far.join("blob")).unwrap();
        symlink("../far/blob", &data).unwrap();
        let target = far.canonicalize().unwrap().join("blob");
        assert_eq!(linked_away(&graph), [(OsString::from("encoder.onnx_data"), target.clone())]);
        assert_eq!(&*read(&target).unwrap(), b"weights");
    }
}
