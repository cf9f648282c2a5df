//! Who waits for whom, and who owns what, at moments that only a source that waits makes sure of.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;
use crate::augment::spec::Spec;
use crate::emit::{Dtype, Layout, Output, Values};
use crate::image::{ImageView, Size};
use crate::pipeline::{Decoding, OnError};
use crate::slot::tests::lent;
use crate::source::{Item, Source};

/// The index that cannot be read.
const BAD: usize = 5;

/// One thread, one batch ahead, an epoch under way.
fn loader(source: &Arc<Gated>, ragged: bool) -> Loader {
    let output = Output { layout: Layout::Nchw, dtype: Dtype::U8, values: Values::Raw };
    let form = if ragged {
        Form::Ragged(output)
    } else {
        Form::Fixed(output.emit(Size::new(1, 1), 1).unwrap())
    };
    loader_of(source, form, 8)
}

fn loader_of(source: &Arc<Gated>, form: Form, batch_size: usize) -> Loader {
    let pipeline = Pipeline {
        source: Arc::clone(source) as _,
        subset: None,
        views: vec![View { spec: Spec::default(), form }],
        decoding: Decoding { max_pixels: 100, exif: false, fast: false },
        on_error: OnError::Skip,
    };
    let loader = Loader::new(pipeline, batch_size, 1, 1).unwrap();
    loader.start(1, 0).unwrap();
    loader
}

fn order(positions: impl IntoIterator<Item = u64>, batch_size: Option<usize>) -> Order {
    Order { positions: positions.into_iter().collect(), batch_size, ..Order::default() }
}

fn wait(loader: &Loader) -> Option<Batch> {
    loop {
        match loader.next(Duration::from_secs(5)).unwrap() {
            Next::Pending => {}
            Next::Idle => panic!("nothing to wait for"),
            Next::End => return None,
            Next::Batch(batch) => return Some(batch),
        }
    }
}

fn values(batch: Batch) -> Vec<u8> {
    let Images::Fixed(mut slots) = batch.images else { panic!("not of fixed sizes") };
    slots[0].bytes_mut()[..batch.positions.len()].to_vec()
}

/// Waits before each sample until it may go on.
struct Gated {
    open: AtomicBool,
    waiting: AtomicUsize,
    bytes: [u8; 256],
}

impl Gated {
    fn new(open: bool) -> Arc<Self> {
        let (open, waiting) = (AtomicBool::new(open), AtomicUsize::new(0));
        Arc::new(Self { open, waiting, bytes: std::array::from_fn(|number| number as u8) })
    }

    fn until(what: impl Fn() -> bool) {
        while !what() {
            std::thread::yield_now();
        }
    }
}

impl Source for Gated {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn item<'a>(&'a self, index: usize, _: &'a mut Vec<u8>) -> Result<Item<'a>> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Self::until(|| self.open.load(Ordering::SeqCst));
        if index == BAD {
            return Err(Error::decode("a planted error"));
        }
        let pixel = &self.bytes[index..=index];
        Ok(Item::Pixels(ImageView::new(pixel, Size::new(1, 1), 1, 1)?))
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

#[test]
fn batches_are_pushed_while_the_consumer_waits() {
    let source = Gated::new(false);
    let loader = self::loader(&source, false);
    loader.push(order(0..2, None), None).unwrap();
    let (sender, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        let consumer = scope.spawn(|| {
            assert!(matches!(loader.next(Duration::from_millis(1)), Ok(Next::Pending)));
            sender.send(()).unwrap();
            let batches = std::iter::from_fn(|| wait(&loader));
            batches.map(values).collect::<Vec<_>>()
        });
        waits.recv().unwrap();
        loader.push(order([7, 7, 7], None), None).unwrap();
        loader.end().unwrap();
        source.open.store(true, Ordering::SeqCst);
        assert_eq!(consumer.join().unwrap(), [vec![0, 1], vec![7, 7, 7]]);
    });
}

