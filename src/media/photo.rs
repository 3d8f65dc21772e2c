//! A photo: its header is read and judged here, its pixels are decoded by GStreamer, and it comes out upright, in RGB
//! and no larger than engines look at.

use std::sync::Arc;

use bytes::Bytes;
use gstreamer as gst;
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    Media, exif,
    feed::{Feed, Stream, Unit},
    pipeline::WAIT_LIMIT,
    pixels::{self, Orientation},
};
use crate::{
    base::{Error, Kind, Result},
    flow::{Image, PhotoKind},
};

/// A progressive JPEG has about ten. Each costs a walk over the whole picture and as little as 75 bytes of the file:
/// 32 MiB of them would keep the decoder busy for twenty minutes.
const MAX_SCANS: usize = 100;

/// What the header of a photo says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhotoInfo {
    pub kind: PhotoKind,
    /// Upright, that is after EXIF rotation.
    pub width: u32,
    pub height: u32,
    /// The EXIF orientation, 1 to 8.
    pub orientation: u8,
}

impl Media {
    /// Reads the header alone: `Unsupported` for other kinds, `TooLarge` beyond `vision.max_pixels`.
    pub fn photo_info(&self, photo: &[u8]) -> Result<PhotoInfo> {
        let header = Header::read(photo, self.vision.max_pixels)?;
        let (width, height) = header.orientation.size(header.width, header.height);
        Ok(PhotoInfo { kind: header.kind, width, height, orientation: header.orientation.number() })
    }

    /// Decodes a photo, turns it upright and scales it down to `vision.max_side`, keeping its shape. `Busy` when
    /// too many photos wait already.
    pub async fn photo(&self, photo: Bytes) -> Result<Image> {
        let header = Header::read(&photo, self.vision.max_pixels)?;
        let seat = Arc::clone(&self.photo_seats).try_acquire_owned().map_err(|_| busy())?;
        let turn = timeout(WAIT_LIMIT, Arc::clone(&self.photo_turns).acquire_owned()).await.map_err(|_| busy())?;
        let turn = turn.map_err(|error| Error::internal("no photo can be decoded any more").cause(error))?;

        let (width, height) = fit(header.width, header.height, self.vision.max_side);
        let caps = vec![
            ("in", header.mime().to_owned()),
            // What the decoder gives must be what the header said: nothing larger is ever converted or scaled.
            ("decoded", format!("video/x-raw(ANY),width={},height={}", header.width, header.height)),
            ("wanted", format!("video/x-raw,format=RGBA,width={width},height={height},pixel-aspect-ratio=1/1")),
        ];
        let feed = Feed::Stream(Stream::new(Unit::Whole));
        let line = self.pool.lend(header.pipeline(), turn, feed, caps).await?;
        line.push(photo);
        line.end();
        let sample =
            line.next(|| true).await.unwrap_or_else(|| Err(damaged())).map_err(|error| match error.kind() {
                Kind::Invalid => damaged().cause(error),
                _ => error,
            })?;
        drop(line);

        let convert = move || {
            let rgb = upright(&sample, &header, width, height)?;
            let (width, height) = header.orientation.size(width, height);
            let original_size = header.orientation.size(header.width, header.height);
            drop(seat);
            Ok(Image { width, height, rgb, original_size })
        };
        spawn_blocking(convert).await.map_err(|error| Error::internal("a photo could not be converted").cause(error))?
    }
}

/// As the pixels are stored, before rotation.
#[derive(Clone, Copy)]
struct Header {
    kind: PhotoKind,
    width: u32,
    height: u32,
    orientation: Orientation,
}

impl Header {
    fn read(photo: &[u8], max_pixels: u64) -> Result<Header> {
        let kind = kind(photo)?;
        let size = imagesize::blob_size(photo).map_err(|error| damaged().cause(error))?;
        let (Ok(width), Ok(height)) = (u32::try_from(size.width), u32::try_from(size.height)) else {
            return Err(damaged());
        };
        if width == 0 || height == 0 {
            return Err(damaged());
        }
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(Error::new(Kind::TooLarge, format!("the photo has {width} × {height} pixels"))
                .hint(format!("at most {max_pixels} pixels are taken (vision.max_pixels)")));
        }
        if kind == PhotoKind::Jpeg {
            check_scans(photo)?;
        }
        let orientation = exif::orientation(kind, photo).and_then(Orientation::from_number).unwrap_or_default();
        Ok(Header { kind, width, height, orientation })
    }

    fn mime(&self) -> &'static str {
        match self.kind {
            PhotoKind::Jpeg => "image/jpeg",
            PhotoKind::Png => "image/png",
            PhotoKind::Webp => "image/webp",
        }
    }

    fn pipeline(&self) -> &'static str {
        match self.kind {
            PhotoKind::Jpeg => "jpeg",
            PhotoKind::Png => "png",
            PhotoKind::Webp => "webp",
        }
    }
}

