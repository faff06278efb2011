//! Compiles the bridge against the headers of the libtorch that torch-sys found; with its CUDA half there, NCCL too.

use std::path::Path;

fn main() {
    for file in ["build.rs", "src/lib.rs", "src/bridge.h", "src/bridge.cc", "gloo"] {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        // torch-sys was asked for without libtorch (its feature `doc-only`): the code is checked, not linked.
        return;
    };
    let lib = Path::new(&lib);
    let include = lib.with_file_name("include");
    let header = include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
    if !header.exists() {
        println!(
            "cargo:error={}: not there; c10d needs the headers of libtorch, as `make setup` brings them",
            header.display()
        );
        return;
    }
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let mut build = cxx_build::bridge("src/lib.rs");
    build
        .file("src/bridge.cc")
        .std("c++17")
        // Their warnings are not ours to mend.
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .include("gloo")
        .define("USE_C10D_GLOO", None)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    if let Some(nvidia) = nvidia(lib) {
        build.define("USE_C10D_NCCL", None);
        for part in ["cu13", "nccl"] {
            build.flag(format!("-isystem{}", nvidia.join(part).join("include").display()));
        }
    }
    build.compile("c10d_bridge");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// The folder of NVIDIA's packages beside a libtorch with CUDA, where NCCL's header and CUDA's are in it.
fn nvidia(lib: &Path) -> Option<std::path::PathBuf> {
    lib.join("libtorch_cuda.so").exists().then_some(())?;
    let nvidia = lib.canonicalize().ok()?.join("../../nvidia");
    let has = |file: &str| nvidia.join(file).exists();
    let headers = ["nccl/include/nccl.h", "cu13/include/cuda_runtime.h", "cu13/include/crt/host_defines.h"];
    if headers.into_iter().all(has) && has("cu13/include/nv/target") {
        return Some(nvidia);
    }
    println!(
        "cargo:warning=libtorch has CUDA, but the headers of NCCL and CUDA are not beside it: c10d is built without NCCL"
    );
    None
}
