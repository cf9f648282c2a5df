//! The loader under sources that fail, panic and dawdle: batches stay in order, errors stay where they belong.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vit_rs_core::augment::spec::Spec;
use vit_rs_core::emit::{Dtype, Emit, Layout, Output, Values};
use vit_rs_core::error::{Error, Result};
use vit_rs_core::image::{ImageView, Size};
use vit_rs_core::loader::{Batch, Images, Loader, Next, Order};
use vit_rs_core::pipeline::{Decoding, Form, OnError, Pipeline, View};
use vit_rs_core::source::{Item, Source};

/// Image `i` is one pixel of value `i`; multiples of `bad` cannot be read, and `panics` is a bug.
struct Numbers {
    bytes: Vec<u8>,
    bad: usize,
    panics: usize,
    slow: bool,
}

impl Source for Numbers {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn item<'a>(&'a self, index: usize, _buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        assert_ne!(index, self.panics, "a planted bug");
        if self.bad != NEVER && index.is_multiple_of(self.bad) {
            return Err(Error::decode("a planted error"));
        }
        if self.slow {
            // Later samples are done first.
            std::thread::sleep(Duration::from_micros(200 * (3 - index as u64 % 4)));
        }
        let view = ImageView::new(&self.bytes[index..=index], Size::new(1, 1), 1, 1)?;
        Ok(Item::Pixels(view))
    }

    fn name(&self, index: usize) -> String {
        format!("number {index}")
    }

    fn channels(&self) -> usize {
        1
    }

    fn size(&self) -> Option<Size> {
        Some(Size::new(1, 1))
    }
}

const NEVER: usize = usize::MAX;

fn loader(bad: usize, panics: usize, on_error: OnError, threads: usize) -> Loader {
    made(Form::Fixed(raw()), bad, panics, on_error, threads)
}

fn ragged(bad: usize, on_error: OnError) -> Loader {
    let output = Output { layout: Layout::Nhwc, dtype: Dtype::U8, values: Values::Raw };
    made(Form::Ragged(output), bad, NEVER, on_error, 3)
}

fn made(form: Form, bad: usize, panics: usize, on_error: OnError, threads: usize) -> Loader {
    let bytes = (0..=255).collect();
    let source = Arc::new(Numbers { bytes, bad, panics, slow: bad == NEVER });
    Loader::new(pipeline(source, form, on_error), 8, threads, 3).unwrap()
}

fn pipeline(source: Arc<dyn Source>, form: Form, on_error: OnError) -> Pipeline {
    let views = vec![View { spec: Spec::default(), form }];
    let decoding = Decoding { max_pixels: 100, exif: false, fast: false };
    Pipeline { source, subset: None, views, decoding, on_error }
}

/// The one pixel as it is.
fn raw() -> Emit {
    Emit::new(Size::new(1, 1), 1, Layout::Nchw, Dtype::U8, &Values::Raw).unwrap()
}

fn order(positions: impl IntoIterator<Item = u64>, batch_size: Option<usize>) -> Order {
    Order { positions: positions.into_iter().collect(), draws: None, batch_size, drop_last: false }
}

/// An epoch of these positions, in batches of 8.
fn start(loader: &Loader, positions: std::ops::Range<u64>) {
    loader.start(1, 0).unwrap();
    loader.push(order(positions, Some(8)), None).unwrap();
    loader.end().unwrap();
}

fn wait(loader: &Loader) -> Result<Option<Batch>> {
    loop {
        match loader.next(Duration::from_secs(5))? {
            Next::Pending => {}
            Next::Idle => panic!("nothing to wait for"),
            Next::End => return Ok(None),
            Next::Batch(batch) => return Ok(Some(batch)),
        }
    }
}

/// The pixels of its samples.
fn values(batch: Batch) -> Vec<u64> {
    let values: Vec<u8> = match batch.images {
        Images::Fixed(mut slots) => slots[0].bytes_mut()[..batch.positions.len()].to_vec(),
        Images::Ragged(images) => {
            images.into_iter().map(|mut views| views[0].memory.bytes_mut()[0]).collect()
        }
    };
    values.into_iter().map(u64::from).collect()
}

