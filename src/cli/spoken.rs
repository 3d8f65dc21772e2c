//! A spoken sentence to test with, made by espeak-ng, so that no recording is needed and nobody's voice is shipped.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    base::{Error, Result},
    flow::{Pcm, SAMPLE_RATE_HZ},
    media::{AudioFile, Media},
};

const SENTENCES: [&str; 2] =
    ["Buenos días. Esto es una prueba de la vigía.", "Cuidado con el escalón, y mira a los dos lados antes de cruzar."];
const PAUSE_SECS: f64 = 1.2;
/// Of a sentence; more would be a fault of espeak-ng.
const LONGEST: Duration = Duration::from_secs(60);

/// Two sentences with a pause after each, at 16 kHz.
pub(super) async fn two_sentences(media: &Media) -> Result<Pcm> {
    let pause = vec![0.0; (PAUSE_SECS * f64::from(SAMPLE_RATE_HZ)) as usize];
    let mut samples = pause[..pause.len() / 3].to_vec();
    for sentence in SENTENCES {
        samples.extend_from_slice(&media.decode_file(AudioFile::Bytes(speak(sentence)?), LONGEST).await?.whole()?);
        samples.extend_from_slice(&pause);
    }
    Ok(samples.into())
}

fn speak(sentence: &str) -> Result<Bytes> {
    let missing = |error: std::io::Error| {
        Error::unavailable(format!("espeak-ng cannot be run: {error}")).hint("apt-get install espeak-ng")
    };
    let output = Command::new("espeak-ng")
        .args(["-v", "es", "-s", "150", "--stdout", sentence])
        .stdin(Stdio::null())
        .output()
        .map_err(missing)?;
    if !output.status.success() {
        return Err(Error::unavailable(format!(
            "espeak-ng failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
        .hint("apt-get install --reinstall espeak-ng espeak-ng-data"));
    }
    Ok(output.stdout.into())
}

/// As a client sends it.
pub(super) fn pcm16(samples: &[f32]) -> Bytes {
    samples.iter().flat_map(|sample| ((sample.clamp(-1.0, 1.0) * 32767.0).round() as i16).to_le_bytes()).collect()
}
