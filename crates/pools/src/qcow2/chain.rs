//! A file and the layers that it lies over.

use sistemo_host::directory::{Directory, Open};
use sistemo_host::sparse::Extent;

use super::format::{CLUSTER, Entry, Fault, TABLE_ENTRIES};
use super::image::{Care, Image, ImageError, Summary, summary};
use super::names;

/// No chain is longer: what makes them keeps them far shorter, so a longer one is damage.
pub(super) const DEEPEST: usize = 200;

/// A file, from the top down, and all that shows through it.
#[derive(Debug)]
pub(super) struct Chain {
    /// The first is the top; the last has nothing beneath.
    pub(super) images: Vec<Image>,
}

fn open_file(directory: &Directory, name: &str, how: Open) -> Result<std::fs::File, ImageError> {
    directory.file(name, how).map_err(|error| {
        if error.is_not_found() {
            ImageError::Fault {
                name: name.to_owned(),
                fault: Fault::Missing,
            }
        } else {
            error.into()
        }
    })
}

/// The name of the layer that a file lies over: never a path, never anything but a data file of
/// this driver.
pub(super) fn layer_under<'a>(
    name: &str,
    summary: &'a Summary,
) -> Result<Option<&'a str>, ImageError> {
    match summary.header.backing.as_deref() {
        Some(backing) if names::parse_data(backing).is_none() => Err(ImageError::Fault {
            name: name.to_owned(),
            fault: Fault::ForeignBacking(backing.to_owned()),
        }),
        backing => Ok(backing),
    }
}

/// Reads what a file's header says.
pub(super) fn look(directory: &Directory, name: &str) -> Result<Summary, ImageError> {
    let file = open_file(directory, name, Open::Read)?;
    summary(&file, &directory.path_of(name))
}

/// The names of a file and of all layers under it.
pub(super) fn names_down(directory: &Directory, top: &str) -> Result<Vec<String>, ImageError> {
    let mut names = vec![top.to_owned()];
    let mut at = top.to_owned();
    while let Some(next) = layer_under(&at, &look(directory, &at)?)?.map(str::to_owned) {
        check_depth(top, names.len())?;
        names.push(next.clone());
        at = next;
    }
    Ok(names)
}

fn check_depth(top: &str, depth: usize) -> Result<(), ImageError> {
    if depth < DEEPEST {
        return Ok(());
    }
    Err(ImageError::Fault {
        name: top.to_owned(),
        fault: Fault::Depth(DEEPEST),
    })
}

/// Opens one file, to write with `care`, or to read.
pub(super) fn open_image(
    directory: &Directory,
    name: &str,
    care: Option<Care>,
) -> Result<Image, ImageError> {
    let how = if care.is_some() {
        Open::ReadWrite
    } else {
        Open::Read
    };
    let file = open_file(directory, name, how)?;
    let path = directory.path_of(name);
    summary(&file, &path).and_then(|summary| layer_under(name, &summary).map(|_| ()))?;
    Image::open(file, path, care)
}

impl Chain {
    /// Opens a file, to write with `care`, and all layers under it, to read.
    pub(super) fn open(
        directory: &Directory,
        top: &str,
        care: Option<Care>,
    ) -> Result<Chain, ImageError> {
        let mut images = vec![open_image(directory, top, care)?];
        let under = |images: &[Image]| images.last().and_then(|i| i.header().backing.clone());
        while let Some(name) = under(&images) {
            check_depth(top, images.len())?;
            images.push(open_image(directory, &name, None)?);
        }
        Ok(Chain { images })
    }
}

/// Fills a buffer that lies within one cluster of the volume with what shows there, and says
/// whether that may be anything but zeros.
pub(super) fn read_cluster(
    images: &[Image],
    buffer: &mut [u8],
    offset: u64,
) -> Result<bool, ImageError> {
    let mut left = buffer;
    for image in images {
        // Beyond the end of a layer are zeros, whatever is in its last cluster.
        let there = image.size().saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(left.len());
        let (part, behind) = left.split_at_mut(there);
        behind.fill(0);
        left = part;
        if left.is_empty() {
            return Ok(false);
        }
        match image.entry(offset / CLUSTER)? {
            Entry::Empty => {}
            Entry::Zero { .. } => break,
            Entry::Data { at } => {
                image.read_raw(left, at + offset % CLUSTER)?;
                return Ok(true);
            }
        }
    }
    left.fill(0);
    Ok(false)
}

