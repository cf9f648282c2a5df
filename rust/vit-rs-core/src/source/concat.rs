//! Several sources, one behind the other.

use std::sync::Arc;

use super::{Fetched, Item, Source};
use crate::error::{Error, Result};
use crate::image::Size;

/// The samples of all parts, in their order.
pub struct Concat {
    parts: Vec<Arc<dyn Source>>,
    /// Index of each part's first sample, and behind them the number of all.
    starts: Vec<usize>,
    channels: usize,
}

impl Concat {
    /// These parts.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none, or their images differ in channels.
    pub fn new(parts: Vec<Arc<dyn Source>>) -> Result<Self> {
        let Some(channels) = parts.first().map(|part| part.channels()) else {
            return Err(Error::argument("there must be at least one source"));
        };
        let mut starts = vec![0_usize];
        let mut end = 0_usize;
        for (number, part) in parts.iter().enumerate() {
            if part.channels() != channels {
                return Err(Error::argument(format!(
                    "images of {channels} and of {} channels (part {number}) cannot be mixed",
                    part.channels()
                )));
            }
            end = end
                .checked_add(part.len())
                .ok_or_else(|| Error::argument("more samples than can be counted"))?;
            starts.push(end);
        }
        Ok(Self { parts, starts, channels })
    }

    /// The part that holds a sample, and the sample's index in it.
    fn locate(&self, index: usize) -> Result<(&dyn Source, usize)> {
        // The last of the parts that begin there: empty ones begin where the next one does.
        let number = self.starts.partition_point(|&start| start <= index).checked_sub(1);
        number
            .and_then(|number| Some((self.parts.get(number)?.as_ref(), self.starts.get(number)?)))
            .map(|(part, start)| (part, index - start))
            .ok_or_else(|| Error::argument(format!("sample {index} of {}", self.len())))
    }
}

