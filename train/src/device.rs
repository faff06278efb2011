//! Flags shared by all commands that run the model.

use crate::ranks::Place;
use anyhow::{Result, bail};
use models::torch::{LoraConfig, OpenOptions};
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
    /// bf16 on GPUs and on CPUs with AMX, else f32
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
            DtypeArg::Auto if self.device != "cpu" || cpu_has_bf16() => Compute::Bf16,
            DtypeArg::Auto => Compute::F32,
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

/// Whether this processor multiplies matrices of brain floats. Without, a training step of SmolLM2-135M took more than four
/// times as long as in f32 (AVX2, 2 cores); with dot products of them alone (AVX512-BF16) 2.5 times on one processor and 0.6 times
/// on another, so that there the user has to ask for it.
fn cpu_has_bf16() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = flags.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    line.is_some_and(has_bf16_flag)
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
    if index as i64 >= found {
        bail!(
            "--device {name}: this libtorch sees {found} CUDA devices; for a GPU build run `make setup-cuda` and build again"
        );
    }
    Ok(Device::Cuda(index))
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
        assert_eq!(args("cuda:0", DtypeArg::Auto).compute(), Compute::Bf16);
        assert_eq!(args("cuda:0", DtypeArg::F32).compute(), Compute::F32);
        assert_eq!(args("cpu", DtypeArg::Bf16).compute(), Compute::Bf16);
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
        assert!(refused("cuda", place.as_ref()).contains("CUDA devices"));
    }
}
