//! `netd docker-opts`: what dockerd has to know of this node's subnet, as flannel's mk-docker-opts.sh writes it.
//!
//! Invariant: the file is the script's to the byte (flannel's dist/mk-docker-opts.sh for sh), its order and its blanks
//! included: systemd units of old clusters read it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use netstate::subnet_file::LONGEST;

use crate::command::verbs::DockerOpts;
use daemon::files;

/// What begins the name of an option's variable.
const OPTION: &str = "DOCKER_OPT_";

/// Writes the file, of the subnet file that the options name, else of the daemon's.
///
/// # Errors
/// When the subnet file cannot be read or says neither true nor false, or when the file cannot be written.
pub(super) fn write(options: &DockerOpts, of_daemon: &Path) -> Result<()> {
    let mut variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let subnet_file = options.subnet_file.as_deref().unwrap_or(of_daemon);
    variables.extend(read(subnet_file)?);
    let text = render(options, variables).with_context(|| subnet_file.display().to_string())?;
    // dockerd that reads half of it takes a bridge of its own.
    files::replace_kept(&options.output, text.as_bytes())
        .map(drop)
        .with_context(|| format!("write {}", options.output.display()))
}

/// The variables of the subnet file, as a shell that sources it sees them.
fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let text = match bounded::read_text(path, LONGEST) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    Ok(variables(&text))
}

/// The variables that a text sets.
pub(crate) fn variables(text: &str) -> Vec<(String, String)> {
    let variable = |line: &str| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        (!line.starts_with('#')).then(|| (name.to_owned(), quoted.unwrap_or(value).to_owned()))
    };
    text.lines().filter_map(variable).collect()
}

fn render(options: &DockerOpts, mut variables: BTreeMap<String, String>) -> Result<String> {
    let set = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
    let masquerade = match set("FLANNEL_IPMASQ").filter(|_| !options.without_ip_masq).as_deref() {
        None => None,
        Some("true") => Some("--ip-masq=false".to_owned()),
        Some("false") => Some("--ip-masq=true".to_owned()),
        Some(other) => bail!("FLANNEL_IPMASQ is {other:?}; accepted: true or false"),
    };
    let found = [
        ("BIP", set("FLANNEL_SUBNET").map(|subnet| format!("--bip={subnet}"))),
        ("MTU", set("FLANNEL_MTU").map(|mtu| format!("--mtu={mtu}"))),
        ("IPMASQ", masquerade),
    ];
    let given = set(&options.key).map(|given| format!("{given} ")).unwrap_or_default();
    let found = found.into_iter().filter_map(|(name, value)| Some((format!("{OPTION}{name}"), value?)));
    variables.extend(found);
    let both = options.individual == options.combined;
    let (mut text, mut combined) = (String::new(), given);
    for (name, value) in variables.iter().filter(|(name, _)| name.starts_with(OPTION)) {
        if options.individual || both {
            text.push_str(&format!("{name}=\"{value}\"\n"));
        }
        combined.push_str(&format!(" {value}"));
    }
    if options.combined || both {
        text.push_str(&format!("{}=\"{combined}\"\n", options.key));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: DockerOpts,
    }

    fn written(args: &str, variables: &[(&str, &str)]) -> Result<String> {
        let args = std::iter::once("docker-opts").chain(args.split_whitespace());
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        render(&Command::parse_from(args).options, variables.collect())
    }

    const SUBNET: [(&str, &str); 3] =
        [("FLANNEL_SUBNET", "172.7.21.1/24"), ("FLANNEL_MTU", "1450"), ("FLANNEL_IPMASQ", "true")];

    #[test]
    fn the_daemon_s_subnet_file_is_read_where_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("blue.env"), "FLANNEL_SUBNET=10.5.21.1/24\n").unwrap();
        std::fs::write(at("red.env"), "FLANNEL_SUBNET=10.6.21.1/24\n").unwrap();
        let out = at("out").display().to_string();
        for (letters, subnet) in [(String::new(), "10.5"), (format!("-f {}", at("red.env").display()), "10.6")] {
            let args = format!("docker-opts -c -d {out} {letters}");
            write(&Command::parse_from(args.split_whitespace()).options, &at("blue.env")).unwrap();
            let text = std::fs::read_to_string(&out).unwrap();
            assert_eq!(text, format!("DOCKER_OPTS=\" --bip={subnet}.21.1/24\"\n"));
        }
    }

    /// Written by the script, run by dash with these letters.
    #[test]
    fn each_letter_writes_what_the_script_writes() {
        let single = "DOCKER_OPT_BIP=\"--bip=172.7.21.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n";
        let all = "=\" --bip=172.7.21.1/24 --ip-masq=false --mtu=1450\"\n";
        for (letters, text) in [
            ("", format!("{single}DOCKER_OPTS{all}")),
            ("-i -c", format!("{single}DOCKER_OPTS{all}")),
            ("-ic", format!("{single}DOCKER_OPTS{all}")),
            ("-i", single.to_owned()),
            ("-c", format!("DOCKER_OPTS{all}")),
            ("-c -k DOCKER_NETWORK_OPTIONS", format!("DOCKER_NETWORK_OPTIONS{all}")),
            ("-ckX", format!("X{all}")),
            ("-cm", "DOCKER_OPTS=\" --bip=172.7.21.1/24 --mtu=1450\"\n".to_owned()),
        ] {
            assert_eq!(written(letters, &SUBNET).unwrap(), text, "{letters}");
        }
    }

    #[test]
    fn what_is_given_already_stands_in_front() {
        let mut variables = vec![("DOCKER_OPTS", "--debug"), ("DOCKER_OPT_A", "--a"), ("FLANNEL_IPMASQ", "false")];
        assert_eq!(written("-c", &variables).unwrap(), "DOCKER_OPTS=\"--debug  --a --ip-masq=true\"\n");
        assert_eq!(written("-c", &[]).unwrap(), "DOCKER_OPTS=\"\"\n", "no subnet file");
        variables.push(("FLANNEL_IPMASQ", "maybe"));
        assert!(written("-c", &variables).unwrap_err().to_string().contains("\"maybe\""));
        assert!(written("-cm", &variables).is_ok());
    }

    #[test]
    fn subnet_file_is_read_as_a_shell_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        assert_eq!(read(&path).unwrap(), []);
        fs::write(&path, "# FLANNEL_MTU=1\nFLANNEL_SUBNET=172.7.21.1/24\nexport FLANNEL_MTU=\"1450\"\n\njunk\n")
            .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read(&path).unwrap(), [pair("FLANNEL_SUBNET", "172.7.21.1/24"), pair("FLANNEL_MTU", "1450")]);
    }
}
