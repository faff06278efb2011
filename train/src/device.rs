//! Flags shared by all commands that run the model.

use anyhow::{Result, bail};
use models::torch::{LoraConfig, OpenOptions};
use tch::{Cuda, Device, Kind};

/// Where and in which arithmetic the model runs.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// cpu, or cuda:N
    #[arg(long, default_value = "cpu", global = true)]
    pub device: String,
    /// Arithmetic of the model's blocks: f32, or bf16 (parameters stay f32)
    #[arg(long, value_enum, default_value = "bf16", global = true)]
    pub dtype: Compute,
    /// CPU threads; 0 = all cores
    #[arg(long, default_value_t = 0, global = true)]
    pub threads: usize,
}

/// Arithmetic of the model's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compute {
    /// 32-bit floats.
    F32,
    /// Brain floats: half the time where the hardware has them.
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
    /// Checks the device and sets the number of threads.
    pub fn open(&self, lora: Option<LoraConfig>) -> Result<OpenOptions> {
        if self.threads > 0 {
            tch::set_num_threads(i32::try_from(self.threads)?);
        }
        let compute = match self.dtype {
            Compute::F32 => Kind::Float,
            Compute::Bf16 => Kind::BFloat16,
        };
        Ok(OpenOptions { device: parse(&self.device)?, compute, lora })
    }
}

/// Tells glibc to keep freed memory: libtorch on CPU allocates and frees gigabytes in every step, and by default each
/// large block goes back to the system and comes back as pages to clear (a third of a training step, measured).
/// Call first in `main`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGEST: libc::c_int = 1 << 30;
        for (parameter, value) in [
            (libc::M_MMAP_THRESHOLD, LARGEST),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, 256 << 20),
            // Other arenas cannot grow beyond 64 MiB and would map large blocks all the same.
            (libc::M_ARENA_MAX, 1),
        ] {
            // SAFETY: mallopt takes two integers and changes how later blocks are obtained; blocks in use are not touched.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

fn parse(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = match name {
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        bail!("--device `{name}`: expected cpu or cuda:N");
    };
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

    /// A typing error in --device must not silently train on the CPU.
    #[test]
    fn devices_are_parsed_or_refused() {
        assert_eq!(parse("cpu").unwrap(), Device::Cpu);
        assert!(parse("gpu").unwrap_err().to_string().contains("expected cpu or cuda:N"));
        assert!(parse("cuda:97").unwrap_err().to_string().contains("cuda:97"));
    }
}
