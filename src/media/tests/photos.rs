//! Photos of every shape stand upright; bad ones are refused before or while they are decoded.

use super::*;
use crate::{
    base::Kind,
    flow::{Image, PhotoKind},
};

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const WHITE: [u8; 3] = [255, 255, 255];

/// The colours in the middle of the four quarters, row by row.
fn quarters(image: &Image) -> [[u8; 3]; 4] {
    assert_eq!(image.rgb.len(), image.width as usize * image.height as usize * 3);
    let at = |x: u32, y: u32| {
        let from = (y * image.width + x) as usize * 3;
        [image.rgb[from], image.rgb[from + 1], image.rgb[from + 2]]
    };
    let (x, y) = (image.width / 4, image.height / 4);
    [at(x, y), at(3 * x, y), at(x, 3 * y), at(3 * x, 3 * y)]
}

fn assert_colours(what: &str, image: &Image, expected: [[u8; 3]; 4]) {
    for (found, expected) in quarters(image).into_iter().zip(expected) {
        let close = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) < 30);
        assert!(close, "{what}: {:?}", quarters(image));
    }
}

#[tokio::test]
async fn all_eight_orientations_stand_upright() {
    let media = media();
    for orientation in 1..=8 {
        let photo = data(&format!("orientation_{orientation}.jpg"));
        let info = media.photo_info(&photo).unwrap();
        assert_eq!((info.kind, info.width, info.height, info.orientation), (PhotoKind::Jpeg, 64, 32, orientation));
        let image = media.photo(photo).await.unwrap();
        assert_eq!((image.width, image.height, image.original_size), (64, 32, (64, 32)));
        assert_colours(&format!("orientation {orientation}"), &image, [RED, GREEN, BLUE, WHITE]);
    }
}

#[tokio::test]
async fn every_kind_of_photo_decodes() {
    let media = media();
    let grays = [[76; 3], [150; 3], [29; 3], WHITE];
    for (file, colours) in [
        ("progressive.jpg", [RED, GREEN, BLUE, WHITE]),
        ("gray.jpg", grays),
        ("rgb.png", [RED, GREEN, BLUE, WHITE]),
        ("palette.png", [RED, GREEN, BLUE, WHITE]),
        ("gray16.png", grays),
        // The last quarter is transparent black.
        ("alpha.png", [RED, GREEN, BLUE, WHITE]),
        ("alpha.webp", [RED, GREEN, BLUE, WHITE]),
        ("lossy.webp", [RED, GREEN, BLUE, WHITE]),
    ] {
        let image = media.photo(data(file)).await.unwrap_or_else(|error| panic!("{file}: {}", error.full()));
        assert_colours(file, &image, colours);
    }
}

#[tokio::test]
async fn large_photos_are_scaled_to_the_longest_side() {
    let mut media = media();
    media.vision.max_side = 100;
    let image = media.photo(data("large.jpg")).await.unwrap();
    assert_eq!((image.width, image.height, image.original_size), (100, 50, (640, 320)));
    assert_colours("large", &image, [RED, GREEN, BLUE, WHITE]);
}

/// A PNG whose header is right in every way, with that size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let crc = !chunk.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    [&b"\x89PNG\r\n\x1A\n\0\0\0\x0D"[..], &chunk, &crc.to_be_bytes()].concat()
}

