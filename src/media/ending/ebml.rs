//! WebM and Matroska: elements that say how long they are. What is recorded live leaves the lengths of the outer ones
//! open; then those within them are followed to the end.

use std::io;

use super::{Ending, MAX_STEPS};
use crate::media::feed::Whole;

const CUT: Ending = Ending::Cut("its last part is shorter than it says");

const SEGMENT: u32 = 0x1853_8067;
const CLUSTER: u32 = 0x1F43_B675;

pub(super) fn ending(file: &Whole) -> io::Result<Ending> {
    let mut at = 0;
    for _ in 0..MAX_STEPS {
        if at == file.len {
            break;
        }
        let bytes = file.peek(at, 12)?;
        let Some((id, head, size)) = element(&bytes) else {
            // Too little is left for what begins here, or nothing that could be an element does.
            let begins = bytes.first().is_some_and(|first| *first >= 0x10);
            return Ok(if begins && bytes.len() < 12 { CUT } else { Ending::Whole });
        };
        let content = at + head;
        match size {
            Some(size) => match content.checked_add(size) {
                Some(end) if end <= file.len => at = end,
                _ => return Ok(CUT),
            },
            // Its length is open: what is in it follows.
            None if matches!(id, SEGMENT | CLUSTER) => at = content,
            None => break,
        }
    }
    Ok(Ending::Whole)
}

/// Its id, the length of its head, and that of its content, unless that is open.
fn element(bytes: &[u8]) -> Option<(u32, u64, Option<u64>)> {
    let id_len = bytes.first()?.leading_zeros() as usize + 1;
    if id_len > 4 {
        return None;
    }
    let id = bytes.get(..id_len)?.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
    let size_len = bytes.get(id_len)?.leading_zeros() as usize + 1;
    if size_len > 8 {
        return None;
    }
    let size = bytes.get(id_len..id_len + size_len)?.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
    let mask = (1u64 << (7 * size_len)) - 1;
    let size = size & mask;
    Some((id, (id_len + size_len) as u64, (size != mask).then_some(size)))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::whole, *};

    #[test]
    fn open_lengths_are_followed_and_known_ones_believed() {
        let head = [0x1A, 0x45, 0xDF, 0xA3, 0x81, 0];
        let block = [0xA3, 0x83, 1, 2, 3];
        let open = [0x18, 0x53, 0x80, 0x67, 0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
        let cluster = [0x1F, 0x43, 0xB6, 0x75, 0xFF];
        let live = [&head[..], &open, &cluster, &block, &block, &cluster, &block].concat();
        assert_eq!(ending(&whole(live.clone())).unwrap(), Ending::Whole);
        for cut in 1..5 {
            assert_eq!(ending(&whole(live[..live.len() - cut].to_vec())).unwrap(), CUT, "{cut} less");
        }
        let known = [&head[..], &[0x18, 0x53, 0x80, 0x67, 0x85], &block].concat();
        assert_eq!(ending(&whole(known.clone())).unwrap(), Ending::Whole);
        assert_eq!(ending(&whole(known[..known.len() - 1].to_vec())).unwrap(), CUT);
        let junk = [&known[..], &[0; 40]].concat();
        assert_eq!(ending(&whole(junk)).unwrap(), Ending::Whole);
    }
}