impl Source for Concat {
    fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let (part, index) = self.locate(index)?;
        part.item(index, buffer)
    }

    fn announce(&self, index: usize) -> u64 {
        self.locate(index).map_or(0, |(part, index)| part.announce(index))
    }

    fn fetch<'a>(
        &'a self,
        index: usize,
        ticket: u64,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Fetched<'a>> {
        let (part, index) = self.locate(index)?;
        part.fetch(index, ticket, buffer)
    }

    fn abandon(&self) {
        self.parts.iter().for_each(|part| part.abandon());
    }

    fn close(&self) {
        self.parts.iter().for_each(|part| part.close());
    }

    fn blocks(&self) -> Option<Vec<u32>> {
        let blocks: Vec<_> = self.parts.iter().map(|part| part.blocks()).collect();
        if blocks.iter().all(Option::is_none) {
            return None;
        }
        let mut joined = Vec::with_capacity(self.len());
        let mut next = 0_u32;
        for (part, blocks) in self.parts.iter().zip(blocks) {
            // Where all samples are equally near, each is a block of its own.
            let count = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let blocks = blocks.unwrap_or_else(|| (0..count).collect());
            let first = next;
            for block in blocks {
                let block = first.saturating_add(block);
                next = next.max(block.saturating_add(1));
                joined.push(block);
            }
        }
        Some(joined)
    }

    fn name(&self, index: usize) -> String {
        self.locate(index)
            .map_or_else(|_| format!("sample {index}"), |(part, index)| part.name(index))
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn size(&self) -> Option<Size> {
        let mut sizes = self.parts.iter().map(|part| part.size());
        let first = sizes.next().flatten()?;
        sizes.all(|size| size == Some(first)).then_some(first)
    }

    fn samples_at_a_time(&self) -> usize {
        self.parts.iter().map(|part| part.samples_at_a_time()).min().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::source::feed::{Asked, Feed};
    use crate::source::memory::Array;
    use crate::source::mixed::{Entry, Mixed};
    use std::time::Duration;

    fn array(first: u8, len: usize, size: Size) -> Arc<dyn Source> {
        let values = len * size.pixels();
        let bytes: Vec<u8> = (0..values).map(|k| first + u8::try_from(k).unwrap()).collect();
        Arc::new(Array::new(bytes, len, size, 1).unwrap())
    }

    fn first_values(source: &dyn Source) -> Vec<u8> {
        let mut buffer = Vec::new();
        let value = |index| match source.item(index, &mut buffer).unwrap() {
            Item::Pixels(pixels) => pixels.row(0)[0],
            Item::Encoded(bytes) => bytes[0],
        };
        (0..source.len()).map(value).collect()
    }

    #[test]
    fn samples_of_all_parts_follow_each_other() {
        let size = Size::new(1, 1);
        let parts =
            vec![array(0, 0, size), array(10, 2, size), array(0, 0, size), array(20, 3, size)];
        let source = Concat::new(parts).unwrap();
        assert_eq!((source.len(), source.size(), source.channels()), (5, Some(size), 1));
        assert_eq!(first_values(&source), [10, 11, 20, 21, 22]);
        assert_eq!((source.name(1), source.name(2)), ("image 1".into(), "image 0".into()));
        let error = source.item(5, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "sample 5 of 5");
        assert_eq!(source.name(5), "sample 5");
        assert_eq!(source.blocks(), None);
        assert_eq!(source.samples_at_a_time(), 64);
    }

    #[test]
    fn parts_may_differ_in_size_and_not_in_channels() {
        let (small, large) = (array(0, 1, Size::new(1, 1)), array(0, 1, Size::new(2, 2)));
        assert_eq!(Concat::new(vec![small.clone(), large]).unwrap().size(), None);
        let encoded: Arc<dyn Source> =
            Arc::new(Mixed::new(vec![Entry::Bytes(b"x".to_vec()), Entry::Path("y".into())]));
        let error = Concat::new(vec![small, encoded.clone()]).err().unwrap();
        let text = "images of 1 and of 3 channels (part 1) cannot be mixed";
        assert_eq!(error.to_string(), text);
        let twice = Concat::new(vec![encoded.clone(), encoded]).unwrap();
        assert_eq!((twice.size(), twice.name(3)), (None, "y".to_owned()));
        assert!(Concat::new(Vec::new()).is_err());
    }

    #[test]
    fn a_part_that_is_fed_gets_its_own_requests() {
        let feed = Arc::new(Feed::new(2));
        let files: Arc<dyn Source> = Arc::new(Mixed::new(vec![Entry::Bytes(b"x".to_vec())]));
        let source = Concat::new(vec![files, feed.clone()]).unwrap();
        let (none, ticket) = (source.announce(0), source.announce(2));
        assert_eq!(none, 0);
        let asked = feed.next_request(Duration::ZERO);
        assert!(matches!(asked, Asked::Request(request) if request.index == 1));
        feed.reply(ticket, vec![7], 5);
        let mut buffer = Vec::new();
        assert_eq!(source.fetch(2, ticket, &mut buffer).unwrap().label, Some(5));
        assert_eq!(source.fetch(0, none, &mut buffer).unwrap().label, None);
        source.announce(1);
        source.abandon();
        assert_eq!(feed.next_request(Duration::ZERO), Asked::Nothing);
        source.close();
        assert_eq!(feed.next_request(Duration::ZERO), Asked::Closed);
    }

    /// Samples in blocks, as those of gzipped shards.
    struct Blocked(Vec<u32>);

    impl Source for Blocked {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn item<'a>(&'a self, _: usize, _: &'a mut Vec<u8>) -> Result<Item<'a>> {
            Ok(Item::Encoded(b""))
        }
        fn blocks(&self) -> Option<Vec<u32>> {
            Some(self.0.clone())
        }
        fn name(&self, _: usize) -> String {
            String::new()
        }
        fn channels(&self) -> usize {
            1
        }
        fn size(&self) -> Option<Size> {
            None
        }
    }

    #[test]
    fn blocks_of_parts_stay_apart() {
        let blocked = || -> Arc<dyn Source> { Arc::new(Blocked(vec![1, 1, 0])) };
        let parts = vec![blocked(), array(0, 2, Size::new(1, 1)), blocked()];
        assert_eq!(Concat::new(parts).unwrap().blocks().unwrap(), [1, 1, 0, 2, 3, 5, 5, 4]);
    }
}
