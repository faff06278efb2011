//! Processes that compute together: PyTorch's own collectives (`c10d`), which every libtorch carries, for tch's tensors.
//!
//! A [`Store`] is the table through which processes find each other (TCPStore: one process or an agent of `torchrun` serves
//! it), a [`ProcessGroup`] is their connection: over sockets (Gloo) or between GPUs (NCCL, where libtorch has CUDA).
//! All collectives are blocking, have a time limit, and must be called by all processes of a group in one order. C++
//! exceptions become [`Error`]s.

use cxx::UniquePtr;
use std::time::Duration;
use tch::Tensor;

#[allow(missing_docs, reason = "the C++ side of the types below")]
#[cxx::bridge(namespace = "rabtriever")]
mod ffi {
    #[namespace = "at"]
    unsafe extern "C++" {
        type Tensor;
    }

    unsafe extern "C++" {
        include!("c10d/src/bridge.h");
        type StoreHandle;
        type GroupHandle;

        fn host_store(port: u16, timeout_ms: u64) -> Result<UniquePtr<StoreHandle>>;
        fn join_store(host: &str, port: u16, timeout_ms: u64) -> Result<UniquePtr<StoreHandle>>;
        fn prefix_store(store: &StoreHandle, prefix: &str) -> Result<UniquePtr<StoreHandle>>;
        fn store_port(store: &StoreHandle) -> u16;
        fn store_set(store: &StoreHandle, key: &str, value: &[u8]) -> Result<()>;
        fn store_get(store: &StoreHandle, key: &str, timeout_ms: u64) -> Result<Vec<u8>>;
        fn store_has(store: &StoreHandle, key: &str) -> Result<bool>;
        fn store_add(store: &StoreHandle, key: &str, amount: i64) -> Result<i64>;

        fn silence();
        fn has_nccl() -> bool;
        fn gloo_group(
            store: &StoreHandle,
            rank: i32,
            size: i32,
            timeout_ms: u64,
        ) -> Result<UniquePtr<GroupHandle>>;
        fn nccl_group(
            store: &StoreHandle,
            rank: i32,
            size: i32,
            timeout_ms: u64,
        ) -> Result<UniquePtr<GroupHandle>>;
        fn group_barrier(group: &GroupHandle) -> Result<()>;
        fn group_monitored_barrier(group: &GroupHandle, timeout_ms: u64) -> Result<()>;

        /// # Safety
        /// `tensor` points to a tensor.
        unsafe fn group_broadcast(group: &GroupHandle, tensor: *mut Tensor, root: i32) -> Result<()>;
        /// # Safety
        /// `tensor` points to a tensor.
        unsafe fn group_all_reduce(group: &GroupHandle, tensor: *mut Tensor) -> Result<()>;
        /// # Safety
        /// Both point to tensors.
        unsafe fn group_reduce_scatter(
            group: &GroupHandle,
            output: *mut Tensor,
            input: *const Tensor,
        ) -> Result<()>;
        /// # Safety
        /// Both point to tensors.
        unsafe fn group_all_gather(
            group: &GroupHandle,
            output: *mut Tensor,
            input: *const Tensor,
        ) -> Result<()>;
    }
}

/// What c10d refuses or cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// c10d's own words, without the stack trace.
    #[error("{doing}: {said}")]
    C10d {
        /// What was asked of it.
        doing: &'static str,
        /// Its answer.
        said: String,
    },
    /// Tensors that a collective cannot work on.
    #[error("{collective}: {found}, expected {expected}")]
    Tensors {
        /// The collective.
        collective: &'static str,
        /// What was given.
        found: String,
        /// What is needed.
        expected: String,
    },
}

impl Error {
    /// Whether c10d gave up waiting, as opposed to losing a connection or refusing.
    pub fn is_timeout(&self) -> bool {
        let Error::C10d { said, .. } = self else { return false };
        let said = said.to_lowercase();
        said.contains("timeout") || said.contains("timed out")
    }
}

fn of(doing: &'static str) -> impl FnOnce(cxx::Exception) -> Error {
    move |exception| Error::C10d { doing, said: exception.what().trim().to_owned() }
}

fn milliseconds(time: Duration) -> u64 {
    // c10d takes 0 for no limit.
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 1).clamp(1, u64::from(u32::MAX))
}

/// A table of bytes by key that several processes share.
pub struct Store {
    handle: UniquePtr<ffi::StoreHandle>,
}