/// Fills a buffer with the volume's bytes.
pub(super) fn read(images: &[Image], buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let within = usize::try_from(CLUSTER - at % CLUSTER).unwrap_or(usize::MAX);
        let (part, behind) = rest.split_at_mut(within.min(rest.len()));
        read_cluster(images, part, at)?;
        at += part.len() as u64;
        rest = behind;
    }
    Ok(())
}

/// Whether a cluster of the volume may hold anything but zeros.
pub(super) fn has_data(images: &[Image], cluster: u64) -> Result<bool, ImageError> {
    for image in images {
        if cluster * CLUSTER >= image.size() {
            return Ok(false);
        }
        match image.entry(cluster)? {
            Entry::Empty => {}
            Entry::Zero { .. } => return Ok(false),
            Entry::Data { .. } => return Ok(true),
        }
    }
    Ok(false)
}

/// The first cluster at or behind `from` of which any file says anything; `end` where there is
/// none before that.
pub(super) fn next_mapped(images: &[Image], from: u64, end: u64) -> u64 {
    let mut at = from;
    while at < end {
        let table = at / TABLE_ENTRIES;
        if images.iter().any(|image| image.maps_any(table)) {
            return at;
        }
        at = (table + 1) * TABLE_ENTRIES;
    }
    end
}

/// The first part of a volume at or behind `from` that may hold anything but zeros.
pub(super) fn next_extent(images: &[Image], from: u64) -> Result<Option<Extent>, ImageError> {
    let size = images.first().map_or(0, Image::size);
    let end = size.div_ceil(CLUSTER);
    let mut first = next_mapped(images, from / CLUSTER, end);
    while first < end && !has_data(images, first)? {
        first = next_mapped(images, first + 1, end);
    }
    let start = (first * CLUSTER).max(from);
    if first >= end || start >= size {
        return Ok(None);
    }
    let mut last = first + 1;
    while last < end && has_data(images, last)? {
        last += 1;
    }
    Ok(Some(Extent {
        offset: start,
        length: (last * CLUSTER).min(size) - start,
    }))
}

/// Copies all that shows through the first image into it: afterwards it needs none of the others.
pub(super) fn pull(
    images: &mut [Image],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    let Some((top, beneath)) = images.split_first_mut() else {
        return Ok(());
    };
    let todo = missing(top, beneath)?;
    let total = todo.len() as u64 * CLUSTER;
    let mut whole = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
    for (done, cluster) in todo.into_iter().enumerate() {
        read_cluster(beneath, &mut whole, cluster * CLUSTER)?;
        top.write(cluster, 0, &whole, &mut |_| Ok(false))?;
        progress((done as u64 + 1) * CLUSTER, total);
    }
    Ok(())
}

/// The clusters of which the first file says nothing, but those beneath have data.
pub(super) fn missing(top: &Image, beneath: &[Image]) -> Result<Vec<u64>, ImageError> {
    let end = top.size().div_ceil(CLUSTER);
    let mut clusters = Vec::new();
    let mut at = next_mapped(beneath, 0, end);
    while at < end {
        if top.entry(at)? == Entry::Empty && has_data(beneath, at)? {
            clusters.push(at);
        }
        at = next_mapped(beneath, at + 1, end);
    }
    Ok(clusters)
}

/// Copies what `upper` says into `lower`, on which it lies: afterwards both show the same.
pub(super) fn push_down(
    upper: &Image,
    lower: &mut Image,
    over_something: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImageError> {
    if upper.size() > lower.size() {
        lower.grow(upper.size())?;
    }
    let end = upper.size().div_ceil(CLUSTER);
    let only = std::slice::from_ref(upper);
    let mut whole = vec![0; usize::try_from(CLUSTER).unwrap_or(0)];
    let mut at = next_mapped(only, 0, end);
    while at < end {
        match upper.entry(at)? {
            Entry::Empty => {}
            Entry::Zero { .. } => lower.clear(at, over_something)?,
            Entry::Data { at: from } => {
                upper.read_raw(&mut whole, from)?;
                lower.write(at, 0, &whole, &mut |_| Ok(false))?;
                progress(CLUSTER);
            }
        }
        at = next_mapped(only, at + 1, end);
    }
    lower.flush()
}
