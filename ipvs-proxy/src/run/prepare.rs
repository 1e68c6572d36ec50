//! What is done once for the process and for the host, before the daemon begins or instead of it.
//!
//! Invariant: what cannot be done is named, all of it at once where nothing else follows.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::Context;
use daemon::http::Address;
use daemon::lifecycle::Exit;
use kernel::ipvs::Ipvs;
use netstate::SysctlKey;

use super::{addresses, check_scheduler, open_ipvs};
use crate::command::config::Config;
use crate::command::settings::fields::path;

/// Where this process's score is (proc(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Gives this process its score, and tries the addresses of HTTP where failing to bind one is fatal.
///
/// # Errors
/// When an address cannot be bound and must.
pub(super) fn process(config: &Config) -> anyhow::Result<()> {
    let score = config.settings.text(path::OOM_SCORE);
    if !score.is_empty()
        && let Err(error) = std::fs::write(OOM_SCORE, score)
    {
        tracing::warn!(%error, score, "the score of this process cannot be set, which takes CAP_SYS_RESOURCE");
    }
    if config.settings.text(path::HARD_FAIL) == "true" {
        for (address, _) in &config.places.listeners {
            if let Address::Tcp(address) = address {
                TcpListener::bind(address).with_context(|| format!("bind {address}, which must not fail"))?;
            }
        }
    }
    Ok(())
}

/// Opens IPVS with the time-outs and the scheduler that are asked for.
///
/// # Errors
/// When the kernel has no IPVS, or refuses.
pub(super) fn ipvs(config: &Config) -> anyhow::Result<Ipvs> {
    let mut ipvs = open_ipvs()?;
    check_scheduler(&mut ipvs, config)?;
    addresses::set_timeouts(&mut ipvs, config.timeouts)?;
    Ok(ipvs)
}

/// The kernel parameters that are asked for, on a kernel of this release.
pub(super) fn parameters(config: &Config, release: &str) -> BTreeMap<SysctlKey, String> {
    let mut parameters = addresses::sysctls(release);
    parameters.extend(config.parameters.clone());
    parameters
}

/// Does what takes the rights of the whole host, and nothing else.
///
/// # Errors
/// When the kernel has no IPVS, or refuses.
pub(crate) fn init_only(config: &Config) -> anyhow::Result<Exit> {
    ipvs(config)?;
    let mut failed = 0_usize;
    for (key, value) in parameters(config, &super::release()?) {
        match kernel::sysctl::write(&key, &value) {
            Ok(()) => println!("{key} is {value}"),
            Err(error) => {
                failed = failed.saturating_add(1);
                eprintln!("{}", kernel::Chain(&error));
            }
        }
    }
    Ok(if failed == 0 { Exit::Success } else { Exit::Failure })
}
