//! libtorch's failures inside tensor arithmetic come as panics: here they become errors like all others.

use anyhow::{Result, anyhow};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a command; a panic in it is an error that says what happened, and what helps where memory ran out.
pub fn caught<T>(command: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::set_hook(Box::new(|_| ()));
    // What the command borrowed is not looked at again: the program ends with the error.
    let result = catch_unwind(AssertUnwindSafe(command));
    let _ = std::panic::take_hook();
    match result {
        Ok(Err(error)) => match out_of_memory(&models::error::sentence(error.as_ref())) {
            Some(told) => Err(anyhow!(told)),
            None => Err(error),
        },
        Ok(done) => done,
        Err(panic) => {
            let message = message(panic.as_ref());
            let told = out_of_memory(&message);
            Err(anyhow!(told.unwrap_or_else(|| format!("an error in the program itself: {message}"))))
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// The sentence for want of memory, where `message` is libtorch's complaint about it (CUDA's and the CPU's differ).
fn out_of_memory(message: &str) -> Option<String> {
    let complaint = ["out of memory", "can't allocate memory", "not enough memory"]
        .iter()
        .any(|words| message.contains(words));
    let wanted = ["Tried to allocate ", "tried to allocate "].iter().find_map(|words| {
        let (_, rest) = message.split_once(words)?;
        let words: Vec<&str> = rest.split_whitespace().take(2).collect();
        Some(words.join(" ").trim_end_matches('.').to_owned())
    });
    complaint.then(|| {
        let wanted = wanted.map_or(String::new(), |size| format!(" (it asked for {size} more)"));
        format!(
            "libtorch ran out of memory{wanted}; `train teacher` needs less with --checkpointing, or with a smaller \
             --batch-queries or --batch-documents and --accumulate for as many pairs a step; a run that saved its \
             state goes on with --resume"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wall of libtorch's stack frames hides the one thing to do.
    #[test]
    fn want_of_memory_names_the_flags_that_help() {
        let of_cpu = "called `Result::unwrap()` on an `Err` value: Torch(\"[enforce fail at alloc_cpu.cpp:127] err == \
                      0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 400000000000000 bytes. Error \
                      code 12 (Cannot allocate memory)\\n\")";
        let of_gpu =
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB";
        for (message, size) in [(of_cpu, "400000000000000 bytes more"), (of_gpu, "20.00 MiB more")] {
            let told = out_of_memory(message).unwrap();
            assert!(told.contains("--checkpointing") && told.contains(size), "{told}");
            assert!(!told.contains("unwrap"), "{told}");
        }
        assert_eq!(out_of_memory("shape mismatch"), None);
    }

    /// libtorch itself: more than any machine has.
    #[test]
    fn a_panic_of_libtorch_is_an_error() {
        let huge = || -> Result<tch::Tensor> {
            Ok(tch::Tensor::zeros([1 << 46], (tch::Kind::Float, tch::Device::Cpu)) + 1)
        };
        let told = caught(huge).unwrap_err().to_string();
        assert!(told.contains("ran out of memory") && told.contains("--accumulate"), "{told}");
        let shape = || -> Result<tch::Tensor> {
            Ok(tch::Tensor::zeros([2], (tch::Kind::Float, tch::Device::Cpu)).reshape([3]))
        };
        let told = caught(shape).unwrap_err().to_string();
        assert!(told.contains("an error in the program itself"), "{told}");
    }
}
