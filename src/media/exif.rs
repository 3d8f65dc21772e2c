//! The one fact of EXIF that is needed: how the camera was held. Looks at the first directory alone and follows no
//! pointer out of it: in 64 KB of them that point to each other's directories a full reader finds billions of entries.

use crate::flow::PhotoKind;

const ORIENTATION: u16 = 0x0112;
const SHORT: u16 = 3;
const ENTRY_BYTES: usize = 12;

/// The orientation's number, where the photo has one.
pub(super) fn orientation(kind: PhotoKind, photo: &[u8]) -> Option<u16> {
    let block = match kind {
        PhotoKind::Jpeg => in_jpeg(photo),
        PhotoKind::Png => in_png(photo),
        PhotoKind::Webp => in_webp(photo),
    }?;
    // In a JPEG always, in a WebP often.
    let tiff = Tiff::new(block.strip_prefix(b"Exif\0\0").unwrap_or(block))?;
    let directory = tiff.u32_at(4)? as usize;
    let entries = usize::from(tiff.u16_at(directory)?);
    let mut places = (0..entries).map(|entry| directory + 2 + entry * ENTRY_BYTES);
    let entry = places.find(|at| tiff.u16_at(*at) == Some(ORIENTATION))?;
    // A single value of this type stands in the entry itself.
    if tiff.u16_at(entry + 2)? == SHORT { tiff.u16_at(entry + 8) } else { None }
}

/// In an APP1 segment before the first scan.
fn in_jpeg(photo: &[u8]) -> Option<&[u8]> {
    let mut rest = photo.get(2..)?;
    while let &[0xFF, marker, high, low, ..] = rest {
        let (segment, after) = rest.split_at_checked(2 + usize::from(u16::from_be_bytes([high, low])))?;
        match segment.get(4..) {
            _ if marker == 0xDA => return None,
            Some(payload) if marker == 0xE1 && payload.starts_with(b"Exif\0\0") => return Some(payload),
            _ => rest = after,
        }
    }
    None
}

fn in_png(photo: &[u8]) -> Option<&[u8]> {
    let mut rest = photo.get(8..)?;
    loop {
        let (head, behind) = rest.split_first_chunk::<8>()?;
        let [a, b, c, d, kind @ ..] = *head;
        let (data, after) = behind.split_at_checked(u32::from_be_bytes([a, b, c, d]) as usize)?;
        if kind == *b"eXIf" {
            return Some(data);
        }
        // Behind the data stands its checksum.
        rest = after.get(4..)?;
    }
}

fn in_webp(photo: &[u8]) -> Option<&[u8]> {
    let mut rest = photo.get(12..)?;
    loop {
        let (head, behind) = rest.split_first_chunk::<8>()?;
        let [kind @ .., a, b, c, d] = *head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if kind == *b"EXIF" {
            return behind.get(..len);
        }
        // Chunks begin at even places.
        rest = behind.get(len.checked_next_multiple_of(2)?..)?;
    }
}

struct Tiff<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl<'a> Tiff<'a> {
    fn new(bytes: &'a [u8]) -> Option<Tiff<'a>> {
        let little_endian = match bytes.first_chunk::<4>()? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        Some(Tiff { bytes, little_endian })
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of type LONG before it, as cameras write them in the order of their tags.
    fn tiff(little_endian: bool, orientation: u16) -> Vec<u8> {
        let short = |it: u16| if little_endian { it.to_le_bytes() } else { it.to_be_bytes() };
        let long = |it: u32| if little_endian { it.to_le_bytes() } else { it.to_be_bytes() };
        let mut tiff = if little_endian { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        tiff.extend([long(8).as_slice(), &short(2)].concat());
        tiff.extend([short(0x0100).as_slice(), &short(4), &long(1), &long(64)].concat());
        tiff.extend([short(ORIENTATION).as_slice(), &short(SHORT), &long(1), &short(orientation), &[0; 2]].concat());
        tiff.extend([0; 4]);
        tiff
    }

    fn jpeg(block: &[u8]) -> Vec<u8> {
        let app1 = [&(block.len() as u16 + 8).to_be_bytes(), &b"Exif\0\0"[..], block].concat();
        [&b"\xFF\xD8\xFF\xE0\0\x04JF\xFF\xE1"[..], &app1, b"\xFF\xDA\0\x02"].concat()
    }

    #[test]
    fn it_is_found_in_every_kind_of_photo_and_both_orders_of_bytes() {
        for (little_endian, number) in [(true, 6), (false, 8)] {
            let tiff = tiff(little_endian, number);
            let len = tiff.len() as u32;
            let png =
                [b"\x89PNG\r\n\x1A\n\0\0\0\x01IHDRx....", &len.to_be_bytes()[..], b"eXIf", &tiff, b"...."].concat();
            let webp = [b"RIFF....WEBPVP8X\x01\0\0\0xx", &b"EXIF"[..], &len.to_le_bytes(), &tiff].concat();
            assert_eq!(orientation(PhotoKind::Jpeg, &jpeg(&tiff)), Some(number));
            assert_eq!(orientation(PhotoKind::Png, &png), Some(number));
            assert_eq!(orientation(PhotoKind::Webp, &webp), Some(number));
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_only_not_found() {
        let photo = jpeg(&tiff(true, 6));
        for at in 0..photo.len() {
            assert!(matches!(orientation(PhotoKind::Jpeg, &photo[..at]), None | Some(6)));
            let mut changed = photo.clone();
            changed[at] ^= 0xFF;
            orientation(PhotoKind::Jpeg, &changed);
            for kind in [PhotoKind::Png, PhotoKind::Webp] {
                assert_eq!(orientation(kind, &photo[..at]), None);
            }
        }
    }

    #[test]
    fn directories_that_point_to_each_other_cost_nothing() {
        const ENTRIES: u32 = 1700;
        let bytes = 2 + ENTRY_BYTES as u32 * ENTRIES + 4;
        let mut tiff = [b"II*\0", &8u32.to_le_bytes()[..]].concat();
        // The first directory holds the second so many times, and that the third.
        for (tag, to) in [(0x8769u16, 8 + bytes), (0xA005, 8 + 2 * bytes), (1, 0)] {
            tiff.extend((ENTRIES as u16).to_le_bytes());
            let entry = [&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &1u32.to_le_bytes(), &to.to_le_bytes()].concat();
            tiff.extend(entry.repeat(ENTRIES as usize));
            tiff.extend([0; 4]);
        }
        let begun = std::time::Instant::now();
        assert_eq!(orientation(PhotoKind::Jpeg, &jpeg(&tiff)), None);
        assert!(begun.elapsed().as_secs() < 5);
    }
}