// SAFETY: a handle is a counted reference (counted atomically) to a TCPStore, or to a prefix and one. TCPStore takes a lock
// around each of its operations, so that it may be used and dropped on another thread than the one that made it.
unsafe impl Send for Store {}

impl Store {
    /// Serves a store on `port` (0: any free one, see [`Store::port`]) for as long as this or anything made of it lives.
    /// An error where the port is in use.
    pub fn host(port: u16, timeout: Duration) -> Result<Self, Error> {
        let handle = ffi::host_store(port, milliseconds(timeout)).map_err(of("serving a store"))?;
        Ok(Self { handle })
    }

    /// Connects to a store that another process serves; tries until `timeout` has passed.
    pub fn join(host: &str, port: u16, timeout: Duration) -> Result<Self, Error> {
        let handle =
            ffi::join_store(host, port, milliseconds(timeout)).map_err(of("connecting to the store"))?;
        Ok(Self { handle })
    }

    /// The same store, every key with `prefix` before it.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self, Error> {
        let handle = ffi::prefix_store(&self.handle, prefix).map_err(of("prefixing a store"))?;
        Ok(Self { handle })
    }

    /// The port that it is served on.
    pub fn port(&self) -> u16 {
        ffi::store_port(&self.handle)
    }

    /// Sets a key; does not wait for the server.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        ffi::store_set(&self.handle, key, value).map_err(of("writing to the store"))
    }

    /// A key's value; waits until it is there or `timeout` has passed.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, Error> {
        ffi::store_get(&self.handle, key, milliseconds(timeout)).map_err(of("reading from the store"))
    }

    /// Whether a key is there now.
    pub fn has(&self, key: &str) -> Result<bool, Error> {
        ffi::store_has(&self.handle, key).map_err(of("asking the store"))
    }

    /// Adds to a key's number, which starts at 0; gives the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, Error> {
        ffi::store_add(&self.handle, key, amount).map_err(of("counting in the store"))
    }
}

/// What carries tensors between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Sockets; tensors on the CPU.
    Gloo,
    /// GPUs; tensors on CUDA devices. Only in programs built with a libtorch with CUDA, see [`has_nccl`].
    Nccl,
}

/// Keeps c10d from writing its own log of what goes wrong to stderr, stack traces and all: errors say it. The variable
/// `TORCH_CPP_LOG_LEVEL` brings it back.
pub fn silence() {
    ffi::silence();
}

/// Whether this program is built with NCCL.
pub fn has_nccl() -> bool {
    ffi::has_nccl()
}

/// The connection of `size` processes, this one being number `rank`.
pub struct ProcessGroup {
    handle: UniquePtr<ffi::GroupHandle>,
    size: i64,
}

impl ProcessGroup {
    /// Connects all processes, which must all call this with one `store`, `size` and `timeout`: the longest that each of the
    /// group's operations waits for the others.
    pub fn new(
        store: &Store,
        backend: Backend,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let (rank, n, timeout) = (number(rank), number(size), milliseconds(timeout));
        let handle = match backend {
            Backend::Gloo => ffi::gloo_group(&store.handle, rank, n, timeout),
            Backend::Nccl => ffi::nccl_group(&store.handle, rank, n, timeout),
        };
        Ok(Self { handle: handle.map_err(of("connecting the processes"))?, size: i64::from(n) })
    }

