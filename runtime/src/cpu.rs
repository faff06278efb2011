//! What this machine can compute with.

use std::collections::HashSet;

/// Physical cores that this process may use: logical ones that share a core count once, and limits of the container or
/// of `taskset` are respected. Two threads on one core only get in each other's way in matrix products.
pub fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(cores_by_topology().unwrap_or(allowed)).max(1)
}

/// Logical processors by number, as `--cpus` takes them and the kernel writes them: `0-3,6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(Vec<usize>);

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a list of processors such as 0-3,6");
        let number =
            |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < MOST_CPUS).ok_or_else(wrong);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

/// More than Linux lets a process name.
const MOST_CPUS: usize = 1024;

/// Keeps this process, and every thread that it starts from now on, on these processors.
pub fn pin(cpus: &Cpus) -> Result<(), String> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::sched::{CpuSet, sched_setaffinity};
        let mut set = CpuSet::new();
        for &cpu in &cpus.0 {
            set.set(cpu).map_err(|_| format!("--cpus {cpu}: this system counts fewer processors"))?;
        }
        sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).map_err(|error| {
            format!("--cpus: the system refuses ({}); none of them is there, or allowed", error.desc())
        })
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    Err(format!("--cpus {:?}: this system cannot keep a process on given processors", cpus.0))
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

    /// A list that is read differently from what was meant puts work on cores that others need.
    #[test]
    fn lists_of_processors_are_read_as_the_kernel_writes_them() {
        let cpus = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.0);
        assert_eq!(cpus("0").unwrap(), [0]);
        assert_eq!(cpus("4-6, 1,5").unwrap(), [1, 4, 5, 6]);
        for wrong in ["", "1,", "3-1", "a", "-1", "0-99999999999", "1024"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
    }

    /// Threads that are started later must be where their process is; and a processor that is not there is an answer.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_pinned_process_stays_where_it_was_put() {
        // A thread of its own: the test's others go on everywhere.
        std::thread::spawn(|| {
            let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let first = (0..MOST_CPUS).find(|cpu| set.is_set(*cpu).unwrap_or(false)).unwrap();
            pin(&Cpus(vec![first])).unwrap();
            let later = std::thread::spawn(|| std::thread::available_parallelism().unwrap().get());
            assert_eq!(later.join().unwrap(), 1);
            assert!(pin(&Cpus(vec![MOST_CPUS - 1])).unwrap_err().contains("--cpus"));
        })
        .join()
        .unwrap();
    }

    /// Zero threads would be read by ONNX Runtime as "all of them".
    #[test]
    fn there_is_at_least_one_core_and_no_more_than_allowed() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&physical_cores()));
    }
}
