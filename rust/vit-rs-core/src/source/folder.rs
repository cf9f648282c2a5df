//! Image folders in torchvision's layout: one folder a class, any depth below it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::parallel;

/// File name endings that count as images: torchvision's list. What they hold is told by content.
pub const EXTENSIONS: [&str; 9] =
    [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"];

/// What a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names of the class folders, sorted.
    pub classes: Vec<String>,
    /// Image files, class by class, sorted within each as torchvision walks them.
    pub paths: Vec<PathBuf>,
    /// Class of each file.
    pub labels: Vec<usize>,
}

/// Lists the images below `root`: same classes, order and conditions as torchvision's `ImageFolder`. Up to `threads`
/// threads read one class folder each: on a disk far away the time goes by in waiting.
///
/// # Errors
/// [`Error::Io`] when a folder cannot be read, [`Error::Dataset`] when there is no class folder, or a class has no image
/// and `allow_empty` is off.
pub fn scan(
    root: &Path,
    extensions: &[String],
    allow_empty: bool,
    threads: usize,
) -> Result<Listing> {
    let mut listing = Listing::default();
    for entry in entries(root)?.into_iter().filter(|entry| entry.is_folder) {
        // Names that are not Unicode cannot be class names in Python without loss.
        let Ok(name) = entry.name.into_string() else {
            let text = format!("{}: the folder's name is not Unicode", entry.path.display());
            return Err(Error::Dataset(text));
        };
        listing.classes.push(name);
    }
    if listing.classes.is_empty() {
        return Err(Error::Dataset(format!(
            "{}: no class folders in it; images belong into one sub-folder a class",
            root.display()
        )));
    }
    let mut found: Vec<Result<Vec<PathBuf>>> = Vec::new();
    found.resize_with(listing.classes.len(), || Ok(Vec::new()));
    let threads = threads.min(found.len());
    parallel::for_each(threads, listing.classes.iter().zip(&mut found), |(class, files)| {
        *files = images(&root.join(class), extensions);
    });
    let mut empty = Vec::new();
    for (label, files) in found.into_iter().enumerate() {
        let files = files?;
        if files.is_empty() {
            empty.push(listing.classes[label].clone());
        }
        listing.paths.extend(files);
        listing.labels.resize(listing.paths.len(), label);
    }
    if !empty.is_empty() && !allow_empty {
        return Err(Error::Dataset(format!(
            "{}: no image in class folder {} (endings that count: {})",
            root.display(),
            empty.join(", "),
            extensions.join(" ")
        )));
    }
    Ok(listing)
}

/// Reads a whole file into `buffer`.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn read(path: &Path, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    File::open(path)
        .and_then(|mut file| file.read_to_end(buffer))
        .map(|_| ())
        .map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The images of one class, in torchvision's order.
fn images(class: &Path, extensions: &[String]) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    walk(class, extensions, &mut Vec::new(), &mut folders)?;
    // By whole path, as torchvision's sorted(os.walk(...)): "a-b" stands before "a/z".
    folders.sort_unstable_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    Ok(folders.into_iter().flat_map(|(_, files)| files).collect())
}

/// Collects `folder` and all folders below it, each with its images sorted by name; links are followed. `above` are the
/// folders on the way to it.
fn walk(
    folder: &Path,
    extensions: &[String],
    above: &mut Vec<PathBuf>,
    found: &mut Vec<(PathBuf, Vec<PathBuf>)>,
) -> Result<()> {
    above.push(folder.to_owned());
    let mut images = Vec::new();
    for entry in entries(folder)? {
        if entry.is_folder {
            // Only a link can lead back, and real paths cost as much as the listing itself.
            if entry.is_link && leads_back(&entry.path, above)? {
                let text = format!("{}: a link to a folder that contains it", entry.path.display());
                return Err(Error::Dataset(text));
            }
            walk(&entry.path, extensions, above, found)?;
        } else {
            let name = entry.name.to_string_lossy().to_lowercase();
            if extensions.iter().any(|ending| name.ends_with(ending.as_str())) {
                images.push(entry.path);
            }
        }
    }
    above.pop();
    found.push((folder.to_owned(), images));
    Ok(())
}

/// Whether a link leads to one of these folders.
fn leads_back(link: &Path, above: &[PathBuf]) -> Result<bool> {
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|source| Error::Io { path: path.to_owned(), source })
    };
    let target = real(link)?;
    for folder in above {
        if real(folder)? == target {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Entry {
    name: OsString,
    path: PathBuf,
    is_folder: bool,
    is_link: bool,
}

/// A folder's entries, sorted by name.
fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |source| Error::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let kind = entry.file_type().map_err(failed)?;
        let is_link = kind.is_symlink();
        let is_folder = if is_link { path.is_dir() } else { kind.is_dir() };
        found.push(Entry { name: entry.file_name(), path, is_folder, is_link });
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(name: &str, files: &[&str]) -> PathBuf {
        let root =
            std::env::temp_dir().join(format!("vit-rs-folder-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        root
    }

    fn listed(root: &Path, allow_empty: bool) -> Result<Listing> {
        let endings = [".jpg".to_owned(), ".png".to_owned()];
        let one = scan(root, &endings, allow_empty, 1);
        let many = scan(root, &endings, allow_empty, 5);
        let text = |result: &Result<Listing>| format!("{result:?}");
        assert_eq!(text(&one), text(&many));
        one
    }

    #[test]
    fn order_is_torchvisions() {
        let root = tree(
            "order",
            &["b/2.JPG", "b/1.png", "a/x/z.jpg", "a/x-y/k.jpg", "a/w.jpg", "top.jpg"],
        );
        fs::write(root.join("b/notes.txt"), "x").unwrap();
        let listing = listed(&root, false).unwrap();
        assert_eq!(listing.classes, ["a", "b"]);
        let expected = ["a/w.jpg", "a/x/z.jpg", "a/x-y/k.jpg", "b/1.png", "b/2.JPG"];
        let mut expected: Vec<PathBuf> = expected.iter().map(|file| root.join(file)).collect();
        expected.sort_by_key(|path| path.parent().unwrap().as_os_str().to_owned());
        assert_eq!(listing.paths, expected);
        assert_eq!(listing.labels, [0, 0, 0, 1, 1]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn errors_name_the_folder() {
        let text = |result: Result<Listing>| result.map(|_| ()).unwrap_err().to_string();
        let missing = std::env::temp_dir().join("vit-rs-no-such-folder");
        assert!(text(listed(&missing, false)).contains("vit-rs-no-such-folder"));
        let root = tree("empty", &["only.jpg"]);
        assert!(text(listed(&root, false)).contains("no class folders"));
        fs::create_dir(root.join("bare")).unwrap();
        assert!(text(listed(&root, false)).contains("no image in class folder bare"));
        assert!(listed(&root, true).unwrap().paths.is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn link_loops_are_refused() {
        let root = tree("loop", &["a/x.jpg"]);
        std::os::unix::fs::symlink(&root, root.join("a/up")).unwrap();
        assert!(listed(&root, false).is_err_and(|error| error.to_string().contains("contains it")));
        // A link to elsewhere is followed, also twice.
        fs::remove_file(root.join("a/up")).unwrap();
        fs::create_dir_all(root.join("b/c")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("b/a")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("b/c/a")).unwrap();
        let paths = listed(&root, false).unwrap().paths;
        assert_eq!(paths, ["a/x.jpg", "b/a/x.jpg", "b/c/a/x.jpg"].map(|file| root.join(file)));
        fs::remove_dir_all(root).unwrap();
    }
}
