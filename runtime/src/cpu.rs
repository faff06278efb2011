//! What this machine can compute with.

use std::collections::HashSet;

/// Physical cores that this process may use: logical ones that share a core count once, and limits of the container or
/// of `taskset` are respected. Two threads on one core only get in each other's way in matrix products.
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(cores_by_topology().unwrap_or(allowed)).max(1)
}

/// Cores told apart by the kernel's lists of siblings; `None` where the kernel does not say.
fn cores_by_topology() -> Option<usize> {
    let mut cores = HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let name = entry.file_name();
        let number = name.to_string_lossy().strip_prefix("cpu").map(str::parse::<u32>);
        if matches!(number, Some(Ok(_))) {
            // Offline cores have no topology.
            cores.extend(std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Instruction sets that decide how fast the graphs run, as far as they can be asked for.
pub fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("avxvnni", std::arch::is_x86_feature_detected!("avxvnni")),
        ];
        found.extend(known.into_iter().filter_map(|(name, there)| there.then_some(name)));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let known = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
            ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ];
        found.extend(known.into_iter().filter_map(|(name, there)| there.then_some(name)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zero threads would be read by ONNX Runtime as "all of them".
    #[test]
    fn there_is_at_least_one_core_and_no_more_than_allowed() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&physical_cores()));
    }
}
