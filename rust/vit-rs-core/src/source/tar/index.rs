//! The samples of a shard, in `WebDataset`'s convention: members next to each other whose paths agree up to the first dot
//! of the file name. Labels are read here, images are not.
//!
//! Source: webdataset 1.0, `tariterators.group_by_keys` and `base_plus_ext`.

use std::io::Cursor;

use super::header::{Fault, Forward, Kind, Member, Members, Seekable};

/// Endings of image members; what they hold is told by content.
pub const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Longest `.cls` and `.json` members that are read, bytes.
const MOST_CLS: u64 = 1 << 10;
const MOST_JSON: u64 = 16 << 20;

/// One sample of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Path of its image member.
    pub name: String,
    /// Where the image's bytes start, in the (inflated) tar.
    pub offset: u64,
    /// How many they are.
    pub size: u64,
    /// Its label; -1 where labels are not read.
    pub label: i64,
}

/// What is known of a sample while its members go by.
#[derive(Default)]
struct Group {
    key: String,
    header: u64,
    image: Option<Member>,
    class: Option<i64>,
    json: Option<Result<i64, String>>,
}

/// The samples of one shard, in its order. Labels come from `.cls` (a number in ASCII) or from the field `label_key` of
/// `.json`, in this preference; with None they are not read.
///
/// # Errors
/// [`Fault`] for a damaged or truncated tar, and for a sample without its label or with two images.
pub fn index(reader: impl Forward, label_key: Option<&str>) -> Result<Vec<Sample>, Fault> {
    let mut members = Members::new(reader);
    let mut samples = Vec::new();
    let mut group = Group::default();
    while let Some(member) = members.next_member()? {
        let Some((key, ending)) = split(&member.name) else { continue };
        let ending = ending.to_lowercase();
        let is_image = IMAGES.contains(&ending.as_str());
        if member.kind == Kind::Other || !(is_image || ending == "cls" || ending == "json") {
            continue;
        }
        if key != group.key {
            let next = Group { key: key.to_owned(), header: member.header, ..Group::default() };
            samples.extend(std::mem::replace(&mut group, next).finish(label_key)?);
        }
        if member.kind != Kind::File {
            let what = if member.kind == Kind::Link { "a link" } else { "stored as a sparse file" };
            let text = format!("{} is {what}; regular members are needed", member.name);
            return Err(Fault::at(member.header, text));
        }
        let twice = match ending.as_str() {
            "cls" => group.class.is_some(),
            "json" => group.json.is_some(),
            _ => group.image.is_some(),
        };
        if twice {
            let what = if is_image { "image" } else { &ending };
            let text = format!("{}: sample {key} has a second {what} member", member.name);
            return Err(Fault::at(member.header, text));
        }
        if is_image {
            group.image = Some(member);
        } else if let Some(field) = label_key {
            let wrong =
                |reason: &str| Fault::at(member.header, format!("{}: {reason}", member.name));
            if ending == "cls" {
                let text = members.data(&member, MOST_CLS)?;
                let text = std::str::from_utf8(&text).unwrap_or_default().trim();
                let label = text.parse().ok().filter(|&label: &i64| label >= 0);
                let label = label.ok_or_else(|| wrong("its text is no number of a class"))?;
                group.class = Some(label);
            } else {
                let text = members.data(&member, MOST_JSON)?;
                let value: serde_json::Value = serde_json::from_slice(&text)
                    .map_err(|error| wrong(&format!("not JSON: {error}")))?;
                let label = value.get(field).and_then(serde_json::Value::as_i64);
                // Not yet an error: the label may be in a .cls member.
                let missing =
                    || format!("{} has no number of a class in field {field:?}", member.name);
                group.json = Some(label.filter(|&label| label >= 0).ok_or_else(missing));
            }
        }
    }
    samples.extend(group.finish(label_key)?);
    members.drain()?;
    Ok(samples)
}

/// [`index`] of a plain tar in memory.
///
/// # Errors
/// [`Fault`].
pub fn index_bytes(bytes: &[u8], label_key: Option<&str>) -> Result<Vec<Sample>, Fault> {
    index(Seekable::new(Cursor::new(bytes)).map_err(Fault::Io)?, label_key)
}

impl Group {
    /// The sample; None when no member of it was an image or a label.
    fn finish(self, label_key: Option<&str>) -> Result<Option<Sample>, Fault> {
        let fault = |text: String| Fault::at(self.header, format!("sample {}: {text}", self.key));
        let Some(image) = self.image else {
            return match self.class {
                // Its image was lost, or has an ending that is not known. A .json alone may be about anything.
                Some(_) => Err(fault(format!("a label, but no image ({})", IMAGES.join(", ")))),
                None => Ok(None),
            };
        };
        let label = match (label_key, self.class, self.json) {
            (None, ..) => -1,
            (_, Some(label), _) | (_, None, Some(Ok(label))) => label,
            (_, None, Some(Err(reason))) => return Err(fault(reason)),
            (_, None, None) => {
                let text = "no label: neither a .cls nor a .json member beside its image";
                return Err(fault(text.to_owned()));
            }
        };
        let Member { name, data, size, .. } = image;
        Ok(Some(Sample { name, offset: data, size, label }))
    }
}

/// Key and ending: before and after the first dot of the file name. None without a dot, or with nothing before it.
fn split(path: &str) -> Option<(&str, &str)> {
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = path[start..].find('.').filter(|&dot| dot > 0)?;
    Some((&path[..start + dot], &path[start + dot + 1..]))
}
