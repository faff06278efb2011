//! Flags shared by all commands that run the model.

use crate::ranks::Place;
use anyhow::{Result, bail};
use models::torch::{LoraConfig, OpenOptions};
use std::process::Command;
use std::sync::OnceLock;
use tch::{Cuda, Device, Kind};

/// Where and in which arithmetic the model runs.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// cpu, cuda:N, or cuda: the first GPU, and with torchrun a GPU for each process
    #[arg(long, default_value = "cpu", global = true)]
    pub device: String,
    /// Arithmetic of the model's blocks (parameters stay f32)
    #[arg(long, value_enum, default_value = "auto", global = true)]
    pub dtype: DtypeArg,
    /// CPU threads; 0 = all cores
    #[arg(long, default_value_t = 0, global = true)]
    pub threads: usize,
}

/// Arithmetic as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DtypeArg {
    /// bf16 on GPUs (Ampere and newer) and on CPUs with AMX, else f32
    Auto,
    /// 32-bit floats
    F32,
    /// Brain floats: half the time where the hardware has matrix units for them, elsewhere from two thirds of it to several
    /// times as long
    Bf16,
}

/// Arithmetic of the model's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// 32-bit floats.
    F32,
    /// Brain floats.
    Bf16,
}

impl Compute {
    /// Name in settings and cache keys.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}

impl DeviceArgs {
    /// The arithmetic that will be used.
    pub fn compute(&self) -> Compute {
        match self.dtype {
            DtypeArg::F32 => Compute::F32,
            DtypeArg::Bf16 => Compute::Bf16,
            DtypeArg::Auto => {
                let has_bf16 = if self.device == "cpu" { cpu_has_bf16() } else { gpu_has_bf16(&self.device) };
                if has_bf16 { Compute::Bf16 } else { Compute::F32 }
            }
        }
    }

    /// Checks the device and sets the number of threads.
    pub fn open(&self, lora: Option<LoraConfig>) -> Result<OpenOptions> {
        if self.threads > 0 {
            tch::set_num_threads(i32::try_from(self.threads)?);
        }
        let compute = match self.compute() {
            Compute::F32 => Kind::Float,
            Compute::Bf16 => Kind::BFloat16,
        };
        Ok(OpenOptions { device: parse(&self.device, Place::from_environment()?.as_ref())?, compute, lora })
    }
}

/// Tells glibc to keep freed memory: libtorch on CPU allocates and frees gigabytes in every step, and by default each
/// large block goes back to the system and comes back as pages to clear (a third of a training step, measured).
/// Call first in `main`. Large blocks are the main thread's; the small ones of its helpers come from arenas of their own, for
/// which nobody waits (with one arena for all, a step in bf16 took 1.2 to 1.3 times as long).
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers and changes how later blocks are obtained; blocks in use are not touched.
        let set = |parameter, value| unsafe { libc::mallopt(parameter, value) } == 1;
        // Some glibcs take no more than 32 MiB. If they take nothing, the rest would only switch off what they do by themselves.
        if set(libc::M_MMAP_THRESHOLD, 1 << 30) || set(libc::M_MMAP_THRESHOLD, 32 << 20) {
            set(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            set(libc::M_TOP_PAD, 256 << 20);
        }
    }
}

/// Tokens per forward pass where no gradient is kept, padding included: enough for a CPU's matrix products, and on a GPU for one
/// that would else wait for the launch of each.
pub fn tokens_per_pass(device: Device) -> usize {
    if device.is_cuda() { 32_768 } else { 2048 }
}

/// Whether this processor multiplies matrices of brain floats. Without, a training step of SmolLM2-135M took more than four
/// times as long as in f32 (AVX2, 2 cores); with dot products of them alone (AVX512-BF16) 2.5 times on one processor and 0.6 times
/// on another, so that there the user has to ask for it.
fn cpu_has_bf16() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = flags.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    line.is_some_and(has_bf16_flag)
}

/// Whether a GPU multiplies matrices of brain floats; older ones than Ampere compute them by way of f32, which takes longer than f32
/// itself. Told once where it is not so; taken for granted where nobody can be asked.
fn gpu_has_bf16(device: &str) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let index = device.strip_prefix("cuda:").unwrap_or("0");
        let card = visible_card(index, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref());
        let asked = Command::new("nvidia-smi")
            .args(["--query-gpu=name,compute_cap", "--format=csv,noheader", "-i", &card])
            .output();
        let told = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        match too_old_for_bf16(&told) {
            None => true,
            Some(name) => {
                eprintln!("{name} has no matrix units for bf16: computing in f32 (--dtype bf16 asks for it all the same)");
                false
            }
        }
    })
}

/// What nvidia-smi knows as libtorch's card `index`.
fn visible_card(index: &str, visible: Option<&str>) -> String {
    let place = index.parse::<usize>().ok();
    let listed = visible.and_then(|list| list.split(',').nth(place?));
    listed.map_or(index, str::trim).to_owned()
}

/// The card's name, where `name, compute capability` says that it is older than Ampere (8.0).
fn too_old_for_bf16(told: &str) -> Option<&str> {
    let (name, capability) = told.lines().next()?.rsplit_once(", ")?;
    let (major, _) = capability.trim().split_once('.')?;
    (major.parse::<u32>().ok()? < 8).then_some(name)
}

fn has_bf16_flag(line: &str) -> bool {
    line.split_whitespace().any(|flag| flag == "amx_bf16")
}

