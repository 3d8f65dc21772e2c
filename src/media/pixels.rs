//! Pixels after decoding: transparency onto white, and the eight ways a camera may have been held.

/// EXIF orientation: how the stored picture is turned to stand upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Orientation {
    #[default]
    Upright,
    FlipHorizontal,
    Rotate180,
    FlipVertical,
    Transpose,
    Rotate90,
    Transverse,
    Rotate270,
}

use Orientation::*;

impl Orientation {
    const ALL: [Orientation; 8] =
        [Upright, FlipHorizontal, Rotate180, FlipVertical, Transpose, Rotate90, Transverse, Rotate270];

    /// By its number in EXIF, 1 to 8.
    pub(super) fn from_number(number: u16) -> Option<Orientation> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

    pub(super) fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Width and height once upright.
    pub(super) fn size(self, width: u32, height: u32) -> (u32, u32) {
        if self.turns() { (height, width) } else { (width, height) }
    }

    fn turns(self) -> bool {
        matches!(self, Transpose | Rotate90 | Transverse | Rotate270)
    }
}

/// Upright RGB, rows without padding. `transparent`: the fourth byte counts, and what shows through is white, as on
/// a page; drawings with a clear background would else be black on black.
pub(super) fn upright(rgba: &[[u8; 4]], width: u32, orientation: Orientation, transparent: bool) -> Vec<u8> {
    let width = width as usize;
    let height = rgba.len() / width.max(1);
    let (right, bottom) = (width.saturating_sub(1), height.saturating_sub(1));
    let (out_width, out_height) = if orientation.turns() { (height, width) } else { (width, height) };
    let mut rgb = Vec::with_capacity(rgba.len() * 3);
    for y in 0..out_height {
        for x in 0..out_width {
            // Where the pixel (x, y) of the upright picture is stored.
            let (from_x, from_y) = match orientation {
                Upright => (x, y),
                FlipHorizontal => (right - x, y),
                Rotate180 => (right - x, bottom - y),
                FlipVertical => (x, bottom - y),
                Transpose => (y, x),
                Rotate90 => (y, bottom - x),
                Transverse => (right - y, bottom - x),
                Rotate270 => (right - y, x),
            };
            let [r, g, b, a] = rgba[from_y * width + from_x];
            let alpha = if transparent { a } else { 255 };
            rgb.extend([r, g, b].map(|colour| onto_white(colour, alpha)));
        }
    }
    rgb
}

fn onto_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_orientation_turns_a_letter_upright() {
        // Stored so that its orientation makes it  1 2 3
        //                                          4 5 6
        let stored: [(&[u8], u32); 8] = [
            (&[1, 2, 3, 4, 5, 6], 3),
            (&[3, 2, 1, 6, 5, 4], 3),
            (&[6, 5, 4, 3, 2, 1], 3),
            (&[4, 5, 6, 1, 2, 3], 3),
            (&[1, 4, 2, 5, 3, 6], 2),
            (&[3, 6, 2, 5, 1, 4], 2),
            (&[6, 3, 5, 2, 4, 1], 2),
            (&[4, 1, 5, 2, 6, 3], 2),
        ];
        for (orientation, (pixels, width)) in Orientation::ALL.into_iter().zip(stored) {
            let rgba: Vec<[u8; 4]> = pixels.iter().map(|it| [*it, 0, 0, 255]).collect();
            let reds: Vec<u8> = upright(&rgba, width, orientation, true).chunks(3).map(|it| it[0]).collect();
            assert_eq!(reds, [1, 2, 3, 4, 5, 6], "{orientation:?}");
            assert_eq!(orientation.size(width, 6 / width), (3, 2));
            assert_eq!(Orientation::from_number(orientation.number().into()), Some(orientation));
        }
        assert_eq!(Orientation::from_number(0), None);
        assert_eq!(Orientation::from_number(9), None);
    }

    #[test]
    fn what_is_transparent_is_white() {
        assert_eq!(upright(&[[10, 20, 30, 0]], 1, Upright, true), [255, 255, 255]);
        assert_eq!(upright(&[[10, 20, 30, 255]], 1, Upright, true), [10, 20, 30]);
        assert_eq!(upright(&[[0, 0, 0, 128]], 1, Upright, true), [127, 127, 127]);
        assert_eq!(upright(&[[10, 20, 30, 0]], 1, Upright, false), [10, 20, 30]);
    }
}
