//! The members of a tar file, by reading its headers: ustar, GNU (long names, sizes in base 256) and pax.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".

use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};

/// Tar's unit: headers have this size, and data is padded to it.
pub const BLOCK: usize = 512;
/// Longest extended header that is believed. Real ones have some hundred bytes.
const MOST_EXTENDED: u64 = 1 << 20;
/// Bytes read at a time while headers are looked for: a small member and the next header, often.
const WINDOW: usize = 4096;

/// What is wrong with a shard.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be read.
    Io(io::Error),
    /// It is not what it should be.
    Bad {
        /// Where: bytes from the start of the (inflated) tar.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
}

impl Fault {
    /// What is wrong at `offset`.
    pub fn at(offset: u64, reason: impl Into<String>) -> Self {
        Self::Bad { offset, reason: reason.into() }
    }

    /// An error of reading at `offset`: the system's, or one about content.
    fn reading(offset: u64, error: io::Error) -> Self {
        match error.kind() {
            _ if error.raw_os_error().is_some() => Self::Io(error),
            ErrorKind::UnexpectedEof => Self::at(offset, "truncated: the file ends here"),
            _ => Self::at(offset, error.to_string()),
        }
    }
}

/// Bytes that are read from front to back, with gaps.
pub trait Forward: Read {
    /// Leaves out the next `bytes` bytes; returns how many there were.
    ///
    /// # Errors
    /// The system's, or one about compressed content.
    fn pass(&mut self, bytes: u64) -> io::Result<u64>;
}

/// Bytes in which gaps are jumped over.
#[derive(Debug)]
pub struct Seekable<R> {
    reader: BufReader<R>,
    position: u64,
    len: u64,
}

impl<R: Read + Seek> Seekable<R> {
    /// All bytes of `reader`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(mut reader: R) -> io::Result<Self> {
        let len = reader.seek(SeekFrom::End(0))?;
        reader.seek(SeekFrom::Start(0))?;
        Ok(Self { reader: BufReader::with_capacity(WINDOW, reader), position: 0, len })
    }
}

impl<R: Read> Read for Seekable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<R: Read + Seek> Forward for Seekable<R> {
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        let bytes = bytes.min(self.len.saturating_sub(self.position));
        let offset = i64::try_from(bytes).map_err(io::Error::other)?;
        self.reader.seek_relative(offset)?;
        self.position += bytes;
        Ok(bytes)
    }
}

/// Bytes in which gaps are read too.
#[derive(Debug)]
pub struct Piped<R>(pub R);

impl<R: Read> Read for Piped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Forward for Piped<R> {
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(bytes), &mut io::sink())
    }
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file with its data.
    File,
    /// A link, hard or symbolic.
    Link,
    /// A file that is stored without its holes.
    Sparse,
    /// A folder, a device, or something unknown.
    Other,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path in the tar; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where its own header starts.
    pub header: u64,
    /// Where its data starts.
    pub data: u64,
    /// Length of the data in bytes.
    pub size: u64,
}

/// The members of a tar, one after another.
#[derive(Debug)]
pub struct Members<R> {
    reader: R,
    /// Where the reader stands.
    offset: u64,
    /// Bytes of the last member's data that were not read, and of its padding.
    rest: u64,
    padding: u64,
    last: String,
}

