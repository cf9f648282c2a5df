//! Mutates files with a seed and gives them to a target, on stable Rust:
//!
//! ```text
//! cargo run --release --manifest-path rust/fuzz/Cargo.toml -- decode --seconds 60 --seed 1 [FILE...]
//! ```
//!
//! Without files the target's own under `rust/fuzz/corpus` are taken. Panics, broken promises, calls longer than 5 s,
//! and Rust allocations beyond a limit (C libraries' are bounded by `ulimit -v`, as `scripts/fuzz.sh` does) are
//! failures: the input is kept under `rust/fuzz/failures`, and the exit status is 1. A call that never returns ends
//! the program. `-- corpus` writes the corpus anew.

mod corpus;
mod mutate;
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vit_rs_core::rng::EpochKey;

const SLOW: Duration = Duration::from_secs(5);
const HANGS: Duration = Duration::from_secs(30);
/// Of 16-bit RGBA an image of the largest size is 8 MiB; decoders may hold a few of them.
const MAX_BYTES: usize = 64 << 20;
/// So many failures end a run.
const ENOUGH: usize = 10;

/// Counts what Rust code allocates.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is being tried, and since when.
static TRYING: Mutex<Option<(Instant, Vec<u8>)>> = Mutex::new(None);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!(
                "{failures} failures; their inputs are in {}",
                root().join("failures").display()
            );
            ExitCode::FAILURE
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

/// Parses the arguments and runs; returns how many failures there were.
fn run(arguments: Vec<String>) -> Result<usize, String> {
    let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    let usage = format!("usage: corpus | {} [--seconds N] [--seed N] [FILE...]", names.join(" | "));
    let mut arguments = arguments.into_iter();
    let name = arguments.next().ok_or(&*usage)?;
    if name == "corpus" {
        return corpus::write(&root().join("corpus")).map(|()| 0);
    }
    let target = targets::TARGETS.iter().find(|target| target.0 == name).ok_or(usage)?;
    let (mut seconds, mut seed, mut files) = (60, 0, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .and_then(|text| text.parse().ok())
                .ok_or(format!("{argument} takes a number"))
        };
        match &*argument {
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            _ => files.push(PathBuf::from(argument)),
        }
    }
    if files.is_empty() {
        files = listed(&root().join("corpus").join(&name))?;
    }
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let seeds = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if seeds.is_empty() {
        return Err("no file to begin with".into());
    }
    std::thread::spawn(watch);
    std::panic::set_hook(Box::new(|_| {}));
    Ok(fuzz(&name, target.1, &seeds, Duration::from_secs(seconds), seed))
}

/// The files of a folder, by name.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// Tries mutants until the time is over; each depends on the seed and its number only.
fn fuzz(
    name: &str,
    target: targets::Target,
    seeds: &[Vec<u8>],
    time: Duration,
    seed: u64,
) -> usize {
    let (mut tried, mut accepted, mut failures, mut slowest, mut most) =
        (0, 0, 0, Duration::ZERO, 0);
    let mut state = targets::State::default();
    let start = Instant::now();
    while start.elapsed() < time && failures < ENOUGH {
        let mut random = EpochKey::new(seed, 0).stream(tried, 0, 0);
        let mut file = seeds[tried as usize % seeds.len()].clone();
        // Each seed is tried unharmed first.
        if tried as usize >= seeds.len() {
            let other = &seeds[mutate::below(&mut random, seeds.len())];
            mutate::mutate(&mut file, other, &mut random);
        }
        *trying() = Some((Instant::now(), file.clone()));
        let before = HELD.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&mut state, &file, &mut random)));
        let took = began.elapsed();
        let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        *trying() = None;
        slowest = slowest.max(took);
        most = most.max(bytes);
        let failure = match outcome {
            Err(panic) => {
                state = targets::State::default();
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                Some(format!("panic: {}", text.unwrap_or("no text")))
            }
            Ok(Err(text)) => Some(text),
            Ok(Ok(_)) if took > SLOW => Some(format!("took {took:.1?}")),
            Ok(Ok(_)) if bytes > MAX_BYTES => Some(format!("allocated {bytes} bytes")),
            Ok(Ok(good)) => {
                accepted += u64::from(good);
                None
            }
        };
        if let Some(text) = failure {
            failures += 1;
            eprintln!("{name}, seed {seed}, mutant {tried}: {text}");
            keep(&file, &format!("{name}-{seed}-{tried}"));
        }
        tried += 1;
    }
    println!(
        "{name}: {tried} mutants of {} files with seed {seed}, {accepted} accepted, {failures} failures; slowest \
         {slowest:.1?}, at most {most} bytes of Rust's",
        seeds.len()
    );
    failures
}

fn trying() -> std::sync::MutexGuard<'static, Option<(Instant, Vec<u8>)>> {
    TRYING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Ends the program when a call does not return.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if let Some((since, file)) = &*trying()
            && since.elapsed() > HANGS
        {
            keep(file, "hang");
            eprintln!("a call did not return within {HANGS:?}");
            std::process::exit(1);
        }
    }
}

/// Writes a failing input where it can be looked at.
fn keep(file: &[u8], name: &str) {
    let folder = root().join("failures");
    let written =
        std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(folder.join(name), file));
    if let Err(error) = written {
        eprintln!("{}: {error}", folder.display());
    }
}
