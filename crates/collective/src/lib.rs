//! Sums over processes: a process group of libtorch's c10d with Gloo, as `torchrun` starts its members, and NCCL for what
//! their GPUs hold.
//!
//! ```no_run
//! use gradpruner_collective::Group;
//!
//! // `torchrun --no-python --nproc-per-node 2 PROGRAM` sets the variables; without them there is one process.
//! if let Some(group) = Group::from_env()? {
//!     let own = vec![1.0_f32 + group.rank() as f32];
//!     let under_way = group.start_sum(own)?;
//!     // … something else meanwhile …
//!     assert_eq!(under_way.wait()?, [3.0]);
//! }
//! # Ok::<(), gradpruner_collective::CollectiveError>(())
//! ```

mod ffi;
mod nccl;

use std::env;

use ffi::{Meeting, OpenGroup, Pending};

pub use ffi::Number;
pub use nccl::Nccl;

/// What every function here returns.
pub type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// Why processes could not work together.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum CollectiveError {
    #[error(
        "`WORLD_SIZE` says that several processes work together, and `{0}` is not set; start them by torchrun"
    )]
    Missing(&'static str),
    #[error(
        "the environment variable `{name}` is `{found}`, which it cannot be; start the processes by torchrun"
    )]
    Variable { name: &'static str, found: String },
    #[error(
        "the processes did not meet at {place}: {why}; are all of them started, with the same `MASTER_ADDR` and `MASTER_PORT`?"
    )]
    Meet { place: String, why: String },
    #[error("the processes lost each other: {0}; did one of them stop, or still fetch its model?")]
    Group(String),
    #[error("NCCL cannot be used: {0}")]
    NoNccl(String),
    #[error("NCCL cannot be used: another process cannot, and says why")]
    NoNcclElsewhere,
}

/// Seconds that a process waits for the others.
const TIMEOUT_SECONDS: u64 = 1800;

/// Processes that sum numbers together. All of them make the same sums in the same order.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    size: usize,
    backend: Backend,
    open: OpenGroup,
}

/// What sums gradients, by the names that PyTorch has for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// NCCL between GPUs, where it can be used, else Gloo.
    #[default]
    Auto,
    /// Gloo, through the computer's memory.
    Gloo,
    /// NCCL, or an error.
    Nccl,
}

/// A sum under way; its numbers come back from [`Sum::wait`].
#[derive(Debug)]
#[must_use = "the sums come from `wait`"]
pub struct Sum<T>(Pending<T>);

impl<T> Sum<T> {
    /// Waits until all processes have added theirs, and returns the sums, the same bits in each.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Group`] if a process is gone.
    pub fn wait(self) -> Result<Vec<T>> {
        self.0.wait()
    }
}