    /// Overwrites `tensor` with that of process `root`; of one shape and kind everywhere.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), Error> {
        dense("broadcast", tensor)?;
        let root = i32::try_from(root).unwrap_or(i32::MAX);
        // SAFETY: tch's pointer is to a live at::Tensor, borrowed for the whole call, which returns when the operation is
        // done; c10d keeps its own counted reference to the storage, also where it gives up before.
        unsafe { ffi::group_broadcast(&self.handle, tensor.as_mut_ptr().cast(), root) }
            .map_err(of("broadcast"))
    }

    /// Overwrites `tensor` with the sum of all processes'; of one shape and kind everywhere.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<(), Error> {
        dense("all-reduce", tensor)?;
        // SAFETY: as in `broadcast`.
        unsafe { ffi::group_all_reduce(&self.handle, tensor.as_mut_ptr().cast()) }.map_err(of("all-reduce"))
    }

    /// Sums all processes' `input`s, `size` equal parts one after the other, and leaves this process's part in `output`.
    pub fn reduce_scatter(&self, output: &mut Tensor, input: &Tensor) -> Result<(), Error> {
        self.parts("reduce-scatter", output, input)?;
        // SAFETY: as in `broadcast`, for both tensors; `parts` has seen that the one is the other's part.
        unsafe { ffi::group_reduce_scatter(&self.handle, output.as_mut_ptr().cast(), input.as_ptr().cast()) }
            .map_err(of("reduce-scatter"))
    }

    /// Leaves all processes' `input`s, one after the other, in `output`, on all processes.
    pub fn all_gather(&self, output: &mut Tensor, input: &Tensor) -> Result<(), Error> {
        self.parts("all-gather", input, output)?;
        // SAFETY: as in `broadcast`, for both tensors; `parts` has seen that the one is the other's part.
        unsafe { ffi::group_all_gather(&self.handle, output.as_mut_ptr().cast(), input.as_ptr().cast()) }
            .map_err(of("all-gather"))
    }

    /// Returns when all processes have called it.
    pub fn barrier(&self) -> Result<(), Error> {
        ffi::group_barrier(&self.handle).map_err(of("barrier"))
    }

    /// The same for Gloo alone, with a time limit of its own; process 0's error names those that did not come.
    pub fn monitored_barrier(&self, timeout: Duration) -> Result<(), Error> {
        ffi::group_monitored_barrier(&self.handle, milliseconds(timeout)).map_err(of("monitored barrier"))
    }

    fn parts(&self, collective: &'static str, part: &Tensor, whole: &Tensor) -> Result<(), Error> {
        dense(collective, part)?;
        dense(collective, whole)?;
        let (found, needed) = (whole.numel() as i64, part.numel() as i64 * self.size);
        if found != needed || part.kind() != whole.kind() {
            return Err(Error::Tensors {
                collective,
                found: format!("{found} numbers of kind {:?}", whole.kind()),
                expected: format!("{needed} of kind {:?}: a part for each process", part.kind()),
            });
        }
        Ok(())
    }
}