fn kind(photo: &[u8]) -> Result<PhotoKind> {
    if photo.starts_with(b"\xFF\xD8\xFF") {
        Ok(PhotoKind::Jpeg)
    } else if photo.starts_with(b"\x89PNG\r\n\x1A\n") {
        Ok(PhotoKind::Png)
    } else if photo.starts_with(b"RIFF") && photo.get(8..12) == Some(b"WEBP") {
        Ok(PhotoKind::Webp)
    } else {
        Err(Error::new(Kind::Unsupported, "this is no photo that can be opened").hint("send JPEG, PNG or WebP"))
    }
}

/// A cut JPEG decodes to a picture that is grey from there on, without an error: a hazard in that part is not seen.
fn check_scans(jpeg: &[u8]) -> Result<()> {
    match scans(jpeg) {
        None => Err(Error::invalid("the photo is cut off: its end is missing").hint("send the whole file")),
        Some(scans) if scans > MAX_SCANS => Err(Error::invalid(format!("the photo is stored in {scans} scans"))
            .hint(format!("at most {MAX_SCANS} are taken: save it again as an ordinary JPEG"))),
        Some(_) => Ok(()),
    }
}

/// The scans of a JPEG up to its end; `None` if that is missing. Some cameras write a film behind it.
fn scans(jpeg: &[u8]) -> Option<usize> {
    let mut scans = 0;
    let mut rest = jpeg;
    loop {
        // Between the segments is compressed data, where FF is always followed by 00 or a restart.
        let marker = rest.iter().position(|it| *it == 0xFF)?;
        rest = rest.get(marker + 1..)?;
        match *rest.first()? {
            0x00..=0x01 | 0xD0..=0xD8 | 0xFF => (),
            0xD9 => return Some(scans),
            kind => {
                scans += usize::from(kind == 0xDA);
                let len = u16::from_be_bytes(*rest.get(1..)?.first_chunk()?);
                rest = rest.get(1 + usize::from(len)..)?;
            }
        }
    }
}

/// The largest size of that shape whose longer side is at most `max_side`; never larger than it was.
fn fit(width: u32, height: u32, max_side: u32) -> (u32, u32) {
    let longest = width.max(height);
    if longest <= max_side {
        return (width, height);
    }
    let scale = |side: u32| {
        let scaled = (u64::from(side) * u64::from(max_side) + u64::from(longest) / 2) / u64::from(longest);
        u32::try_from(scaled).unwrap_or(max_side).max(1)
    };
    (scale(width), scale(height))
}

fn upright(sample: &gst::Sample, header: &Header, width: u32, height: u32) -> Result<Arc<[u8]>> {
    let unreadable = || Error::internal("a decoded photo cannot be read");
    let buffer = sample.buffer().ok_or_else(unreadable)?;
    let map = buffer.map_readable().map_err(|error| unreadable().cause(error))?;
    let (rgba, _) = map.as_chunks::<4>();
    if rgba.len() != width as usize * height as usize {
        return Err(unreadable().cause(format!("{} pixels, not {width} × {height}", rgba.len())));
    }
    // JPEG has no transparency, and hardware decoders may leave that byte at anything.
    Ok(pixels::upright(rgba, width, header.orientation, header.kind != PhotoKind::Jpeg).into())
}

fn damaged() -> Error {
    Error::invalid("the photo is damaged, or of a sort that is not decoded")
        .hint("send the whole file, as JPEG (not CMYK), PNG or WebP (not animated)")
}

fn busy() -> Error {
    Error::new(Kind::Busy, "too many photos are being decoded").hint("try again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_shrink_to_the_side_and_keep_their_shape() {
        assert_eq!(fit(640, 480, 1536), (640, 480));
        assert_eq!(fit(4000, 3000, 1536), (1536, 1152));
        assert_eq!(fit(3000, 4000, 1536), (1152, 1536));
        assert_eq!(fit(50_000_000, 1, 1536), (1536, 1));
        assert_eq!(fit(1537, 1536, 1536), (1536, 1535));
    }
}
