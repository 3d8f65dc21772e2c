//! Whom to believe, where a person has certificates of their own.

use std::{fs, path::Path};

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::base::{Error, Result};

/// The certificates of a file, instead of those that browsers believe. `wrong`: what is told where it has none.
pub(crate) fn believed(file: &Path, wrong: impl Fn(&str) -> Error) -> Result<RootCerts> {
    let is_file = fs::metadata(file).map_err(|error| wrong("cannot be read").cause(error))?.is_file();
    // A pipe would be waited for.
    if !is_file {
        return Err(wrong("are in no file"));
    }
    let text = fs::read(file).map_err(|error| wrong("cannot be read").cause(error))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| wrong("are broken").cause(error))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(wrong("are none"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Those of `SSL_CERT_FILE`.
pub(super) fn trusted(file: &Path) -> Result<RootCerts> {
    believed(file, |what| {
        Error::unavailable(format!("the certificates in {} {what}", file.display()))
            .hint("SSL_CERT_FILE is a PEM file with the certificates to believe; unset it to believe those of browsers")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_ones_own_are_read_before_anything_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let told = || trusted(&file).err().map(|error| error.full());
        assert!(told().unwrap().contains("ca.pem cannot be read"));
        assert!(trusted(dir.path()).err().unwrap().full().contains("are in no file"));
        fs::write(&file, "two words").unwrap();
        assert!(told().unwrap().contains("are none"));
        fs::write(&file, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(told().unwrap().contains("SSL_CERT_FILE"));
        fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert_eq!(told(), None);
    }
}
