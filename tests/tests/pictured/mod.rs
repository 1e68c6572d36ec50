//! `docs/page.png`, the picture of netd's page, and what it is a picture of.
//!
//! Beside it `docs/page.png.sum` has two sums: of the picture, and of the sources that it was taken of: the style, and the page of a small cluster
//! as `netd/src/page` has it approved, which changes with whatever is drawn.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

/// What says how the page looks.
const SOURCES: [&str; 2] = ["netd/src/page/page.css", "netd/src/page/golden.html"];

/// How a picture is taken anew.
pub(crate) const ANEW: &str = "NETD_SCREENSHOT=docs/page.png cargo test -p tests --test page -- on_paper";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The file of sums beside a picture.
pub(crate) fn beside(picture: &Path) -> PathBuf {
    picture.with_extension("png.sum")
}

/// The sums of a picture and of the sources as they are now.
pub(crate) fn sums(picture: &[u8]) -> Result<String> {
    let mut sources = Vec::new();
    for source in SOURCES {
        sources.extend(std::fs::read(root().join(source)).context(source)?);
    }
    let sum = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(format!("picture {}\nsources {}\n", sum(picture), sum(&sources)))
}
