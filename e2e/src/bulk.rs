//! A large image as production has them, and what it costs to pull it.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_cri::v1::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::client::Cri;
use crate::image::{self, Image, Sent, digest_of};
use crate::process::Peak;
use crate::random::Random;
use crate::{Outcome, wait};

/// Megabytes of each layer as it is sent, 230 in all: a distribution, a language, its packages, an application.
const LAYERS: [usize; 9] = [75, 48, 36, 27, 18, 12, 8, 4, 2];
/// How long the files of an image that was removed may take to be gone.
const GONE: Duration = Duration::from_secs(60);
/// How many words a text is made of.
const WORDS: u64 = 2000;

/// Trees of texts, programs and what is compressed already, the same in each run.
pub fn image() -> Outcome<Image> {
    let made = std::thread::scope(|scope| {
        let layer = |(seed, megabytes): (u64, usize)| scope.spawn(move || layer(seed, megabytes * 1_000_000));
        let threads: Vec<_> = (1..).zip(LAYERS).map(layer).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a layer panicked")?)
            .collect::<Outcome<_>>()
    });
    image::build_of(made?, json!({}))
}

/// Both ends of an archive: what is sent, and the digest of what comes out.
struct Archive {
    sent: GzEncoder<Vec<u8>>,
    hash: Sha256,
}

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sent.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sent.flush()
    }
}

/// A layer of about so many bytes when it is sent.
fn layer(seed: u64, bytes: usize) -> Outcome<Sent> {
    let mut random = Random::new(seed);
    let sent = GzEncoder::new(Vec::with_capacity(bytes), Compression::default());
    let mut archive = tar::Builder::new(Archive { sent, hash: Sha256::new() });
    let mut count = 0;
    while archive.get_ref().sent.get_ref().len() < bytes {
        let content = content(&mut random);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(if random.below(8) == 0 { 0o755 } else { 0o644 });
        header.set_mtime(1_700_000_000 + random.below(1 << 20));
        // Some twenty files a directory, as /usr/share has them.
        let path = format!("usr/share/layer-{seed}/{}/{}/file-{count}", count / 400, count / 20);
        archive.append_data(&mut header, path, &content[..])?;
        count += 1;
    }
    let Archive { sent, hash } = archive.into_inner()?;
    Ok(Sent { bytes: sent.finish()?, form: "tar+gzip", diff_id: digest_of(hash) })
}

/// Most files are small; most bytes are in large ones.
fn content(random: &mut Random) -> Vec<u8> {
    let power = 8 + random.below(13);
    let length = 64 + random.below(1 << power);
    let mut content = Vec::new();
    let kind = random.below(8);
    while (content.len() as u64) < length {
        match kind {
            // Compressed already.
            0 => content.extend(random.below(1 << 32).to_be_bytes()),
            // A program: instructions that hardly repeat, and tables that do.
            1 | 2 => {
                let [.., a, b, c] = random.below(1 << 20).to_be_bytes();
                content.extend([0x48, 0x8b, a & 0x0f, b, c, 0, 0, 0]);
            }
            // A text.
            _ => {
                // Few words are frequent.
                let word = random.below(WORDS).min(random.below(WORDS));
                content.extend(format!("{:x} ", word.wrapping_mul(0x9e37_79b9) & 0x00ff_ffff).bytes());
            }
        }
    }
    content
}

/// What one pull took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the request to its answer.
    pub time: Duration,
    /// The most resident memory of the daemon meanwhile (VmHWM), in MB.
    pub memory: f64,
}

/// Pulls an image that is not there, and removes it again. containerd removes its files before it answers; `roots` are
/// the image stores of those that do so later.
pub async fn pull(cri: &mut Cri, daemon: u32, reference: &str, roots: &[PathBuf]) -> Outcome<Cost> {
    // What others have written is theirs to wait for.
    rustix::fs::sync();
    let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
    let (peak, began) = (Peak::from_now(daemon)?, Instant::now());
    cri.images.pull_image(PullImageRequest { image: image.clone(), ..Default::default() }).await?;
    let time = began.elapsed();
    let memory = f64::from(u32::try_from(peak.highest()?)?) / 1024.0;
    cri.images.remove_image(RemoveImageRequest { image }).await?;
    for root in roots.iter().filter(|root| root.exists()) {
        wait::until("the files of an image to be gone", GONE, || {
            Ok((fs::read_dir(root.join("trash"))?.count() == 0).then_some(()))
        })?;
    }
    Ok(Cost { time, memory })
}