impl Group {
    /// The group that `torchrun`'s variables describe (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`), once all its
    /// processes are there; `None` if there is one process.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Missing`] or [`CollectiveError::Variable`] if the variables do not describe one,
    /// [`CollectiveError::Meet`] if the others do not come within half an hour.
    pub fn from_env() -> Result<Option<Self>> {
        let size = processes()?;
        if size <= 1 {
            return Ok(None);
        }
        let rank: usize = number("RANK")?;
        if rank >= size {
            return Err(CollectiveError::Variable { name: "RANK", found: rank.to_string() });
        }
        let host = variable("MASTER_ADDR")?;
        // `torchrun` keeps the store itself and starts the processes again if one fails.
        let agent = env::var("TORCHELASTIC_USE_AGENT_STORE").is_ok_and(|text| text == "True");
        let attempt = env::var("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
        Self::open(Meeting {
            host: &host,
            port: number("MASTER_PORT")?,
            serves: rank == 0 && !agent,
            prefix: &format!("gradpruner/{attempt}"),
            rank,
            size,
            timeout_seconds: TIMEOUT_SECONDS,
        })
        .map(Some)
    }

    /// The group of so many processes that meet at a place, where the first of them, number 0, waits for the others.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Meet`] if the others do not come within half an hour.
    pub fn meet(host: &str, port: u16, rank: usize, size: usize) -> Result<Self> {
        let (serves, prefix, timeout_seconds) = (rank == 0, "gradpruner", TIMEOUT_SECONDS);
        Self::open(Meeting { host, port, serves, prefix, rank, size, timeout_seconds })
    }

    fn open(meeting: Meeting<'_>) -> Result<Self> {
        let Meeting { host, port, rank, size, .. } = meeting;
        let open = OpenGroup::meet(&meeting).map_err(|error| match error {
            CollectiveError::Group(why) => {
                CollectiveError::Meet { place: format!("{host}:{port}"), why }
            }
            error => error,
        })?;
        Ok(Self { rank, size, backend: Backend::Auto, open })
    }

    /// How many processes meet where, as a phrase, in the first of them; `None` in the others and if there is one.
    ///
    /// # Errors
    ///
    /// As [`Group::from_env`], but for what only a meeting shows.
    pub fn described() -> Result<Option<String>> {
        let size = processes()?;
        if size <= 1 || number::<usize>("RANK")? != 0 {
            return Ok(None);
        }
        let port = env::var("MASTER_PORT").unwrap_or_default();
        Ok(Some(format!("{size} processes at {}:{port}", variable("MASTER_ADDR")?)))
    }

    /// The same with another backend than [`Backend::Auto`].
    #[must_use]
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// What sums gradients. Figures go by Gloo, always.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The number of this process, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Begins to sum numbers with those of all other processes, as many in each; Gloo's threads do it.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Group`] if a process is gone.
    pub fn start_sum<T: Number>(&self, numbers: Vec<T>) -> Result<Sum<T>> {
        Ok(Sum(self.open.start_sum(numbers)?))
    }

    /// As [`Group::start_sum`], and waits.
    ///
    /// # Errors
    ///
    /// As [`Group::start_sum`].
    pub fn sum<T: Number>(&self, numbers: Vec<T>) -> Result<Vec<T>> {
        self.start_sum(numbers)?.wait()
    }
}

/// How many processes `WORLD_SIZE` says there are; one if it is not set.
///
/// # Errors
///
/// [`CollectiveError::Variable`] if it is no number.
pub fn processes() -> Result<usize> {
    if env::var_os("WORLD_SIZE").is_none() { Ok(1) } else { number("WORLD_SIZE") }
}

/// The number of this process among those of its group on its machine, by `LOCAL_RANK`; 0 if there is no group.
pub fn local_rank() -> usize {
    if processes().unwrap_or(1) > 1 { number("LOCAL_RANK").unwrap_or(0) } else { 0 }
}

/// How many processes of its group are on this machine, by `LOCAL_WORLD_SIZE`; 1 if there is no group.
pub fn local_processes() -> usize {
    if processes().unwrap_or(1) > 1 { number("LOCAL_WORLD_SIZE").unwrap_or(1).max(1) } else { 1 }
}

fn variable(name: &'static str) -> Result<String> {
    env::var(name).map_err(|_| CollectiveError::Missing(name))
}

fn number<T: std::str::FromStr>(name: &'static str) -> Result<T> {
    let found = variable(name)?;
    found.parse().map_err(|_| CollectiveError::Variable { name, found })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Three members, as threads: sums are waited for in another order than they began in, and one is let go of.
    #[test]
    fn every_member_has_the_sums() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let size = 3;
        let member = move |rank: usize| {
            let group = Group::meet("127.0.0.1", port, rank, size).unwrap();
            let own = rank as f32;
            let sums: Vec<_> = (0..4_u16)
                .map(|number| group.start_sum(vec![own, f32::from(number)]).unwrap())
                .collect();
            drop(group.start_sum(vec![1.0_f64; 1 << 16]).unwrap());
            let found: Vec<_> = sums.into_iter().rev().map(|sum| sum.wait().unwrap()).collect();
            let long = group.sum(vec![0.1_f64 * f64::from(own); 1000]).unwrap();
            (found, long)
        };
        let members: Vec<_> = (0..size).map(|rank| thread::spawn(move || member(rank))).collect();
        let found: Vec<_> = members.into_iter().map(|member| member.join().unwrap()).collect();
        for (sums, long) in &found {
            assert_eq!(*sums, [[3.0, 9.0], [3.0, 6.0], [3.0, 3.0], [3.0, 0.0]]);
            assert!(long.iter().all(|sum| (sum - 0.3).abs() < 1e-12));
            assert_eq!(long, &found[0].1);
        }
    }
}
