//! Ogg: pages, of which the last is marked.

use std::io;

use super::{Ending, tail};
use crate::media::feed::Whole;

/// Room for two of the longest pages.
const TAIL: u64 = 128 << 10;
const HEAD: usize = 27;
const LAST: u8 = 4;

pub(super) fn ending(file: &Whole) -> io::Result<Ending> {
    let (tail, _) = tail(file, TAIL)?;
    let begins = |at: &usize| tail[*at..].starts_with(b"OggS\0");
    // From behind: audio may hold what looks like the begin of a page, and a page that fits to the end is one.
    let Some(at) = (0..tail.len().saturating_sub(4)).rev().find(begins) else {
        return Ok(Ending::Cut("it ends within its first page"));
    };
    let page = &tail[at..];
    let whole = page.get(HEAD - 1).and_then(|count| page.get(HEAD..HEAD + usize::from(*count)));
    let Some(lengths) = whole else { return Ok(Ending::Cut("its last page is not whole")) };
    let len = HEAD + lengths.len() + lengths.iter().map(|it| usize::from(*it)).sum::<usize>();
    Ok(if page.len() < len {
        Ending::Cut("its last page is not whole")
    } else if page[5] & LAST == 0 || page[len..].starts_with(b"Ogg") {
        Ending::Cut("its last page is not marked as the last")
    } else {
        Ending::Whole
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::whole, *};

    fn page(flags: u8, content: usize) -> Vec<u8> {
        let mut page = b"OggS\0".to_vec();
        page.push(flags);
        page.resize(HEAD - 1, 0);
        page.extend([1, content as u8]);
        page.resize(page.len() + content, 7);
        page
    }

    #[test]
    fn the_last_page_is_whole_and_marked() {
        let all = [page(2, 30), page(0, 200), page(4, 100)].concat();
        assert_eq!(ending(&whole(all.clone())).unwrap(), Ending::Whole);
        for cut in [1, 99, 101, 120, 126, 128, 200] {
            let found = ending(&whole(all[..all.len() - cut].to_vec())).unwrap();
            assert!(matches!(found, Ending::Cut(_)), "{cut} less: {found:?}");
        }
    }
}
