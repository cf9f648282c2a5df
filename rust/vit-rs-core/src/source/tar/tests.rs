//! Tar shards: formats and errors by hand-made headers, and ten thousand damaged ones. Python's tarfile is the oracle in
//! the Python tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;

use proptest::prelude::*;

use super::header::{Fault, Kind, Member, Members};
use super::index::{Sample, index, index_bytes};
use super::*;
use crate::rng::EpochKey;

/// A header with its checksum.
fn header(name: &str, size: &[u8], kind: u8) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sealed(block)
}

fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn member(name: &str, data: &[u8], kind: u8) -> Vec<u8> {
    let mut bytes = header(name, format!("{:011o}", data.len()).as_bytes(), kind);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: &str) -> Vec<u8> {
    member(name, data.as_bytes(), b'0')
}

/// A pax record.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while format!("{length}{rest}").len() != length {
        length += 1;
    }
    format!("{length}{rest}")
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn small() -> Vec<u8> {
    tar(&[
        file("d/0.jpg", "zero"),
        file("d/0.cls", "7\n"),
        file("d/0.txt", "a caption"),
        file("d/1.json", r#"{"label": 3, "other": [1, {"a": null}]}"#),
        file("d/1.seg.png", "not the image"),
        file("d/1.PNG", "one"),
        member("d/", b"", b'5'),
        file("d/.hidden", "x"),
        file("d/notes", "x"),
        file("about.json", "{}"),
        file("2.webp", ""),
        file("2.cls", " 12 "),
    ])
}

fn text(result: std::result::Result<Vec<Sample>, Fault>) -> String {
    match result {
        Ok(samples) => format!("{} samples", samples.len()),
        Err(Fault::Io(error)) => error.to_string(),
        Err(Fault::Bad { offset, reason }) => format!("{offset}: {reason}"),
    }
}

#[test]
fn samples_are_groups_of_neighbours() {
    let bytes = small();
    let samples = index_bytes(&bytes, Some("label")).unwrap();
    let seen: Vec<_> = samples
        .iter()
        .map(|sample| {
            let start = sample.offset as usize;
            let data = &bytes[start..start + sample.size as usize];
            (sample.name.as_str(), std::str::from_utf8(data).unwrap(), sample.label)
        })
        .collect();
    assert_eq!(seen, [("d/0.jpg", "zero", 7), ("d/1.PNG", "one", 3), ("2.webp", "", 12)]);
    // As a pipe, and without labels.
    let piped = index(Piped(&bytes[..]), Some("label")).unwrap();
    assert_eq!(piped, samples);
    let unlabelled = index_bytes(&bytes, None).unwrap();
    assert!(unlabelled.iter().all(|sample| sample.label == -1));
}

#[test]
fn names_and_sizes_of_every_format() {
    let long = format!("{}/x.jpg", "folder/".repeat(40));
    let mut prefixed = header("x.jpg", b"00000000003\0", b'0');
    prefixed[345..351].copy_from_slice(b"a/b/cc");
    let mut base256 = header("big.jpg", &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], b'0');
    base256.extend_from_slice(&member("", b"abc", b'0')[512..]);
    let mut gnu = header("gnu.jpg", b"          3 ", 0);
    gnu[257..265].copy_from_slice(b"ustar  \0");
    gnu[345..349].copy_from_slice(b"1234");
    let data = || member("", b"abc", b'0')[512..].to_vec();
    let pax = record("path", "p\u{e4}x.jpg") + &record("mtime", "1.5") + &record("size", "3");
    let global = record("path", "ignored") + &record("comment", "x=y");
    let bytes = tar(&[
        member("././@LongLink", format!("{long}\0").as_bytes(), b'L'),
        file("cut", "abc"),
        sealed(prefixed),
        data(),
        base256,
        sealed(gnu),
        data(),
        member("g", global.as_bytes(), b'g'),
        member("p", pax.as_bytes(), b'x'),
        header("ignored", b"00000000000\0", b'0'),
        data(),
        member("link.jpg", b"", b'2'),
    ]);
    let mut members = Members::new(Piped(&bytes[..]));
    let mut names = Vec::new();
    while let Some(member) = members.next_member().unwrap() {
        if member.kind == Kind::File {
            assert_eq!(members.data(&member, 3).unwrap(), b"abc");
        }
        names.push(member.name);
    }
    assert_eq!(names, [&long, "a/b/cc/x.jpg", "big.jpg", "gnu.jpg", "p\u{e4}x.jpg", "link.jpg"]);
}

