//! Damage as files suffer it, and as attackers make it: flipped bits, bytes set, numbers at their limits, pieces cut
//! out, doubled, or taken from another file, and truncation.

use vit_rs_core::rng::Stream;

/// Numbers that break arithmetic.
const LIMITS: [u32; 10] =
    [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX];

/// A number below `bound`, which must not be zero.
pub fn below(random: &mut Stream, bound: usize) -> usize {
    random.below(bound as u64) as usize
}

/// Damages `file` one to six times; `other` is where foreign pieces come from.
pub fn mutate(file: &mut Vec<u8>, other: &[u8], random: &mut Stream) {
    for _ in 0..=below(random, 6) {
        if file.is_empty() {
            return;
        }
        // Half of all damage goes to the first bytes: that is where structure stands.
        let reach = if random.chance(0.5) { file.len().min(200) } else { file.len() };
        let at = below(random, reach);
        match below(random, 9) {
            0 | 1 => file[at] ^= 1 << below(random, 8),
            2 => file[at] = random.next_u32() as u8,
            3 => file[at] = LIMITS[below(random, LIMITS.len())] as u8,
            4 => number(&mut file[at..], random),
            5 => {
                let end = (at + 1 + below(random, 40)).min(file.len());
                file.drain(at..end);
            }
            6 => {
                let piece = file[at..(at + 1 + below(random, 40)).min(file.len())].to_vec();
                let place = below(random, file.len());
                file.splice(place..place, piece);
            }
            7 if !other.is_empty() => {
                let from = below(random, other.len());
                let piece = &other[from..(from + 1 + below(random, 100)).min(other.len())];
                let end = (at + piece.len()).min(file.len());
                file.splice(at..end, piece.iter().copied());
            }
            8 if random.chance(0.3) => file.truncate(at),
            _ => {}
        }
    }
    if random.chance(0.5) {
        mend_checksums(file);
    }
}

/// Makes the checksums of a PNG's chunks right, so that damage reaches what stands behind them.
fn mend_checksums(file: &mut [u8]) {
    let mut at = 8;
    while file.starts_with(b"\x89PNG")
        && let Some(length) = file.get(at..).and_then(<[u8]>::first_chunk)
    {
        let end = at.saturating_add(8).saturating_add(u32::from_be_bytes(*length) as usize);
        if end.saturating_add(4) > file.len() {
            return;
        }
        let sum = crc32(&file[at + 4..end]);
        file[end..end + 4].copy_from_slice(&sum.to_be_bytes());
        at = end + 4;
    }
}

/// PNG's checksum, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

/// Writes a limit, or its neighbour, as a field of two to four bytes in either order.
fn number(field: &mut [u8], random: &mut Stream) {
    let value =
        LIMITS[below(random, LIMITS.len())].wrapping_add(below(random, 3) as u32).wrapping_sub(1);
    let width = 2 + below(random, 3);
    let mut bytes = value.to_le_bytes();
    if random.chance(0.5) {
        bytes[..width].reverse();
    }
    for (to, from) in field.iter_mut().zip(&bytes[..width]) {
        *to = *from;
    }
}
