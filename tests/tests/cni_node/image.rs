//! Images made from Debian's static busybox: a web server that tells whom it saw with the clients to ask it, and a sandbox.
//!
//! Invariant: nothing is fetched. The archive is of docker's form (`manifest.json`, one layer), which podman and containerd
//! both load, and is made on the machine that uses it.

use anyhow::{Context, Result, ensure};
use lab::Host;
use serde_json::json;

/// Name of the image.
pub(crate) const NAME: &str = "docker.io/library/web:lab";
/// The same files with a process that listens nowhere: a sandbox in the machine's own network takes no port from it.
pub(crate) const PAUSE: &str = "docker.io/library/pause:lab";
/// Where the archive lies on the machine.
pub(crate) const ARCHIVE: &str = "/run/image/web.tar";

/// httpd gives the client's address to a CGI program in REMOTE_ADDR.
const WHO: &str = "#!/bin/sh\necho\necho \"$REMOTE_ADDR $(hostname)\"\n";

/// Asks such a program. Debian's static busybox crashes in its wget (name service without libraries); nc does without.
const ASK: &str = "#!/bin/sh\nprintf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $1 $2\n";

/// Makes the archive.
pub(crate) fn build(host: &Host) -> Result<()> {
    host.write("/run/image/root/www/cgi-bin/who", WHO)?;
    host.write("/run/image/root/bin/ask", ASK)?;
    let layer = "cd /run/image && cp /bin/busybox root/bin/ && chmod 755 root/www/cgi-bin/who root/bin/ask && \
        busybox --list | perl -lne 'symlink \"busybox\", \"root/bin/$_\"' && \
        tar -C root --owner=0 --group=0 --mtime=@0 -cf layer.tar . && rm -r root && sha256sum layer.tar | cut -d' ' -f1";
    let digest = host.run(&["sh", "-c", layer]).context("make the layer of the image (busybox-static, tar)")?.stdout;
    let mut manifest = Vec::new();
    for (file, name, words) in [
        ("web.json", NAME, &["httpd", "-f", "-p", "80", "-h", "/www"][..]),
        ("pause.json", PAUSE, &["sleep", "2147483647"]),
    ] {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": words, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest.trim())]},
        });
        host.write(format!("/run/image/{file}"), config.to_string())?;
        manifest.push(json!({"Config": file, "RepoTags": [name], "Layers": ["layer.tar"]}));
    }
    host.write("/run/image/manifest.json", json!(manifest).to_string())?;
    let files = ["manifest.json", "web.json", "pause.json", "layer.tar"];
    host.run(&[&["tar", "-C", "/run/image", "-cf", ARCHIVE][..], &files].concat())?;
    Ok(())
}

/// The command with which a container asks the server at `url` (`172.7.21.2` or `10.4.7.21:8080`).
pub(crate) fn question(url: &str) -> [&str; 3] {
    let (address, port) = url.split_once(':').unwrap_or((url, "80"));
    ["ask", address, port]
}

/// `172.7.21.2 web` of an answer that ends in `[::ffff:172.7.21.2] web`: httpd listens on one socket for both families.
pub(crate) fn answer(printed: &str) -> Result<String> {
    let last = printed.lines().rfind(|line| line.starts_with('['));
    let (address, name) = last.and_then(|line| line.split_once("] ")).unwrap_or_default();
    ensure!(!address.is_empty(), "not the server's answer: {printed:?}");
    Ok(format!("{} {}", address.trim_start_matches("[::ffff:").trim_start_matches('['), name.trim()))
}
