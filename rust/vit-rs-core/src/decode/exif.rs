//! The one EXIF field that matters to pixels: the orientation in the first directory of a TIFF block (TIFF 6.0,
//! section 2), which is what JPEG, PNG and WebP files embed. Whatever is absent or broken means upright.

use super::orientation::Orientation;

/// What stands before the TIFF block in a JPEG's APP1 segment, and in some WebP files' chunk.
const PREFIX: &[u8] = b"Exif\0\0";

const TAG_ORIENTATION: u16 = 0x0112;
const TYPE_BYTE: u16 = 1;
const TYPE_SHORT: u16 = 3;
const TYPE_LONG: u16 = 4;

/// The orientation in a JPEG's APP1 segment; None if it holds no EXIF (XMP is kept in such segments too).
#[must_use]
pub fn in_segment(segment: &[u8]) -> Option<Orientation> {
    segment.strip_prefix(PREFIX).map(orientation)
}

/// The orientation that a TIFF block tells, with or without the prefix of JPEG files; upright when it tells none.
#[must_use]
pub fn orientation(block: &[u8]) -> Orientation {
    let tiff = Tiff::new(block.strip_prefix(PREFIX).unwrap_or(block));
    tiff.and_then(|tiff| tiff.orientation()).unwrap_or_default()
}

/// A TIFF block: numbers in one of two byte orders at offsets from its start.
struct Tiff<'a> {
    block: &'a [u8],
    little: bool,
}

impl<'a> Tiff<'a> {
    fn new(block: &'a [u8]) -> Option<Self> {
        let little = match block.get(..2)? {
            b"II" => true,
            b"MM" => false,
            _ => return None,
        };
        let tiff = Self { block, little };
        (tiff.u16(2)? == 42).then_some(tiff)
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.block.get(at..)?.first_chunk().copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes(at)?;
        Some(if self.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes(at)?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    /// Looks through the first directory: a count, then entries of 12 bytes: tag, type, count, value.
    fn orientation(&self) -> Option<Orientation> {
        let directory = usize::try_from(self.u32(4)?).ok()?;
        let entries = usize::from(self.u16(directory)?);
        let mut places = (0..entries).map_while(|entry| directory.checked_add(2 + entry * 12));
        let at = places.find(|&at| self.u16(at) == Some(TAG_ORIENTATION))?;
        if self.u32(at.checked_add(4)?)? != 1 {
            return None;
        }
        let place = at.checked_add(8)?;
        let value = match self.u16(at.checked_add(2)?)? {
            TYPE_BYTE => u32::from(self.bytes::<1>(place)?[0]),
            TYPE_SHORT => u32::from(self.u16(place)?),
            TYPE_LONG => self.u32(place)?,
            _ => return None,
        };
        Orientation::from_tag(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A block with one foreign entry before the orientation.
    fn block(little: bool, kind: u16, count: u32, value: u32) -> Vec<u8> {
        let short = |n: u16| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let long = |n: u32| if little { n.to_le_bytes() } else { n.to_be_bytes() };
        let mut bytes = if little { b"II".to_vec() } else { b"MM".to_vec() };
        bytes.extend(short(42));
        bytes.extend(long(10));
        bytes.extend([0xAB, 0xCD]);
        bytes.extend(short(2));
        for (tag, kind, count, value) in [(0x010F, 2, 4, 7), (TAG_ORIENTATION, kind, count, value)]
        {
            bytes.extend(short(tag));
            bytes.extend(short(kind));
            bytes.extend(long(count));
            match kind {
                TYPE_BYTE => bytes.extend([value as u8, 0, 0, 0]),
                TYPE_SHORT => bytes.extend([short(value as u16), [0, 0]].concat()),
                _ => bytes.extend(long(value)),
            }
        }
        bytes
    }

    #[test]
    fn orientations_of_both_byte_orders() {
        for little in [true, false] {
            for tag in 1..=8 {
                for kind in [TYPE_BYTE, TYPE_SHORT, TYPE_LONG] {
                    let block = block(little, kind, 1, tag);
                    assert_eq!(u32::from(orientation(&block).tag()), tag);
                    assert_eq!(orientation(&[PREFIX, &block].concat()), orientation(&block));
                    assert_eq!(in_segment(&[PREFIX, &block].concat()), Some(orientation(&block)));
                }
            }
        }
    }

    #[test]
    fn whatever_is_broken_is_upright() {
        let upright = Orientation::Upright;
        assert_eq!(orientation(b""), upright);
        assert_eq!(orientation(b"Exif\0\0"), upright);
        for (kind, count, value) in
            [(TYPE_SHORT, 1, 0), (TYPE_SHORT, 1, 9), (TYPE_SHORT, 2, 6), (7, 1, 6)]
        {
            assert_eq!(orientation(&block(true, kind, count, value)), upright);
        }
        let whole = block(false, TYPE_SHORT, 1, 6);
        for length in 0..whole.len() - 2 {
            assert_eq!(orientation(&whole[..length]), upright, "{length} bytes");
        }
        let mut elsewhere = whole.clone();
        elsewhere[4..8].fill(0xFF);
        assert_eq!(orientation(&elsewhere), upright);
        let mut other = whole;
        other[3] = 43;
        assert_eq!(orientation(&other), upright);
        assert_eq!(in_segment(b"http://ns.adobe.com/xap/1.0/\0"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_orientation(
            bytes in prop::collection::vec(any::<u8>(), 0..64), little in any::<bool>(), place in 0usize..38,
        ) {
            let mut broken = block(little, TYPE_SHORT, 1, 3);
            for (byte, other) in broken.iter_mut().skip(place).zip(&bytes) {
                *byte = *other;
            }
            prop_assert!((1..=8).contains(&orientation(&broken).tag()));
            prop_assert!((1..=8).contains(&orientation(&bytes).tag()));
        }
    }
}