#[test]
fn batches_come_in_order() {
    for threads in [1, 2, 7] {
        let loader = loader(NEVER, NEVER, OnError::Raise, threads);
        start(&loader, 0..100);
        let mut seen = Vec::new();
        while let Some(batch) = wait(&loader).unwrap() {
            assert!(batch.positions.len() == 8 || seen.len() == 96);
            seen.extend(values(batch));
        }
        assert!(seen.iter().copied().eq(0..100));
        let stats = loader.stats().unwrap();
        assert_eq!((stats.tally.images, stats.delivered, stats.batches), (100, 100, 13));
        assert_eq!(stats.ready, 0);
        assert!(stats.wait <= stats.wall && stats.ready_time <= 3 * stats.wall);
        assert!(stats.tally.read <= stats.busy && stats.busy <= threads as u64 * stats.wall);
        assert_eq!(stats, loader.stats().unwrap(), "an ended epoch's figures stand still");
        start(&loader, 96..100);
        assert_eq!(values(wait(&loader).unwrap().unwrap()), [96, 97, 98, 99]);
        assert!(wait(&loader).unwrap().is_none());
        assert_eq!(loader.stats().unwrap().delivered, 4, "each epoch counts anew");
    }
}

#[test]
fn an_abandoned_epoch_leaves_nothing_behind() {
    let loader = loader(NEVER, NEVER, OnError::Raise, 4);
    for _ in 0..20 {
        start(&loader, 0..200);
        assert_eq!(values(wait(&loader).unwrap().unwrap()), [0, 1, 2, 3, 4, 5, 6, 7]);
        start(&loader, 100..110);
        assert_eq!(values(wait(&loader).unwrap().unwrap()), (100..108).collect::<Vec<_>>());
        assert_eq!(values(wait(&loader).unwrap().unwrap()), [108, 109]);
        assert!(wait(&loader).unwrap().is_none());
    }
}

#[test]
fn errors_belong_to_their_batch() {
    let loader = loader(20, NEVER, OnError::Raise, 3);
    start(&loader, 1..33);
    assert_eq!(values(wait(&loader).unwrap().unwrap()), (1..9).collect::<Vec<_>>());
    assert_eq!(values(wait(&loader).unwrap().unwrap()), (9..17).collect::<Vec<_>>());
    assert_eq!(loader.handed_over().unwrap(), 2);
    assert_eq!(wait(&loader).unwrap_err().to_string(), "number 20: a planted error");
    assert_eq!(loader.handed_over().unwrap(), 3);
    assert_eq!(values(wait(&loader).unwrap().unwrap()), (25..33).collect::<Vec<_>>());
    assert!(wait(&loader).unwrap().is_none());
    assert_eq!(loader.handed_over().unwrap(), 4);
    let stats = loader.stats().unwrap();
    assert_eq!((stats.batches, stats.delivered, stats.tally.images), (3, 24, 31));
}

#[test]
fn skipped_samples_close_up_and_are_listed() {
    let loader = loader(3, NEVER, OnError::Skip, 3);
    start(&loader, 0..16);
    assert_eq!(values(wait(&loader).unwrap().unwrap()), [1, 2, 4, 5, 7]);
    assert_eq!(values(wait(&loader).unwrap().unwrap()), [8, 10, 11, 13, 14]);
    let stats = loader.stats().unwrap();
    assert_eq!((stats.failures.len(), stats.delivered, stats.tally.images), (6, 10, 10));
}

#[test]
fn a_panic_is_an_error_of_its_batch_whatever_the_policy() {
    for policy in [OnError::Raise, OnError::Skip, OnError::Substitute] {
        let loader = loader(NEVER, 9, policy, 2);
        start(&loader, 0..32);
        assert_eq!(values(wait(&loader).unwrap().unwrap()).len(), 8);
        let text = wait(&loader).unwrap_err().to_string();
        assert!(text.contains("internal error") && text.contains("a planted bug"), "{text}");
        assert_eq!(values(wait(&loader).unwrap().unwrap()), (16..24).collect::<Vec<_>>());
    }
}

#[test]
fn closing_ends_a_wait() {
    let loader = Arc::new(loader(NEVER, NEVER, OnError::Raise, 2));
    start(&loader, 0..200);
    let other = Arc::clone(&loader);
    let waiting =
        std::thread::spawn(move || while wait(&other).is_ok_and(|batch| batch.is_some()) {});
    std::thread::sleep(Duration::from_millis(3));
    assert!(loader.close(Duration::from_secs(10)));
    waiting.join().unwrap();
    assert!(loader.start(1, 0).is_err());
    assert!(loader.push(order(0..1, None), None).is_err());
}

