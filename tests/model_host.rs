//! Random operations on mounted branches and, the same, on plain directories of the host: with
//! forks, remounts, kills of the serving process, files held open and mapped over all that.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing. Runs for half a minute,
//! or for `COWFS_MODEL_SECONDS`. The seed of every run is printed; `COWFS_MODEL_SEED` repeats it.
//! What fails is shrunk for a minute, or for `COWFS_MODEL_SHRINK_SECONDS`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod mount_support;

#[path = "model_host/act.rs"]
mod act;
#[path = "model_host/compare.rs"]
mod compare;
#[path = "model_host/op.rs"]
mod op;
#[path = "model_host/world.rs"]
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use op::{Op, op};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use world::World;

/// Operations of one run.
const OPS: std::ops::Range<usize> = 60..220;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// Carries `ops` out; returns how many of them were done and how many refused, or what is wrong.
fn run(ops: &[Op], options: &'static str) -> Result<[usize; 2], String> {
    let mut world = World::new(options).expect("it could be mounted before");
    let mut did = 0;
    let lived = catch_unwind(AssertUnwindSafe(|| {
        for op in ops {
            world.apply(op);
            did += 1;
        }
    }));
    let tally = world.tally;
    let ended = match lived {
        Ok(()) => catch_unwind(AssertUnwindSafe(|| world.end())),
        Err(panic) => return Err(format!("operation {did}: {}\n{}", words(&panic), world.logs())),
    };
    ended.map(|()| tally).map_err(|panic| format!("at the end: {}", words(&panic)))
}

fn words(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

fn operations(seed: u64) -> Vec<Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let random = proptest::collection::vec(op(), OPS).new_tree(&mut runner).unwrap();
    [op::beginning(), random.current()].concat()
}

/// The shortest failing sequence that is found until `deadline`, and what it says.
///
/// Leaves out ever smaller parts: a run takes too long to try it operation by operation.
fn shrink(
    mut ops: Vec<Op>,
    mut said: String,
    options: &'static str,
    deadline: Instant,
) -> (Vec<Op>, String) {
    let mut part = ops.len() / 2;
    while part > 0 {
        let mut at = ops.len();
        while at > 0 && Instant::now() < deadline {
            let start = at.saturating_sub(part);
            let fewer = [&ops[..start], &ops[at..]].concat();
            if let Err(error) = run(&fewer, options) {
                (ops, said) = (fewer, error);
            }
            at = start;
        }
        part /= 2;
    }
    (ops, said)
}

fn fail(seed: u64, ops: Vec<Op>, options: &'static str, said: String) -> ! {
    eprintln!("COWFS_MODEL_SEED={seed} fails, is shrunk now: {said}");
    let patience = number("COWFS_MODEL_SHRINK_SECONDS").unwrap_or(60);
    let (ops, said) = shrink(ops, said, options, Instant::now() + Duration::from_secs(patience));
    let lines: Vec<String> = ops.iter().map(|op| format!("    {op:?}")).collect();
    // What is wrong comes last: of a long output, people are shown the end.
    eprintln!("{}", lines.join("\n"));
    let first = said.lines().next().unwrap_or_default();
    panic!("{said}\nCOWFS_MODEL_SEED={seed} {first}");
}

#[test]
fn mount_random_operations_as_on_the_host() {
    if mount_support::possible() && world::host_can() {
        random_operations("rw", 30);
    }
}

#[test]
fn mount_random_operations_by_io_uring() {
    if !mount_support::possible() || !world::host_can() {
        return;
    }
    let switch = "/sys/module/fuse/parameters/enable_uring";
    if !std::path::Path::new(switch).exists() {
        println!("skipped: there is no {switch}");
        return;
    }
    random_operations("uring", 15);
}

/// On branches that are mounted with `options`, for so many seconds unless the environment says.
fn random_operations(options: &'static str, seconds: u64) {
    let given = number("COWFS_MODEL_SEED");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first = given.unwrap_or(clock * 1000);
    // A seed without a time is one that is to be looked at again.
    let default = if given.is_some() { 0 } else { seconds };
    let end =
        Instant::now() + Duration::from_secs(number("COWFS_MODEL_SECONDS").unwrap_or(default));
    let (mut seed, mut tally) = (first, [0, 0]);
    loop {
        println!("COWFS_MODEL_SEED={seed}");
        let ops = operations(seed);
        match run(&ops, options) {
            Ok(more) => tally = [tally[0] + more[0], tally[1] + more[1]],
            Err(said) => fail(seed, ops, options, said),
        }
        seed += 1;
        if Instant::now() >= end {
            break;
        }
    }
    let [done, refused] = tally;
    println!("{} runs, seeds {first} to {}", seed - first, seed - 1);
    println!("{done} operations were carried out and {refused} refused, as on the host");
}