#[test]
fn a_batch_is_written_into_memory_that_was_lent() {
    let loader = self::loader(&Gated::new(true), false);
    let (owner, slot) = lent(10);
    loader.push(order(1..9, None), Some(vec![slot])).unwrap();
    loader.push(order(1..3, None), None).unwrap();
    let batch = wait(&loader).unwrap();
    assert_eq!(batch.positions, [1, 2, 3, 4, 6, 7, 8]);
    drop(batch);
    assert_eq!((Arc::strong_count(&owner), &owner[..7]), (1, &[1, 2, 3, 4, 6, 7, 8][..]));
    assert_eq!(values(wait(&loader).unwrap()), [1, 2]);
    let refused = |order, sizes: &[usize]| {
        let slots = sizes.iter().map(|&size| lent(size).1).collect();
        loader.push(order, Some(slots)).unwrap_err().to_string()
    };
    assert_eq!(refused(order(0..3, None), &[2]), "a batch needs 3 bytes of memory, got 2");
    assert_eq!(refused(order(0..3, None), &[9, 9]), "memory for 1 views is needed, got 2");
    assert!(refused(order(0..3, Some(2)), &[9]).contains("for one batch"));
    let ragged = self::loader(&Gated::new(true), true);
    let error = ragged.push(order(0..3, None), Some(vec![lent(9).1])).unwrap_err();
    assert!(error.to_string().contains("for one batch of views of fixed sizes"));
}

#[test]
fn a_batch_without_memory_is_an_error_and_those_around_it_come() {
    let output = Output { layout: Layout::Nchw, dtype: Dtype::U8, values: Values::Raw };
    let emit = output.emit(Size::new(1 << 14, 1 << 14), 1).unwrap();
    let loader = loader_of(&Gated::new(true), Form::Fixed(emit), 1);
    let small = || order([BAD as u64], None);
    // 2^48 bytes are more than there are addresses.
    let large = || order(std::iter::repeat_n(1, 1 << 20), None);
    for order in [small(), large(), large(), small(), large()] {
        loader.push(order, None).unwrap();
    }
    loader.end().unwrap();
    let next = || loader.next(Duration::from_secs(5));
    let no_memory = || matches!(next(), Err(Error::Memory(bytes)) if bytes == 1 << 48);
    let empty = || wait(&loader).unwrap().positions.is_empty();
    assert!(empty() && no_memory() && no_memory() && empty() && no_memory());
    assert!(matches!(next(), Ok(Next::End)));
    assert_eq!(loader.memory(), [(1 << 28, 3)]);
    assert_eq!(loader.stats().unwrap().batches, 2);
}

#[test]
fn a_bug_is_told_of_until_the_next_start() {
    let loader = self::loader(&Gated::new(true), false);
    loader.push(order(0..3, None), None).unwrap();
    loader.shared.fail(loader.shared.lock(), "planted".to_owned());
    for _ in 0..2 {
        // Pushes are accepted, so that it is the one who waits for a batch who is told.
        loader.push(order(0..3, None), None).unwrap();
        let error = loader.next(Duration::from_secs(5)).unwrap_err();
        assert!(matches!(&error, Error::Panic(text) if text == "planted"), "{error}");
    }
    loader.end().unwrap();
    assert!(loader.next(Duration::from_secs(5)).is_err());
    loader.start(1, 1).unwrap();
    loader.push(order(0..2, None), None).unwrap();
    assert_eq!(values(wait(&loader).unwrap()), [0, 1]);
}

#[test]
fn lent_memory_outlives_the_last_who_writes_it() {
    let source = Gated::new(false);
    let loader = self::loader(&source, false);
    let ((under_way, first), (never_begun, second)) = (lent(8), lent(8));
    loader.push(order(1..9, None), Some(vec![first])).unwrap();
    loader.push(order(1..9, None), Some(vec![second])).unwrap();
    Gated::until(|| source.waiting.load(Ordering::SeqCst) == 1);
    loader.start(1, 1).unwrap();
    assert_eq!((Arc::strong_count(&under_way), Arc::strong_count(&never_begun)), (2, 1));
    source.open.store(true, Ordering::SeqCst);
    Gated::until(|| Arc::strong_count(&under_way) == 1);
    assert_eq!(*under_way, [1, 0, 0, 0, 0, 0, 0, 0], "one sample was under way");
}