#[test]
fn closing_in_mid_epoch_panics_in_no_thread() {
    let panics = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&panics);
    std::panic::set_hook(Box::new(move |info| {
        // The planted bug of another test is none of ours.
        if !info.to_string().contains("a planted bug") {
            seen.fetch_add(1, Ordering::Relaxed);
        }
    }));
    for _ in 0..50 {
        let loader = loader(NEVER, NEVER, OnError::Raise, 3);
        start(&loader, 0..200);
        wait(&loader).unwrap();
        assert!(loader.close(Duration::from_secs(10)));
    }
    assert_eq!(panics.load(Ordering::Relaxed), 0);
}

#[test]
fn positions_outside_the_source_are_an_error() {
    let loader = loader(NEVER, NEVER, OnError::Skip, 1);
    start(&loader, 250..258);
    assert!(wait(&loader).is_err_and(|e| e.to_string().contains("a source of 256 samples")));
}

/// Fails to announce its first sample, once.
struct Stumbling {
    stumbled: AtomicUsize,
    one: Numbers,
}

impl Source for Stumbling {
    fn len(&self) -> usize {
        self.one.len()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        self.one.item(index, buffer)
    }

    fn announce(&self, _: usize) -> u64 {
        assert!(self.stumbled.fetch_add(1, Ordering::Relaxed) != 0, "a planted bug");
        0
    }

    fn name(&self, index: usize) -> String {
        self.one.name(index)
    }

    fn channels(&self) -> usize {
        1
    }

    fn size(&self) -> Option<Size> {
        self.one.size()
    }
}

#[test]
fn what_ends_an_epoch_is_told_until_the_next_one_starts() {
    let one = Numbers { bytes: (0..=255).collect(), bad: NEVER, panics: NEVER, slow: false };
    let source = Arc::new(Stumbling { stumbled: AtomicUsize::new(0), one });
    let pipeline = pipeline(source, Form::Fixed(raw()), OnError::Raise);
    let loader = Loader::new(pipeline, 8, 3, 3).unwrap();
    start(&loader, 0..20);
    let error = wait(&loader).unwrap_err();
    assert!(matches!(error, Error::Panic(_)), "{error}");
    assert!(matches!(wait(&loader), Err(Error::Panic(_))), "no batch can come before a new start");
    for _ in 0..2 {
        start(&loader, 0..20);
        let batches: Vec<_> = std::iter::from_fn(|| wait(&loader).unwrap()).collect();
        assert_eq!(batches.iter().map(|batch| batch.positions.len()).sum::<usize>(), 20);
    }
}