/// Collectives read and write a tensor's memory from end to end.
fn dense(collective: &'static str, tensor: &Tensor) -> Result<(), Error> {
    let found = match () {
        () if !tensor.defined() => "an undefined tensor",
        () if tensor.numel() == 0 => "an empty tensor",
        () if tensor.is_sparse() || !tensor.is_contiguous() => "a tensor with gaps",
        () => return Ok(()),
    };
    Err(Error::Tensors {
        collective,
        found: found.into(),
        expected: "a dense tensor with numbers in it".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tch::{Device, Kind};

    const LONG: Duration = Duration::from_secs(60);

    /// Runs `each` on `size` threads, as if each were a process.
    fn together(size: usize, timeout: Duration, each: impl Fn(usize, &Store, &ProcessGroup) + Sync) {
        let (sender, ports) = mpsc::channel();
        std::thread::scope(|scope| {
            let each = &each;
            let run = move |rank: usize, store: &Store| {
                let group = ProcessGroup::new(store, Backend::Gloo, rank, size, timeout).unwrap();
                each(rank, store, &group);
                // The server goes last.
                store.add("done", 1).unwrap();
                while rank == 0 && store.add("done", 0).unwrap() < size as i64 {
                    std::thread::yield_now();
                }
            };
            scope.spawn(move || {
                let store = Store::host(0, LONG).unwrap();
                sender.send(store.port()).unwrap();
                run(0, &store);
            });
            let port = ports.recv().unwrap();
            for rank in 1..size {
                scope.spawn(move || run(rank, &Store::join("localhost", port, LONG).unwrap()));
            }
        });
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_device(Device::Cpu)).unwrap()
    }

    /// Every collective by its definition, on three processes: one that mixed up ranks would train on another's gradients.
    #[test]
    fn collectives_do_what_their_names_say() {
        together(3, LONG, |rank, _, group| {
            let own = rank as f32 + 1.0;
            let mut sum = Tensor::from_slice(&[own, 10.0 * own]);
            group.all_reduce(&mut sum).unwrap();
            assert_eq!(numbers(&sum), [6.0, 60.0]);
            let mut second = Tensor::from_slice(&[own]).set_requires_grad(true);
            group.broadcast(&mut second, 1).unwrap();
            assert_eq!(numbers(&second.detach()), [2.0]);
            let mut all = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
            group.all_gather(&mut all, &Tensor::from_slice(&[own, -own])).unwrap();
            assert_eq!(numbers(&all.view(-1)), [1.0, -1.0, 2.0, -2.0, 3.0, -3.0]);
            let mut part = Tensor::zeros([1], (Kind::Float, Device::Cpu));
            group.reduce_scatter(&mut part, &Tensor::from_slice(&[own, 2.0 * own, 3.0 * own])).unwrap();
            assert_eq!(numbers(&part), [6.0 * own]);
            let mut bytes = Tensor::from_slice(&[rank as u8; 5]);
            group.broadcast(&mut bytes, 2).unwrap();
            assert_eq!(Vec::<u8>::try_from(bytes).unwrap(), [2; 5]);
            group.barrier().unwrap();
            group.monitored_barrier(LONG).unwrap();
        });
    }

    /// The store is where processes tell each other who they are, and why they stop.
    #[test]
    fn a_store_is_one_table_for_all() {
        together(2, LONG, |rank, store, _| {
            let mine = store.with_prefix("names").unwrap();
            mine.set(&rank.to_string(), &[rank as u8, 0, 255]).unwrap();
            let other = 1 - rank;
            assert_eq!(mine.get(&other.to_string(), LONG).unwrap(), [other as u8, 0, 255]);
            assert!(mine.has("0").unwrap() && !mine.has("7").unwrap() && !store.has("0").unwrap());
            let missing = mine.get("7", Duration::from_millis(20)).unwrap_err();
            assert!(missing.is_timeout(), "{missing}");
        });
        let store = Store::host(0, LONG).unwrap();
        assert_eq!((store.add("n", 2).unwrap(), store.add("n", 3).unwrap()), (2, 5));
        // Another thread may have it: that is what a look-up with a time limit of its own needs.
        assert_eq!(std::thread::spawn(move || store.add("n", 0).unwrap()).join().unwrap(), 5);
    }

    /// A C++ exception that crossed into Rust would end the program without a word; each is an error with c10d's reason and
    /// no stack trace.
    #[test]
    fn exceptions_become_errors() {
        let store = Store::host(0, LONG).unwrap();
        let taken = Store::host(store.port(), LONG).err().unwrap().to_string();
        assert!(taken.contains("EADDRINUSE") && !taken.contains("Exception raised from"), "{taken}");
        // Nobody listens on the port of a store that is gone.
        let port = store.port();
        drop(store);
        let gone = Store::join("localhost", port, Duration::from_millis(50)).err().unwrap();
        assert!(gone.is_timeout() && !gone.to_string().contains("Exception raised from"), "{gone}");
        if !has_nccl() {
            let store = Store::host(0, LONG).unwrap();
            let refused = ProcessGroup::new(&store, Backend::Nccl, 0, 1, LONG).err().unwrap();
            assert!(refused.to_string().contains("without NCCL"), "{refused}");
        }
    }

    /// Who waits for a process that does not come must be told, and told who it is.
    #[test]
    fn waiting_has_a_limit() {
        together(2, Duration::from_millis(300), |rank, store, group| {
            if rank == 0 {
                let told = group.monitored_barrier(Duration::from_millis(300)).unwrap_err().to_string();
                assert!(told.contains("1"), "{told}");
                let mut tensor = Tensor::from_slice(&[1f32]);
                let told = group.all_reduce(&mut tensor).unwrap_err();
                assert!(told.is_timeout(), "{told}");
                store.set("over", b"").unwrap();
            } else {
                store.get("over", LONG).unwrap();
            }
        });
    }

    /// A view with gaps, or a part of the wrong size, would be read and written past its end.
    #[test]
    fn tensors_that_do_not_fit_are_refused() {
        together(1, LONG, |_, _, group| {
            let square = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
            let refused = |result: Result<(), Error>| matches!(result, Err(Error::Tensors { .. }));
            assert!(refused(group.all_reduce(&mut square.select(1, 0))));
            assert!(refused(group.all_reduce(&mut Tensor::new())));
            assert!(refused(group.broadcast(&mut square.narrow(0, 0, 0), 0)));
            assert!(refused(group.all_gather(&mut square.copy(), &square.select(0, 0))));
            assert!(refused(group.all_gather(&mut square.to_kind(Kind::Double), &square)));
            assert!(refused(group.reduce_scatter(&mut square.copy(), &square.select(0, 0))));
        });
    }
}
