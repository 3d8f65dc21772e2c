//! SHA-256 of files: what says that a model is the one that was meant.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

const CHUNK: usize = 1 << 18;

/// Grows with what passes, so that nothing is read twice.
#[derive(Clone, Default)]
pub(crate) struct Digest {
    hash: Sha256,
    size: u64,
}

impl Digest {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// As 64 small hexadecimal digits.
    pub(crate) fn sha256(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn of_file(path: &Path) -> io::Result<Digest> {
        let mut digest = Digest::default();
        pass(&mut File::open(path)?, |bytes| {
            digest.add(bytes);
            Ok(())
        })?;
        Ok(digest)
    }
}

/// Hands everything that can be read to somebody, a chunk at a time.
pub(crate) fn pass(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => to(&chunk[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_sum_that_everybody_computes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let digest = Digest::of_file(file.path()).unwrap();
        assert_eq!(digest.size(), 3);
        assert_eq!(digest.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
