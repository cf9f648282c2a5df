//! Encoded images in a table's column, as Arrow lays columns out: values one behind the other, and where each begins.
//! Source: the Arrow columnar format, variable-size binary layout.

use std::path::PathBuf;

use super::{Item, Source, folder};
use crate::error::{Error, Result};
use crate::image::Size;

/// Values of one chunk of a column, in memory that `B` owns.
#[derive(Clone, Debug)]
pub struct Values<B> {
    /// One bit a value, lowest first: whether it is there. None = all are.
    pub valid: Option<B>,
    /// Where each value begins in `data`, and where the last one ends: i32, or i64 if `wide`.
    pub offsets: B,
    /// Whether offsets have 8 bytes.
    pub wide: bool,
    /// All values.
    pub data: B,
    /// The chunk's first value, among those that the memory holds.
    pub first: usize,
}

impl<B: AsRef<[u8]>> Values<B> {
    /// Whether the memory has places for this many values.
    fn holds(&self, rows: usize) -> bool {
        let enough = || {
            let end = self.first.checked_add(rows)?;
            let offsets = end.checked_add(1)?.checked_mul(if self.wide { 8 } else { 4 })?;
            let bits = self.valid.as_ref().is_none_or(|v| end.div_ceil(8) <= v.as_ref().len());
            Some(bits && offsets <= self.offsets.as_ref().len())
        };
        rows == 0 || enough().unwrap_or(false)
    }

    /// Where value `at` begins.
    fn offset(&self, at: usize) -> Option<usize> {
        let offsets = self.offsets.as_ref();
        if self.wide {
            let bytes = offsets.get(at.checked_mul(8)?..)?.first_chunk()?;
            usize::try_from(i64::from_ne_bytes(*bytes)).ok()
        } else {
            let bytes = offsets.get(at.checked_mul(4)?..)?.first_chunk()?;
            usize::try_from(i32::from_ne_bytes(*bytes)).ok()
        }
    }

    /// A value of the chunk, if it is there.
    fn get(&self, row: usize) -> Result<Option<&[u8]>> {
        let at = self.first + row;
        if let Some(valid) = &self.valid {
            let byte = valid.as_ref().get(at / 8).copied().unwrap_or_default();
            if byte >> (at % 8) & 1 == 0 {
                return Ok(None);
            }
        }
        let (begin, end) = (self.offset(at), self.offset(at + 1));
        let range = begin.zip(end).map(|(begin, end)| begin..end);
        let data = self.data.as_ref();
        range.and_then(|range| data.get(range)).map(Some).ok_or_else(|| {
            let place = |offset: Option<usize>| offset.map_or("?".to_owned(), |o| o.to_string());
            Error::Dataset(format!(
                "a value from byte {} to {} of {} bytes: the table is damaged",
                place(begin),
                place(end),
                data.len()
            ))
        })
    }
}

/// Rows of a table that lie together.
#[derive(Clone, Debug)]
pub struct Chunk<B> {
    /// Their number.
    pub rows: usize,
    /// Encoded images.
    pub images: Option<Values<B>>,
    /// Files, read where there is no image.
    pub paths: Option<Values<B>>,
}

/// A table of images.
#[derive(Clone, Debug)]
pub struct Table<B> {
    name: String,
    folder: PathBuf,
    chunks: Vec<Chunk<B>>,
    /// Each chunk's first row, and behind them the number of all.
    starts: Vec<usize>,
}

impl<B: AsRef<[u8]> + Send + Sync> Table<B> {
    /// A table that messages call `name`; its paths begin in `folder`.
    ///
    /// # Errors
    /// [`Error::Dataset`] when a chunk's memory does not hold as many values as it has rows.
    pub fn new(name: String, folder: PathBuf, chunks: Vec<Chunk<B>>) -> Result<Self> {
        let mut starts = vec![0_usize];
        let mut end = 0_usize;
        for chunk in &chunks {
            let holds = [&chunk.images, &chunk.paths]
                .into_iter()
                .flatten()
                .all(|values| values.holds(chunk.rows));
            end = end.checked_add(chunk.rows).filter(|_| holds).ok_or_else(|| {
                let rows = chunk.rows;
                Error::Dataset(format!("{name}: {rows} rows from row {end} on have no memory"))
            })?;
            starts.push(end);
        }
        Ok(Self { name, folder, chunks, starts })
    }

    /// The chunk that holds a row, and the row's number in it.
    fn locate(&self, row: usize) -> Option<(&Chunk<B>, usize)> {
        let number = self.starts.partition_point(|&start| start <= row).checked_sub(1)?;
        Some((self.chunks.get(number)?, row - self.starts.get(number)?))
    }

    fn path(&self, chunk: &Chunk<B>, row: usize) -> Option<PathBuf> {
        let path = chunk.paths.as_ref()?.get(row).ok()??;
        Some(self.folder.join(std::str::from_utf8(path).ok()?))
    }
}

impl<B: AsRef<[u8]> + Send + Sync> Source for Table<B> {
    fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    fn item<'a>(&'a self, index: usize, buffer: &'a mut Vec<u8>) -> Result<Item<'a>> {
        let wrong = |reason: String| Error::Dataset(format!("{}: {reason}", self.name(index)));
        let (chunk, row) = self.locate(index).ok_or_else(|| wrong("no such row".to_owned()))?;
        if let Some(images) = &chunk.images
            && let Some(bytes) = images.get(row).map_err(|error| wrong(error.to_string()))?
        {
            return Ok(Item::Encoded(bytes));
        }
        let path = self.path(chunk, row).ok_or_else(|| wrong("no image and no path".to_owned()))?;
        folder::read(&path, buffer)?;
        Ok(Item::Encoded(buffer))
    }