#[tokio::test]
async fn a_photo_over_the_limit_is_refused_by_its_header_alone() {
    let media = media();
    for (width, height) in [(100_000, 100_000), (u32::MAX, u32::MAX), (50_000_001, 1)] {
        let header = png_header(width, height);
        assert_eq!(media.photo_info(&header).unwrap_err().kind(), Kind::TooLarge);
        let error = media.photo(header.into()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge);
        assert!(error.hint_text().unwrap().contains("vision.max_pixels"));
    }
    assert_eq!(media.pool.kept(), 0, "nothing was built for them");
    assert_eq!(media.photo_info(&png_header(0, 10)).unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn what_is_no_photo_is_refused() {
    let media = media();
    for bytes in [&b""[..], b"GIF89a\x10\0\x10\0", b"\0\0\0\x18ftypheic", b"hello", b"RIFF\0\0\0\0WAVE"] {
        let error = media.photo(Bytes::copy_from_slice(bytes)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.hint_text().unwrap().contains("JPEG"));
    }
}

#[tokio::test]
async fn a_cut_photo_is_an_error_wherever_it_is_cut() {
    let media = media();
    for file in ["orientation_1.jpg", "progressive.jpg", "rgb.png", "lossy.webp", "alpha.webp"] {
        let photo = data(file);
        // A PNG's last chunk says nothing, so a picture without it is whole.
        let whole = if file.ends_with("png") { photo.len() - 13 } else { photo.len() };
        for at in (0..whole).step_by(whole / 15) {
            let cut = media.photo(photo.slice(..at)).await;
            let error = cut.err().unwrap_or_else(|| panic!("{file} cut at {at} of {} decodes", photo.len()));
            assert!(matches!(error.kind(), Kind::Invalid | Kind::Unsupported), "{file} at {at}: {}", error.full());
        }
    }
}

#[tokio::test]
async fn a_jpeg_of_very_many_scans_is_refused() {
    let media = media();
    let photo = data("progressive.jpg");
    let last = photo.windows(2).rposition(|it| it == [0xFF, 0xDA]).unwrap();
    let (begin, scan) = photo[..photo.len() - 2].split_at(last);
    // What looks like the end stands in a comment, where decoders do not look.
    let comment = [0xFF, 0xFE, 0, 4, 0xFF, 0xD9];
    let of = |scans| Bytes::from([begin, &comment, &scan.repeat(scans), &[0xFF, 0xD9]].concat());
    assert!(media.photo_info(&of(50)).is_ok());
    let error = media.photo(of(100)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.message().contains("scans"), "{error}");
    assert!(media.photo_info(&[&of(50)[..], &of(100)].concat()).is_ok(), "what stands behind the end is not looked at");
}

#[tokio::test]
async fn a_header_that_lies_is_refused() {
    let error = media().photo(data("lying.webp")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.full());
}

#[tokio::test]
async fn photos_that_we_do_not_decode_say_so() {
    let media = media();
    for file in ["cmyk.jpg", "animated.webp"] {
        let error = media.photo(data(file)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let hint = error.hint_text().unwrap();
        assert!(hint.contains("CMYK") && hint.contains("animated"), "{hint}");
    }
}

#[tokio::test]
async fn damaged_photos_neither_hang_nor_panic() {
    let media = media();
    for file in ["orientation_6.jpg", "rgb.png", "alpha.webp", "lossy.webp"] {
        let photo = data(file);
        for at in (12..photo.len()).step_by(photo.len() / 12) {
            let mut bytes = photo.to_vec();
            bytes[at] ^= 0x55;
            let decoded = tokio::time::timeout(LIMIT, media.photo(bytes.into())).await.unwrap();
            if let Err(error) = decoded {
                assert_ne!(error.kind(), Kind::Internal, "{file} at {at}: {}", error.full());
            }
        }
    }
}

#[tokio::test]
async fn photos_share_their_pipelines_and_many_at_once_are_told_to_come_back() {
    let media = media();
    let all = (0..60).map(|_| {
        let media = media.clone();
        tokio::spawn(async move { media.photo(data("large.jpg")).await })
    });
    let (mut done, mut busy) = (0, 0);
    for photo in all.collect::<Vec<_>>() {
        match photo.await.unwrap() {
            Ok(_) => done += 1,
            Err(error) if error.kind() == Kind::Busy => busy += 1,
            Err(error) => panic!("{}", error.full()),
        }
    }
    assert!(done >= 18, "{done} decoded, {busy} busy");
    let kept = async {
        while media.photo_turns.available_permits() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, kept).await.unwrap();
    assert!((1..=2).contains(&media.pool.kept()), "{}", media.pool.kept());
}