/// What extended headers say about the next member.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Forward> Members<R> {
    /// The members of this tar.
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0, rest: 0, padding: 0, last: String::new() }
    }

    /// The next member; None at the end: two blocks of zeros, or, as Python's tarfile and GNU tar have it, the end of the
    /// file where a header could be.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn next_member(&mut self) -> Result<Option<Member>, Fault> {
        let mut extended = Extended::default();
        loop {
            self.leave_member()?;
            let header = self.offset;
            let Some(block) = self.block()? else { return Ok(None) };
            check(&block, header)?;
            let size = number(&block[124..136])
                .ok_or_else(|| Fault::at(header, "the header's size is not a number"))?;
            let kind = block[156];
            self.last = name(&block);
            if matches!(kind, b'L' | b'K' | b'x' | b'X' | b'g') {
                if size > MOST_EXTENDED {
                    let text =
                        format!("an extended header of {size} bytes, more than {MOST_EXTENDED}");
                    return Err(Fault::at(header, text));
                }
                self.expect(size, header)?;
                let content = self.content(size)?;
                match kind {
                    b'L' => {
                        let end = content.iter().position(|&byte| byte == 0);
                        let name = &content[..end.unwrap_or(content.len())];
                        extended.name = Some(String::from_utf8_lossy(name).into_owned());
                    }
                    b'x' | b'X' => read_pax(&content, header, &mut extended)?,
                    // The target of a link; what holds for all members is not about names or sizes.
                    _ => {}
                }
                continue;
            }
            let name = extended.name.take().unwrap_or_else(|| std::mem::take(&mut self.last));
            let size = extended.size.unwrap_or(size);
            let kind = match kind {
                b'S' => Kind::Sparse,
                b'0' | 0 | b'7' if extended.sparse => Kind::Sparse,
                b'0' | 0 | b'7' if !name.ends_with('/') => Kind::File,
                b'1' | b'2' => Kind::Link,
                _ => Kind::Other,
            };
            // Links, devices, folders and pipes have no data, whatever their size says.
            let size = if matches!(block[156], b'1'..=b'6') { 0 } else { size };
            if block[156] == b'S' && block[482] != 0 {
                // More blocks of the map of holes follow.
                while self.block()?.is_some_and(|more| more[504] != 0) {}
            }
            self.last.clone_from(&name);
            self.expect(size, header)?;
            return Ok(Some(Member { name, kind, header, data: self.offset, size }));
        }
    }

    /// The data of the member that was just returned, if it has no more than `most` bytes.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn data(&mut self, member: &Member, most: u64) -> Result<Vec<u8>, Fault> {
        if member.size > most {
            let text = format!("{}: {} bytes, more than {most}", member.name, member.size);
            return Err(Fault::at(member.header, text));
        }
        self.content(member.size)
    }

    /// Reads what is left, so that a checksum at the end is compared.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn drain(mut self) -> Result<(), Fault> {
        self.reader.pass(u64::MAX).map_err(|error| Fault::reading(self.offset, error)).map(|_| ())
    }

    fn expect(&mut self, size: u64, header: u64) -> Result<(), Fault> {
        let end = self.offset.checked_add(size).and_then(|end| end.checked_add(BLOCK as u64));
        if end.is_none() {
            return Err(Fault::at(header, format!("{}: a size of {size} bytes", self.last)));
        }
        self.rest = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// The next `size` bytes, which `expect` announced.
    fn content(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        let mut content = Vec::new();
        // Grows with what is there, not with what the header says.
        (&mut self.reader)
            .take(size)
            .read_to_end(&mut content)
            .map_err(|error| Fault::reading(self.offset, error))?;
        self.offset += content.len() as u64;
        self.rest -= (content.len() as u64).min(self.rest);
        if (content.len() as u64) < size {
            return Err(self.truncated());
        }
        Ok(content)
    }

    fn truncated(&self) -> Fault {
        let text = format!("truncated: {} lacks its last {} bytes", self.last, self.rest);
        Fault::at(self.offset, text)
    }

    /// Goes to where the next header should be.
    fn leave_member(&mut self) -> Result<(), Fault> {
        let passed = self.reader.pass(self.rest);
        let passed = passed.map_err(|error| Fault::reading(self.offset, error))?;
        self.offset += passed;
        self.rest -= passed.min(self.rest);
        if self.rest > 0 {
            return Err(self.truncated());
        }
        // A last member may lack its padding.
        let passed = self.reader.pass(self.padding);
        self.offset += passed.map_err(|error| Fault::reading(self.offset, error))?;
        self.padding = 0;
        Ok(())
    }

    /// The next block; None at the end of the file or of the tar.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    let text = format!("truncated: {filled} of the {BLOCK} bytes of a header");
                    return Err(Fault::at(self.offset, text));
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::reading(self.offset, error)),
            }
        }
        self.offset += BLOCK as u64;
        Ok(block.iter().any(|&byte| byte != 0).then_some(block))
    }
}

/// Compares a header's checksum: of its bytes as unsigned numbers, or, by old programs, as signed ones.
fn check(block: &[u8; BLOCK], offset: u64) -> Result<(), Fault> {
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (at, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    let stored = number(&block[148..156]).and_then(|sum| i64::try_from(sum).ok());
    if stored.is_some_and(|stored| stored == unsigned || stored == signed) {
        return Ok(());
    }
    let text = "no tar header: its checksum is wrong";
    Err(Fault::at(offset, if offset == 0 { "not a tar file, nor a gzipped one" } else { text }))
}

/// A number in octal digits, or, with its first bit set, in base 256.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The second bit is the sign.
        return rest.iter().try_fold(u64::from(first & 0x7F), |value, &byte| {
            (first & 0x40 == 0 && value >> 56 == 0).then_some(value << 8 | u64::from(byte))
        });
    }
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let digits = field[..end].trim_ascii();
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(8)?;
        value.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// The name in a header: with its prefix where the header is a ustar one; GNU keeps other things there.
fn name(block: &[u8; BLOCK]) -> String {
    let text = |field: &[u8]| {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    let ustar = &block[257..263] == b"ustar\0";
    if ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

/// Reads pax records: "length key=value\n", the length that of the record.
fn read_pax(content: &[u8], offset: u64, extended: &mut Extended) -> Result<(), Fault> {
    let wrong = || Fault::at(offset, "a pax header whose records do not make sense");
    let mut content = content;
    while !content.is_empty() {
        if content.iter().all(|&byte| byte == 0) {
            break;
        }
        let space = content.iter().take(20).position(|&byte| byte == b' ').ok_or_else(wrong)?;
        let digits = std::str::from_utf8(&content[..space]).map_err(|_| wrong())?;
        let length: usize = digits.parse().map_err(|_| wrong())?;
        let record = content.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or_else(wrong)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extended.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"size" => {
                let text = std::str::from_utf8(value).map_err(|_| wrong())?;
                extended.size = Some(text.parse().map_err(|_| wrong())?);
            }
            key if key.starts_with(b"GNU.sparse.") => extended.sparse = true,
            _ => {}
        }
        content = &content[length..];
    }
    Ok(())
}