    fn name(&self, index: usize) -> String {
        let path = self.locate(index).and_then(|(chunk, row)| self.path(chunk, row));
        let path = path.map(|path| format!(" ({})", path.display())).unwrap_or_default();
        format!("{}: row {index}{path}", self.name)
    }

    fn channels(&self) -> usize {
        3
    }

    fn size(&self) -> Option<Size> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Values as Arrow would write them, behind `first` others.
    fn values(wide: bool, first: usize, listed: &[Option<&[u8]>]) -> Values<Vec<u8>> {
        let others = std::iter::repeat_n(Some(&b"??"[..]), first);
        let all: Vec<_> = others.chain(listed.iter().copied()).collect();
        let (mut valid, mut offsets, mut data) = (vec![0; all.len().div_ceil(8)], vec![], vec![]);
        let mut place = |data: &Vec<u8>| {
            let end = i32::try_from(data.len()).unwrap();
            if wide {
                offsets.extend(i64::from(end).to_ne_bytes());
            } else {
                offsets.extend(end.to_ne_bytes());
            }
        };
        place(&data);
        for (at, value) in all.iter().enumerate() {
            valid[at / 8] |= u8::from(value.is_some()) << (at % 8);
            data.extend(value.unwrap_or_default());
            place(&data);
        }
        Values { valid: Some(valid), offsets, wide, data, first }
    }

    fn read(table: &Table<Vec<u8>>, row: usize) -> Result<Vec<u8>> {
        let mut buffer = Vec::new();
        match table.item(row, &mut buffer)? {
            Item::Encoded(bytes) => Ok(bytes.to_vec()),
            Item::Pixels(_) => panic!(),
        }
    }

    proptest! {
        #[test]
        fn rows_of_all_chunks_are_found(
            chunks in prop::collection::vec(
                (any::<bool>(), 0_usize..20, prop::collection::vec(prop::collection::vec(0_u8.., 0..5), 0..20)),
                0..5,
            ),
        ) {
            let chunk = |(wide, first, rows): &(bool, usize, Vec<Vec<u8>>)| {
                let listed: Vec<Option<&[u8]>> = rows.iter().map(|row| Some(&row[..])).collect();
                Chunk { rows: rows.len(), images: Some(values(*wide, *first, &listed)), paths: None }
            };
            let table = Table::new("t".into(), PathBuf::new(), chunks.iter().map(chunk).collect()).unwrap();
            let rows: Vec<_> = chunks.iter().flat_map(|(_, _, rows)| rows).collect();
            prop_assert_eq!(table.len(), rows.len());
            for (index, row) in rows.iter().enumerate() {
                prop_assert_eq!(&read(&table, index).unwrap(), *row);
            }
            prop_assert!(read(&table, rows.len()).is_err());
        }
    }

    #[test]
    fn a_path_stands_in_for_an_image_that_is_not_there() {
        let folder = std::env::temp_dir().join(format!("vit-rs-table-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.jpg"), "file").unwrap();
        let images = values(false, 0, &[None, Some(b"bytes"), None, None]);
        let paths = values(true, 3, &[Some(b"a.jpg"), Some(b"b.jpg"), Some(b"c.jpg"), None]);
        let chunk = Chunk { rows: 4, images: Some(images), paths: Some(paths) };
        let table = Table::new("x.parquet".into(), folder.clone(), vec![chunk]).unwrap();
        assert_eq!(read(&table, 0).unwrap(), b"file");
        assert_eq!(read(&table, 1).unwrap(), b"bytes");
        assert!(
            matches!(read(&table, 2).unwrap_err(), Error::Io { path, .. } if path == folder.join("c.jpg"))
        );
        assert_eq!(
            read(&table, 3).unwrap_err().to_string(),
            "x.parquet: row 3: no image and no path"
        );
        assert_eq!(table.name(1), format!("x.parquet: row 1 ({})", folder.join("b.jpg").display()));
        assert_eq!(table.name(9), "x.parquet: row 9");
        assert_eq!((table.channels(), table.size()), (3, None));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn damaged_tables_are_errors() {
        let make = |images: Values<Vec<u8>>, rows| {
            let chunk = Chunk { rows, images: Some(images), paths: None };
            Table::new("t".into(), PathBuf::new(), vec![chunk])
        };
        let mut images = values(false, 0, &[Some(b"abc"), Some(b"de")]);
        let error = make(images.clone(), 3).unwrap_err();
        assert_eq!(error.to_string(), "t: 3 rows from row 0 on have no memory");
        assert!(make(images.clone(), usize::MAX).is_err());
        assert!(make(Values { valid: Some(vec![]), ..images.clone() }, 2).is_err());
        images.data.pop();
        let table = make(images.clone(), 2).unwrap();
        assert_eq!(read(&table, 0).unwrap(), b"abc");
        let error = read(&table, 1).unwrap_err();
        let text = "t: row 1: a value from byte 3 to 5 of 4 bytes: the table is damaged";
        assert_eq!(error.to_string(), text);
        assert!(!error.is_bad_sample());
        images.offsets[4..8].copy_from_slice(&(-1_i32).to_ne_bytes());
        let table = make(images, 2).unwrap();
        assert!(read(&table, 0).is_err() && read(&table, 1).is_err());
    }
}