fn parse(name: &str, place: Option<&Place>) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = match name {
        "cuda" => Some(place.map_or(0, |place| place.local_rank)),
        _ => name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        bail!("--device `{name}`: expected cpu or cuda:N");
    };
    if let Some(place) = place
        && name != "cuda"
        && place.local_size.is_none_or(|size| size > 1)
    {
        bail!(
            "--device {name} puts several processes on one GPU; with --device cuda each has one of its own"
        );
    }
    let found = Cuda::device_count();
    let loaded = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if index as i64 >= found {
        bail!("--device {name}: {}", missing(found, loaded.contains("libtorch_cuda.so")));
    }
    if let [first, second, ..] = cuda_runtimes(&loaded).as_slice() {
        bail!(
            "--device {name}: two CUDA runtimes are loaded, {first} and {second}; take one of their folders out of LD_LIBRARY_PATH"
        );
    }
    Ok(Device::Cuda(index))
}

/// Files of CUDA's runtime library among a process's mappings, each once. Memory of one is unknown to the other.
fn cuda_runtimes(mappings: &str) -> Vec<&str> {
    let paths = mappings.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    let mut found: Vec<&str> = paths.filter(|path| path.contains("/libcudart.so")).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Why a GPU cannot be had, of which libtorch counts `found`; `cuda_half`: whether it was built with CUDA, which it says itself only
/// where it finds a GPU.
fn missing(found: i64, cuda_half: bool) -> String {
    match found {
        0 if !cuda_half => {
            "this libtorch is for the CPU; run `make setup-cuda` and build again, or build against an installed PyTorch with \
             `make train-for LIBTORCH=DIR`"
                .into()
        }
        0 => {
            "libtorch finds no GPU that it can use; `nvidia-smi` tells whether there is one and its driver, which for CUDA 13 is \
             580 or newer"
                .into()
        }
        1 => "there is one CUDA device, cuda:0".into(),
        _ => format!("there are {found} CUDA devices, cuda:0 to cuda:{}", found - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory in use before and after the switch must stay usable.
    #[test]
    fn allocations_survive_the_switch() {
        let before = vec![7u8; 1 << 20];
        keep_freed_memory();
        let after = vec![9u8; 64 << 20];
        assert!(before.iter().all(|b| *b == 7) && after.iter().all(|b| *b == 9));
    }

    /// The wrong guess costs hours: bf16 is twice as fast with matrix units and up to four times as slow without.
    #[test]
    fn brain_floats_are_used_where_the_processor_has_them() {
        assert!(has_bf16_flag("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16"));
        assert!(!has_bf16_flag("flags\t\t: fpu f16c avx2 avx512f avx512_vnni avx512_bf16"));
        let args = |device: &str, dtype| DeviceArgs { device: device.into(), dtype, threads: 0 };
        assert_eq!(args("cuda:0", DtypeArg::F32).compute(), Compute::F32);
        assert_eq!(args("cpu", DtypeArg::Bf16).compute(), Compute::Bf16);
    }

    /// A cluster's module and PyTorch's wheel each bring a CUDA runtime, and what one of them allocates the other does not know.
    #[test]
    fn a_second_cuda_runtime_is_seen() {
        let mapped = |path: &str| format!("7f00-7f01 r-xp 00000000 fe:00 12 {path}\n");
        let (wheel, module) =
            ("/site/nvidia/cu13/lib/libcudart.so.13", "/opt/cuda-12.8/lib64/libcudart.so.12");
        let one = mapped(wheel)
            + &mapped(wheel)
            + &mapped("/site/torch/lib/libtorch_cuda.so")
            + "7f02-7f03 rw-p 0 00:00 0\n";
        assert_eq!(cuda_runtimes(&one), [wheel]);
        assert_eq!(cuda_runtimes(&(one + &mapped(module))), [module, wheel]);
    }

    /// A Turing card runs bf16 more slowly than f32; a card that nobody knows is taken for a newer one.
    #[test]
    fn cards_before_ampere_compute_in_f32() {
        assert_eq!(too_old_for_bf16("Tesla T4, 7.5\n"), Some("Tesla T4"));
        assert_eq!(too_old_for_bf16("NVIDIA H200, 9.0\n"), None);
        assert_eq!(too_old_for_bf16("NVIDIA RTX 5090, 12.0\n"), None);
        assert_eq!(too_old_for_bf16("No devices were found\n"), None);
        assert_eq!(visible_card("1", Some("3, GPU-5b")), "GPU-5b");
        assert_eq!(visible_card("0", None), "0");
    }

    /// A typing error in --device must not silently train on the CPU.
    #[test]
    fn devices_are_parsed_or_refused() {
        assert_eq!(parse("cpu", None).unwrap(), Device::Cpu);
        let refused = |name, place| parse(name, place).unwrap_err().to_string();
        assert!(refused("gpu", None).contains("expected cpu or cuda:N"));
        assert!(refused("cuda:97", None).contains("cuda:97"));
        let variables = [
            ("RANK", "9"),
            ("WORLD_SIZE", "10"),
            ("MASTER_ADDR", "a"),
            ("MASTER_PORT", "1"),
            ("LOCAL_RANK", "98"),
        ];
        let value =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let place = Place::read(value).unwrap();
        assert!(refused("cuda:0", place.as_ref()).contains("several processes on one GPU"));
        assert!(refused("cuda", place.as_ref()).contains("cuda: "));
        assert!(
            missing(0, false).contains("make setup-cuda"),
            "a libtorch for the CPU is the user's to replace"
        );
        assert!(missing(0, true).contains("nvidia-smi"), "a driver is not");
        assert!(missing(2, true).contains("cuda:0 to cuda:1"));
    }
}