#[test]
fn errors_say_where_and_what() {
    let labelled = |name: &str, bytes: &[u8]| tar(&[member(name, bytes, b'0'), file("0.cls", "1")]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\x89PNG\r\n".repeat(100), "0: not a tar file, nor a gzipped one"),
        (small()[..300].to_vec(), "0: truncated: 300 of the 512 bytes of a header"),
        (small()[..514].to_vec(), "514: truncated: d/0.jpg lacks its last 2 bytes"),
        (small()[..512 * 2 + 513].to_vec(), "1537: truncated: d/0.cls lacks its last 1 bytes"),
        ([file("0.jpg", "x"), vec![1; 512]].concat(), "1024: no tar header: its checksum is wrong"),
        (tar(&[header("0.jpg", b"000000zz000\0", b'0')]), "0: the header's size is not a number"),
        (
            tar(&[header("0.jpg", &[0x80, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255], b'0')]),
            "0: 0.jpg: a size of 18446744073709551615 bytes",
        ),
        (
            tar(&[header("x", b"77777777777\0", b'x')]),
            "0: an extended header of 8589934591 bytes, more than 1048576",
        ),
        (tar(&[member("x", b"9 path=a", b'x')]), "0: a pax header whose records do not make sense"),
        (tar(&[member("0.jpg", b"", b'1')]), "0: 0.jpg is a link; regular members are needed"),
        (
            tar(&[
                member("x", record("GNU.sparse.major", "1").as_bytes(), b'x'),
                file("0.png", "x"),
            ]),
            "1024: 0.png is stored as a sparse file; regular members are needed",
        ),
        (
            tar(&[file("0.jpg", "x"), file("0.png", "x")]),
            "1024: 0.png: sample 0 has a second image member",
        ),
        (
            tar(&[file("0.cls", "1"), file("0.cls", "2")]),
            "1024: 0.cls: sample 0 has a second cls member",
        ),
        (
            tar(&[file("0.jpg", "x"), file("1.jpg", "x")]),
            "0: sample 0: no label: neither a .cls nor a .json member beside its image",
        ),
        (labelled("0.bmp", b"x"), "1024: sample 0: a label, but no image (jpg, jpeg, png, webp)"),
        (
            tar(&[file("0.jpg", "x"), file("0.json", r#"{"label": "cat"}"#)]),
            "0: sample 0: 0.json has no number of a class in field \"label\"",
        ),
        (
            tar(&[file("0.jpg", "x"), file("0.json", "{")]),
            "1024: 0.json: not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (tar(&[file("0.cls", "-1")]), "0: 0.cls: its text is no number of a class"),
        (tar(&[file("0.cls", &"1".repeat(1025))]), "0: 0.cls: 1025 bytes, more than 1024"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(text(index_bytes(&bytes, Some("label"))), expected);
        assert_eq!(text(index(Piped(&bytes[..]), Some("label"))), expected);
    }
}

#[test]
fn ends_that_other_programs_accept() {
    let whole = small();
    // Without the blocks at the end, and without the last padding.
    let bare = &whole[..whole.len() - 1024];
    assert_eq!(text(index_bytes(bare, Some("label"))), "3 samples");
    let unpadded = &whole[..whole.len() - 1024 - 500];
    assert_eq!(text(index_bytes(unpadded, Some("label"))), "3 samples");
    assert_eq!(text(index_bytes(b"", Some("label"))), "0 samples");
    assert_eq!(text(index_bytes(&[whole, vec![7; 99]].concat(), Some("label"))), "3 samples");
}

/// What any bytes must come to: an error, or samples that lie inside them.
fn sound(bytes: &[u8]) {
    let seekable = index_bytes(bytes, Some("label"));
    if let Ok(samples) = &seekable {
        assert!(samples.iter().all(|sample| sample.offset + sample.size <= bytes.len() as u64));
    }
    assert_eq!(text(seekable), text(index(Piped(bytes), Some("label"))));
}

#[test]
fn damaged_shards_are_errors_or_sound() {
    let long = record("path", "some/0.jpg") + &record("size", "5");
    let seeds = [
        small(),
        tar(&[
            member("p", long.as_bytes(), b'x'),
            file("q", "12345"),
            member("l", b"other/1.jpg\0", b'L'),
            file("q", "x"),
            member("s.jpg", b"", b'S'),
        ]),
    ];
    let mut stream = EpochKey::new(5, 0).stream(0, 0, 0);
    for round in 0..10_000 {
        let mut bytes = seeds[round % 2].clone();
        for _ in 0..=stream.below(4) {
            let at = stream.below(bytes.len() as u64) as usize;
            match stream.below(4) {
                0 => bytes[at] = stream.next_u32() as u8,
                1 => bytes[at] ^= 1 << stream.below(8),
                2 => bytes.truncate(at + 1),
                _ => {
                    let (from, len) = (stream.below(bytes.len() as u64) as usize, 12);
                    let end = (from + len).min(bytes.len()).min(bytes.len() - at + from);
                    bytes.copy_within(from..end, at);
                }
            }
        }
        // Most damage would end at the checksum: half of the rounds repair it.
        if round % 4 < 2 {
            for start in (0..bytes.len() / 512 * 512).step_by(512) {
                if &bytes[start + 257..start + 262] == b"ustar" {
                    let block = sealed(bytes[start..start + 512].to_vec());
                    bytes[start..start + 512].copy_from_slice(&block);
                }
            }
        }
        sound(&bytes);
    }
}

proptest! {
    #[test]
    fn members_come_back(files in prop::collection::vec(("[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..2000)), 0..8)) {
        let members: Vec<_> = files.iter().map(|(name, data)| member(name, data, b'0')).collect();
        let bytes = tar(&members);
        let mut members = Members::new(Seekable::new(io::Cursor::new(&bytes)).unwrap());
        for (name, data) in &files {
            let found: Member = members.next_member().unwrap().unwrap();
            prop_assert_eq!(&found.name, name);
            prop_assert_eq!(&bytes[found.data as usize..][..found.size as usize], &data[..]);
        }
        prop_assert!(members.next_member().unwrap().is_none());
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vit-rs-tar-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn numbered(shard: usize, count: usize) -> Vec<u8> {
    let members = (0..count).flat_map(|number| {
        let name = format!("{shard:02}/{number:03}");
        [
            file(&format!("{name}.jpg"), &format!("image {shard} {number}")),
            file(&format!("{name}.cls"), &format!("{shard}")),
        ]
    });
    tar(&members.collect::<Vec<_>>())
}

#[test]
fn shards_are_read_at_random_by_many_threads() {
    let folder = Folder::new("random");
    let shards = OPEN_FILES * 3 / 2;
    let paths: Vec<PathBuf> = (0..shards)
        .map(|shard| {
            let bytes = numbered(shard, 4);
            let bytes = if shard % 7 == 3 { gzipped(&bytes) } else { bytes };
            folder.write(&format!("{shard}.tar"), &bytes)
        })
        .collect();
    let (source, labels) = Shards::open(paths, Some("label"), 3).unwrap();
    assert_eq!(source.len(), shards * 4);
    assert!(labels.iter().enumerate().all(|(index, &label)| label == index as i64 / 4));
    assert_eq!(source.blocks().unwrap()[9], 2);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let source = &source;
            scope.spawn(move || {
                let mut buffer = Vec::new();
                for index in EpochKey::new(thread, 0).permutation(source.len()) {
                    let Item::Encoded(bytes) = source.item(index as usize, &mut buffer).unwrap()
                    else {
                        panic!("not encoded")
                    };
                    let expected = format!("image {} {}", index / 4, index % 4);
                    assert_eq!(bytes, expected.as_bytes());
                }
            });
        }
    });
    assert_eq!(source.files.things.lock().unwrap().len(), OPEN_FILES);
    assert_eq!(source.inflated.things.lock().unwrap().len(), INFLATED);
    assert!(source.name(5).ends_with("1.tar: 01/001.jpg"));
    source.close();
    assert!(source.files.things.lock().unwrap().is_empty());
}

#[test]
fn damage_names_the_shard() {
    let folder = Folder::new("damage");
    let open = |bytes: &[u8]| {
        let good = folder.write("good.tar", &numbered(0, 1));
        let bad = folder.write("bad.tar", bytes);
        Shards::open(vec![good, bad], Some("label"), 2).map(|_| ()).unwrap_err().to_string()
    };
    let plain = numbered(1, 3);
    let packed = gzipped(&plain);
    assert!(
        open(&plain[..700]).ends_with("bad.tar: byte 522: no tar header: its checksum is wrong")
            || open(&plain[..520]).contains("bad.tar: byte 520: truncated: 01/000.jpg lacks")
    );
    assert!(open(&packed[..packed.len() / 2]).contains("of the inflated shard: truncated"));
    let mut wrong_sum = packed.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    assert!(open(&wrong_sum).contains("corrupt gzip stream does not have a matching checksum"));
    assert!(open(&gzipped(b"nothing")).contains("byte 0 of the inflated shard: truncated: 7 of"));
    let missing = Shards::open(vec![folder.0.join("no.tar")], None, 1).unwrap_err();
    assert!(matches!(missing, Error::Io { path, .. } if path.ends_with("no.tar")));
    let empty = Shards::open(vec![folder.write("empty.tar", &tar(&[]))], None, 1).unwrap_err();
    assert!(empty.to_string().starts_with("1 shards without a sample"));
}

#[test]
fn shards_that_change_later_are_errors_of_a_sample() {
    let folder = Folder::new("change");
    let plain = folder.write("a.tar", &numbered(0, 2));
    let packed = folder.write("b.tar.gz", &gzipped(&numbered(1, 2)));
    let (source, _) = Shards::open(vec![plain, packed], None, 1).unwrap();
    folder.write("a.tar", &numbered(0, 2)[..1024]);
    folder.write("b.tar.gz", &gzipped(&numbered(1, 2)[..1024]));
    let mut buffer = Vec::new();
    for (index, readable) in [(0, true), (1, false), (2, true), (3, false)] {
        let item = source.item(index, &mut buffer);
        assert_eq!(item.is_ok(), readable);
        assert!(item.map(|_| ()).err().is_none_or(|error| error.is_bad_sample()));
    }
}