#[test]
fn numbers_without_sense_are_refused() {
    let made = |threads, prefetch| {
        let source = Numbers { bytes: vec![0], bad: NEVER, panics: NEVER, slow: false };
        let pipeline = Pipeline {
            source: Arc::new(source),
            subset: None,
            views: Vec::new(),
            decoding: Decoding { max_pixels: 100, exif: false, fast: false },
            on_error: OnError::Raise,
        };
        Loader::new(pipeline, 8, threads, prefetch).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(made(1, 1).is_ok());
    assert!(made(0, 1).unwrap_err().contains("at least 1"));
    assert!(made(1 << 20, 1).unwrap_err().contains("num_threads must be at most"));
    assert!(made(1, usize::MAX).unwrap_err().contains("prefetch at most"));
}

fn idle(loader: &Loader) -> bool {
    matches!(loader.next(Duration::ZERO), Ok(Next::Idle))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_of_any_size_come_as_they_were_pushed(
        batches in prop::collection::vec(prop::collection::vec(0_u64..256, 0..30), 1..12),
        together in prop::collection::vec(any::<bool>(), 12),
        threads in 1_usize..4,
        single: bool,
    ) {
        let loader = if single {
            ragged(NEVER, OnError::Raise)
        } else {
            loader(NEVER, NEVER, OnError::Raise, threads)
        };
        loader.start(1, 0).unwrap();
        let mut waiting = Vec::new();
        for (batch, together) in batches.iter().zip(&together) {
            loader.push(order(batch.iter().copied(), None), None).unwrap();
            waiting.push(batch);
            if !together {
                for batch in waiting.drain(..) {
                    prop_assert_eq!(&values(wait(&loader).unwrap().unwrap()), batch);
                }
            }
        }
        loader.end().unwrap();
        for batch in waiting {
            prop_assert_eq!(&values(wait(&loader).unwrap().unwrap()), batch);
        }
        prop_assert!(wait(&loader).unwrap().is_none());
    }
}

#[test]
fn what_was_not_pushed_is_not_waited_for() {
    let loader = loader(NEVER, NEVER, OnError::Raise, 2);
    assert!(wait(&loader).unwrap().is_none(), "before any epoch");
    let refused = |order| loader.push(order, None).unwrap_err().to_string();
    assert!(refused(order(0..3, None)).contains("between start and end"));
    loader.start(1, 0).unwrap();
    assert!(idle(&loader));
    loader.push(order(0..3, None), None).unwrap();
    loader.push(order(0..0, Some(8)), None).unwrap();
    assert_eq!(values(wait(&loader).unwrap().unwrap()), [0, 1, 2]);
    assert!(idle(&loader));
    loader.push(order(3..5, None), None).unwrap();
    loader.end().unwrap();
    assert!(refused(order(0..3, None)).contains("between start and end"));
    assert_eq!(values(wait(&loader).unwrap().unwrap()), [3, 4]);
    assert!(wait(&loader).unwrap().is_none());
    loader.start(1, 1).unwrap();
    assert!(idle(&loader), "each epoch ends anew");
}

#[test]
fn pushes_without_sense_are_refused() {
    let loader = loader(NEVER, NEVER, OnError::Raise, 1);
    loader.start(1, 0).unwrap();
    let refused = |order| loader.push(order, None).unwrap_err().to_string();
    assert!(refused(order(0..3, Some(0))).contains("batch_size must be at least 1"));
    let unequal = Order { draws: Some(vec![1]), ..order(0..3, None) };
    assert!(refused(unequal).contains("as many draws"));
    assert!(idle(&loader));
}

#[test]
fn memory_grows_when_larger_batches_are_usual() {
    let loader = loader(NEVER, NEVER, OnError::Raise, 2);
    loader.start(1, 0).unwrap();
    assert_eq!(loader.memory(), [(8, 5)]);
    // One that is much larger has memory of its own, and only the second one in a row changes that of all.
    for (size, kept) in [(3, 8), (300, 8), (3, 8), (300, 8), (300, 300), (20, 300)] {
        loader.push(order((0..size).map(|number| number % 256), None), None).unwrap();
        assert_eq!(wait(&loader).unwrap().unwrap().positions.len() as u64, size);
        assert_eq!(loader.memory(), [(kept, 5)], "after {size}");
    }
}

#[test]
fn ragged_batches_close_up_and_substitute_too() {
    let loader = ragged(3, OnError::Skip);
    start(&loader, 0..16);
    assert_eq!(values(wait(&loader).unwrap().unwrap()), [1, 2, 4, 5, 7]);
    let batch = wait(&loader).unwrap().unwrap();
    assert_eq!(batch.positions, [8, 10, 11, 13, 14]);
    assert!(loader.memory().is_empty());
    let loader = ragged(3, OnError::Substitute);
    start(&loader, 0..8);
    let batch = wait(&loader).unwrap().unwrap();
    let positions = batch.positions.clone();
    assert!(positions.iter().all(|position| position % 3 != 0) && positions[1] == 1);
    assert_eq!(values(batch), positions);
}

#[test]
fn views_are_of_one_form() {
    let output = Output { layout: Layout::Nhwc, dtype: Dtype::U8, values: Values::Raw };
    let source = Numbers { bytes: vec![0], bad: NEVER, panics: NEVER, slow: false };
    let mut pipeline = pipeline(Arc::new(source), Form::Fixed(raw()), OnError::Raise);
    pipeline.views.push(View { spec: Spec::default(), form: Form::Ragged(output) });
    let error = Loader::new(pipeline, 1, 1, 1).unwrap_err();
    assert!(error.to_string().contains("fixed sizes, or none"), "{error}");
}
